/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/log.h"

static int ready_fd = -1; /* the parent waits at its other end */

bool daemon_background(GError **err)
{
	g_autofree char *cwd = NULL;
	int fds[2], null;
	pid_t pid;
	char byte;

	if (pipe2(fds, O_CLOEXEC))
		return err_set(err, errno, "cannot make a pipe: %s", g_strerror(errno));
	pid = fork();
	if (pid < 0)
		return err_set(err, errno, "cannot fork: %s", g_strerror(errno));
	if (pid) {
		close(fds[1]);
		/* _exit: buffers and handlers are the child's. */
		_exit(read(fds[0], &byte, 1) == 1 ? EXIT_SUCCESS : EXIT_FAILURE);
	}
	close(fds[0]);
	ready_fd = fds[1];
	(void)setsid();
	/* Keep no file system busy but our own; the daemon resolves relative paths as we did. */
	cwd = g_get_current_dir();
	(void)g_setenv("VMFS_CWD", cwd, true);
	if (chdir("/"))
		return err_set(err, errno, "cannot go to /: %s", g_strerror(errno));
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
		return err_set(err, errno, "cannot open /dev/null: %s", g_strerror(errno));
	return true;
}

void daemon_leave_terminal(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	log_to_syslog();
	if (null < 0)
		return;
	(void)dup2(null, 2);
	close(null);
}

void daemon_ready(void)
{
	if (ready_fd < 0)
		return;
	daemon_leave_terminal();
	if (write(ready_fd, "", 1) != 1)
		log_warning("nobody waits for vmfs to be ready");
	close(ready_fd);
	ready_fd = -1;
}

void daemon_unmount(const char *path)
{
	char *argv[] = { (char *)"fusermount3", (char *)"-u", (char *)"-z", (char *)path, NULL };
	g_autoptr(GError) e = NULL;

	if (geteuid() == 0) {
		/* EINVAL: it is not mounted any more. */
		if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) && errno != EINVAL)
			log_warning("cannot unmount %s: %s", path, g_strerror(errno));
	} else if (!g_spawn_sync(NULL, argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL,
				 NULL, &e)) {
		log_warning("cannot unmount %s: %s", path, e->message);
	}
}

static bool is_vmfs_mount(const char *path)
{
	g_autofree char *text = NULL, *wanted = g_strconcat(" ", path, " ", NULL);
	g_auto(GStrv) lines = NULL;

	if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
		return false;
	lines = g_strsplit(text, "\n", -1);
	for (unsigned i = 0; lines[i]; i++)
		if (strstr(lines[i], wanted) && strstr(lines[i], " - fuse.vmfs "))
			return true;
	return false;
}

char *daemon_mountpoint(const char *path, GError **err)
{
	g_autofree char *full = g_canonicalize_filename(path, NULL);
	char *real, *copy;
	struct statfs sfs;
	struct stat st;

	/* stat(2) would be answered from the kernel's cache; this asks the daemon. */
	if (statfs(full, &sfs) && errno == ENOTCONN) {
		log_info("%s is a mount whose daemon is gone; unmounting it first", full);
		daemon_unmount(full);
	} else if (is_vmfs_mount(full)) {
		(void)err_set(err, EBUSY, "a vmfs is mounted on %s already", full);
		return NULL;
	}
	real = realpath(full, NULL);
	if (real && (stat(real, &st) || !S_ISDIR(st.st_mode))) {
		free(real);
		(void)err_set(err, ENOTDIR, "cannot mount on %s: it is not a directory", full);
		return NULL;
	}
	if (!real) {
		(void)err_set(err, errno, "cannot mount on %s: %s", full, g_strerror(errno));
		return NULL;
	}
	copy = g_strdup(real);
	free(real);
	return copy;
}
