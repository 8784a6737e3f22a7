/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/rights.h"

#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* These system calls, made directly, change the calling thread only: nptl(7). */
bool rights_take(const ProcUser *user, int *ret_before)
{
	*ret_before = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
	if (!user->change)
		return true;
	if (syscall(SYS_setgroups, (size_t)user->n_groups, user->groups))
		return false;
	(void)syscall(SYS_setfsgid, user->gid);
	/* Takes the capabilities that override file permissions away as well: capabilities(7). */
	(void)syscall(SYS_setfsuid, user->uid);
	return (uid_t)syscall(SYS_setfsuid, (uid_t)-1) == user->uid;
}

void rights_drop(const ProcUser *user, int before)
{
	const int code = errno;

	if (!user->change)
		return;
	(void)syscall(SYS_setfsuid, geteuid());
	(void)syscall(SYS_setfsgid, getegid());
	(void)syscall(SYS_setgroups, (size_t)0, NULL);
	/* All of the process lost the right to core dumps by it. */
	if (before == 1)
		(void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	errno = code;
}
