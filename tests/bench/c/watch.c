/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits for something and prints, for each time it happens, the nanoseconds of CLOCK_MONOTONIC.
 *
 *   watch inotify FILE        IN_MODIFY
 *   watch pidfd PID           the process ends
 *   watch read FILE WORD      WORD is read from a stream ('-': the standard input)
 *   watch socket PATH WORD    the same of a socket
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/syscall.h>

#include "bench.h"

static void tell(const char *what)
{
	printf("%lld %s\n", (long long)now_ns(), what);
	fflush(stdout);
}

static void ready(void)
{
	printf("ready\n");
	fflush(stdout);
}

static void watch_inotify(const char *path)
{
	char buf[4096] __attribute__((aligned(8)));
	const int fd = inotify_init1(IN_CLOEXEC);

	if (inotify_add_watch(fd, path, IN_MODIFY) < 0)
		err(1, "%s", path);
	ready();
	while (read(fd, buf, sizeof buf) > 0)
		tell("modify");
}

static void watch_pidfd(const char *pid)
{
	struct pollfd p = { .fd = (int)syscall(SYS_pidfd_open, atoi(pid), 0), .events = POLLIN };

	if (p.fd < 0)
		err(1, "%s", pid);
	ready();
	if (poll(&p, 1, -1) == 1)
		tell("exit");
}

/* A word that is cut in two by a read is found too. */
static void watch_stream(int fd, const char *word)
{
	char buf[65536];
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		err(1, "%s", word);
	ready();
	while ((n = read(fd, buf + len, sizeof buf - len)) > 0) {
		len += (size_t)n;
		if (memmem(buf, len, word, strlen(word))) {
			tell(word);
			len = 0;
		} else if (len >= strlen(word)) {
			memmove(buf, buf + len - strlen(word) + 1, strlen(word) - 1);
			len = strlen(word) - 1;
		}
	}
}

int main(int argc, char *argv[])
{
	if (argc == 3 && !strcmp(argv[1], "inotify"))
		watch_inotify(argv[2]);
	else if (argc == 3 && !strcmp(argv[1], "pidfd"))
		watch_pidfd(argv[2]);
	else if (argc == 4 && !strcmp(argv[1], "socket"))
		watch_stream(unix_connect(argv[2]), argv[3]);
	else if (argc == 4 && !strcmp(argv[1], "read"))
		watch_stream(strcmp(argv[2], "-") ? open(argv[2], O_RDONLY) : STDIN_FILENO,
			     argv[3]);
	else
		errx(2, "usage: watch inotify|pidfd|read|socket ...");
	return 0;
}
