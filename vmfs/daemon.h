/* SPDX-License-Identifier: Apache-2.0 */
/* Being a daemon: going to the background, finding the mountpoint free. */
#pragma once

#include <glib.h>
#include <stdbool.h>

/*
 * Go on in a child, in a session of its own; the parent waits for daemon_ready() and exits with
 * success, or with failure when the child ends before. Before any thread is started.
 */
bool daemon_background(GError **err);
/* Ready to serve: lets the parent go. */
void daemon_ready(void);
/* There is no terminal to speak to any more. */
void daemon_leave_terminal(void);

/*
 * The mountpoint as an absolute path without links (owned by the caller). Clears away what a
 * killed daemon left mounted there; EBUSY when a living vmfs is.
 */
char *daemon_mountpoint(const char *path, GError **err);
/* Take a mount away that nobody serves. */
void daemon_unmount(const char *path);
