/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest has and counts of network interfaces, as its agent answers GUESTNET_COMMAND: it may
 * be anything. Pure; for all backends that have the agent.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#define GUESTNET_COMMAND "guest-network-get-interfaces"

/* The interface in it that has this address; borrowed; NULL: none has. */
const json_t *guestnet_find(const json_t *interfaces, const char *mac);
/* The addresses of those of which ours(arg, address) is true, best first: of char *, owned by the
 * caller. */
GPtrArray *guestnet_ips(const json_t *interfaces, bool (*ours)(const void *arg, const char *mac),
			const void *arg);
/* The lines of `stats` of such an interface (NULL: none), which the spec calls `name`. */
void guestnet_counters(GString *out, const char *name, const json_t *interface);
