/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/upgrade.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmfs/log.h"

#define SOCKET_NAME "keeper"
#define MAX_ANSWER  1024

static bool address(const char *runtime_dir, struct sockaddr_un *sa)
{
	g_autofree char *path = g_build_filename(runtime_dir, SOCKET_NAME, NULL);

	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	return g_strlcpy(sa->sun_path, path, sizeof sa->sun_path) < sizeof sa->sun_path;
}

/* ---- the command ---- */

static int wait_for_answer(int fd)
{
	char answer[MAX_ANSWER + 1];
	const ssize_t n = recv(fd, answer, MAX_ANSWER, 0);

	if (n < 1) {
		log_error("the keeper has ended; nothing is known of the upgrade");
		return EXIT_FAILURE;
	}
	answer[n] = 0;
	printf("%s\n", answer + 1);
	return answer[0];
}

int upgrade_main(const Options *options)
{
	char *mountpoint = realpath(options->mountpoint, NULL);
	struct sockaddr_un sa;
	int fd, status = EXIT_FAILURE;

	if (!mountpoint) {
		log_error("%s: %s", options->mountpoint, g_strerror(errno));
		return EXIT_FAILURE;
	}
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd >= 0 && address(options->runtime_dir, &sa) &&
	    !connect(fd, (struct sockaddr *)&sa, sizeof sa) &&
	    send(fd, mountpoint, strlen(mountpoint), MSG_NOSIGNAL) > 0)
		status = wait_for_answer(fd);
	else
		log_error("cannot reach the keeper of %s by way of %s: %s; name the directories "
			  "with which it was mounted",
			  mountpoint, options->runtime_dir, g_strerror(errno));
	if (fd >= 0)
		close(fd);
	free(mountpoint);
	return status;
}

/* ---- the keeper ---- */

int upgrade_listen(const char *runtime_dir)
{
	struct sockaddr_un sa;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || !address(runtime_dir, &sa))
		return fd;
	(void)unlink(sa.sun_path);
	if (!bind(fd, (struct sockaddr *)&sa, sizeof sa) && !chmod(sa.sun_path, 0600) &&
	    !listen(fd, 1))
		return fd;
	log_warning("no --upgrade is possible: %s: %s", sa.sun_path, g_strerror(errno));
	close(fd);
	return -1;
}

void upgrade_unlisten(const char *runtime_dir, int listener)
{
	struct sockaddr_un sa;

	if (listener < 0)
		return;
	if (address(runtime_dir, &sa))
		(void)unlink(sa.sun_path);
	close(listener);
}

int upgrade_accept(int listener)
{
	struct ucred peer;
	socklen_t len = sizeof peer;
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return -1;
	if (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) &&
	    (peer.uid == geteuid() || peer.uid == 0))
		return fd;
	close(fd);
	return -1;
}

bool upgrade_read(int peer, const char *mountpoint)
{
	char wanted[PATH_MAX];
	const ssize_t n = recv(peer, wanted, sizeof wanted - 1, 0);

	wanted[MAX(n, 0)] = 0;
	return !strcmp(wanted, mountpoint);
}

void upgrade_answer(int *peer, int status, const char *text)
{
	char answer[MAX_ANSWER];

	if (*peer < 0)
		return;
	answer[0] = (char)status;
	g_strlcpy(answer + 1, text, sizeof answer - 1);
	/* Whoever asked may have gone. */
	(void)send(*peer, answer, 1 + strlen(answer + 1), MSG_NOSIGNAL);
	close(*peer);
	*peer = -1;
}
