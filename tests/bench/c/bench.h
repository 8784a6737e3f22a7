/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the timed helpers share. A helper that does turns is told "N" on a line of its standard
 * input, does N of them, and answers "START ELAPSED" in nanoseconds of CLOCK_MONOTONIC; so its
 * rounds can be interleaved with those of the others it is compared with.
 */
#pragma once

#include <err.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef void (*Turn)(void *arg);

static inline int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Until the end of the standard input. */
static inline void serve_turns(Turn turn, void *arg)
{
	char line[32];

	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		const long n = strtol(line, NULL, 10);
		const int64_t start = now_ns();

		for (long i = 0; i < n; i++)
			turn(arg);
		printf("%lld %lld\n", (long long)start, (long long)(now_ns() - start));
		fflush(stdout);
	}
}

static inline void unix_address(const char *path, struct sockaddr_un *a)
{
	*a = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof a->sun_path)
		errx(1, "%s: too long for a socket", path);
	memcpy(a->sun_path, path, strlen(path));
}

static inline int unix_connect(const char *path)
{
	struct sockaddr_un a;
	const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	unix_address(path, &a);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&a, sizeof a))
		err(1, "%s", path);
	return fd;
}

/* A QMP connection: one answer or event is one line. */
typedef struct Qmp {
	int fd;
	size_t len;
	char buf[65536];
} Qmp;

/* The next line, ended by NUL; overwritten by the next call. */
static inline const char *qmp_line(Qmp *q, char line[sizeof q->buf])
{
	char *end;

	while (!(end = memchr(q->buf, '\n', q->len))) {
		const ssize_t n = read(q->fd, q->buf + q->len, sizeof q->buf - q->len);

		if (n <= 0)
			errx(1, "the monitor is gone");
		q->len += (size_t)n;
	}
	const size_t n = (size_t)(end - q->buf);

	memcpy(line, q->buf, n);
	line[n] = '\0';
	q->len -= n + 1;
	memmove(q->buf, end + 1, q->len);
	return line;
}

/* Events that come before the answer are dropped. */
static inline void qmp_execute(Qmp *q, const char *command)
{
	char text[128], line[sizeof q->buf];
	const int n = snprintf(text, sizeof text, "{\"execute\":\"%s\"}\n", command);

	if (write(q->fd, text, (size_t)n) != n)
		err(1, "the monitor");
	while (!strstr(qmp_line(q, line), "\"return\""))
		if (strstr(line, "\"error\""))
			errx(1, "%s: %s", command, line);
}

static inline void qmp_connect(Qmp *q, const char *path)
{
	char line[sizeof q->buf];

	q->fd = unix_connect(path);
	q->len = 0;
	(void)qmp_line(q, line); /* the greeting */
	qmp_execute(q, "qmp_capabilities");
}
