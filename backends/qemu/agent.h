/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest agent's side of a VM. Whatever answers is inside the guest: it may be absent, slow,
 * or lie, so each request has a time-out and what comes unasked is bounded and thrown away.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct Agent Agent;

/* changed() is told when an agent has answered for the first time, and when it is not there any
 * more. */
Agent *agent_new(const char *path, void (*changed)(void *arg, bool up), void *arg);
void agent_free(Agent *a);

/* The guest has opened or closed the port. */
void agent_port(Agent *a, bool open);
/* The port is open: somebody may answer. */
bool agent_is_open(const Agent *a);
/* It answered when it was asked last. */
bool agent_is_up(const Agent *a);

/* `result` (NULL with err set; may also be NULL when nothing is answered on success) and err are
 * borrowed. */
typedef void (*AgentFn)(void *arg, const json_t *result, const GError *err);

/*
 * fn is called once, later. `args` is taken and may be NULL. With `mute`, the agent says nothing
 * when it succeeds, and silence until the time-out counts as success.
 */
void agent_request(Agent *a, const char *command, json_t *args, bool mute, uint64_t timeout_ms,
		   AgentFn fn, void *arg);
/* fn is not called any more for requests with this fn and arg. */
void agent_cancel(Agent *a, AgentFn fn, void *arg);

/* Take one line from the guest. */
void agent_feed(Agent *a, char *line, size_t len);
