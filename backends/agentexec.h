/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the QEMU guest agent is asked and says about commands in the guest, for all backends that
 * have it. Whatever answers is inside the guest, and may lie. Pure.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* From the answer to guest-exec. false: it tells of no process. */
bool agentexec_pid(const json_t *result, json_int_t *ret);
/* From the answer to guest-exec-status, of a command that has ended: "exit 3", "signal 9"; NULL: it
 * does not say. Owned by the caller. */
char *agentexec_end(const json_t *result);
/* What it has captured of the command's stderr, as one text; NULL: nothing. Owned by the caller. */
char *agentexec_complaint(const json_t *result);
/* The arguments of a guest-exec that sends this signal to the process and all that it has started.
 */
json_t *agentexec_signal(json_int_t pid, int sig);
