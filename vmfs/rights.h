/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A user's rights to files, for work in the pool: what a user names is looked at, and what is the
 * user's is made, as the kernel would let that user.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

#include "vmfs/proc.h"

/*
 * Take them for the calling thread, until rights_drop(). EPERM when this daemon may not; then, as
 * when user->change is not set, the daemon's own stay. *ret_before is for rights_drop().
 */
bool rights_take(const ProcUser *user, int *ret_before);
void rights_drop(const ProcUser *user, int before);

/*
 * Let another user get to a file or directory as well: perms are those of a mode's digit. With the
 * thread's rights; of the group nobody has any then. EOPNOTSUPP: its file system has no such lists.
 */
bool rights_let(const char *path, uid_t uid, unsigned perms, GError **err);
