/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A user's rights to files, for work in the pool: what a user names is looked at, and what is the
 * user's is made, as the kernel would let that user.
 */
#pragma once

#include <stdbool.h>

#include "vmfs/proc.h"

/*
 * Take them for the calling thread, until rights_drop(). EPERM when this daemon may not; then, as
 * when user->change is not set, the daemon's own stay. *ret_before is for rights_drop().
 */
bool rights_take(const ProcUser *user, int *ret_before);
void rights_drop(const ProcUser *user, int before);
