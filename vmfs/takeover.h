/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When the keeper itself has died: the daemon serves on, and offers what it was given to the next
 * vmfs that is started on the same directories, as a supervisor does. That one is the keeper then.
 */
#pragma once

#include <stdbool.h>

#define TAKEOVER_FDS 4 /* the mount, the memory file, the two locks */

/*
 * In the daemon, from its start: wait for somebody to take these (borrowed) once is_orphan(), which
 * is asked again for each who comes. taken() is called when they are gone.
 */
void takeover_offer(const char *runtime_dir, const char *mountpoint, const int fds[TAKEOVER_FDS],
		    bool (*is_orphan)(void), void (*taken)(void));
/* At the end. */
void takeover_withdraw(void);
/*
 * In a new keeper: take them, and wait until the daemon that had them has ended. False: nobody
 * offers them for this mountpoint.
 */
bool takeover_ask(const char *runtime_dir, const char *mountpoint, int ret_fds[TAKEOVER_FDS]);
