/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/rights.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "vmfs/err.h"

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

static struct posix_acl_xattr_entry entry(unsigned tag, unsigned perms, uid_t id)
{
	return (struct posix_acl_xattr_entry){ GUINT16_TO_LE(tag), GUINT16_TO_LE(perms & 7),
					       GUINT32_TO_LE(id) };
}

static bool let(int fd, uid_t uid, unsigned perms)
{
	struct {
		struct posix_acl_xattr_header head;
		struct posix_acl_xattr_entry entries[5];
	} acl = { .head = { GUINT32_TO_LE(POSIX_ACL_XATTR_VERSION) } };
	const uid_t none = (uid_t)ACL_UNDEFINED_ID;
	struct stat st;

	if (fstat(fd, &st))
		return false;
	if (st.st_uid == uid)
		return true;
	/* In this order. */
	acl.entries[0] = entry(ACL_USER_OBJ, st.st_mode >> 6, none);
	acl.entries[1] = entry(ACL_USER, perms, uid);
	acl.entries[2] = entry(ACL_GROUP_OBJ, 0, none);
	acl.entries[3] = entry(ACL_MASK, perms, none);
	acl.entries[4] = entry(ACL_OTHER, st.st_mode, none);
	return !fsetxattr(fd, "system.posix_acl_access", &acl, sizeof acl, 0);
}

bool rights_let(const char *path, uid_t uid, unsigned perms, GError **err)
{
	const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	const bool ok = fd >= 0 && let(fd, uid, perms);
	const int code = errno;

	if (fd >= 0)
		close(fd);
	return ok || err_set(err, code, "cannot let user %u, as whom QEMU runs, get to %s: %s", uid,
			     path, g_strerror(code));
}
