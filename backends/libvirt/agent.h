/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's agent, through libvirt. In the pool: each call waits for the guest, for a few seconds
 * at most. What it answers may be anything.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <libvirt/libvirt.h>
#include <stdbool.h>

/*
 * What it returns, which the caller decrefs. NULL and err: EIO when the agent says no, any other
 * errno when it says nothing. Takes args, which may be NULL.
 */
json_t *lv_agent_ask(virDomainPtr dom, const char *command, json_t *args_take, GError **err);
/* The text of a file, of `max` bytes at most; NULL without err: there is none. */
GByteArray *lv_agent_read(virDomainPtr dom, const char *path, size_t max, GError **err);
/* Write a few words to a file that is there, as to a FIFO. False without err: there is none. */
bool lv_agent_write(virDomainPtr dom, const char *path, const char *text, GError **err);
