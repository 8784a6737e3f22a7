/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/near.h"

#include <fcntl.h>
#include <glib.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE_US    30
#define FREE_MISSES    3 /* in a row, before waiting is left out for a while */
#define MAX_SKIP_SHIFT 10
#define BURST	       8   /* requests in a row from one process make it worth to go there */
#define LOOK_AGAIN     256 /* requests, after which it may be somewhere else */
#define STAT_PROCESSOR 39  /* field of /proc/PID/stat: proc(5) */

static struct {
	cpu_set_t home;	 /* where we may run */
	int cpu;	 /* where we went, -1: nowhere */
	uint32_t caller; /* of the last requests */
	unsigned in_a_row;
	unsigned misses, skip;
} near = { .cpu = -1 };

void near_init(void)
{
	if (sched_getaffinity(0, sizeof near.home, &near.home))
		CPU_ZERO(&near.home);
}

static int cpu_of(uint32_t pid)
{
	char path[32], text[1024], *at;
	ssize_t n;
	int fd;

	(void)snprintf(path, sizeof path, "/proc/%u/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	/* The second field may hold anything, blanks and brackets too; the others are numbers. */
	at = strrchr(text, ')');
	for (int field = 2; at && field < STAT_PROCESSOR; field++)
		at = strchr(at + 1, ' ');
	return at ? (int)strtol(at, NULL, 10) : -1;
}

void near_leave(void)
{
	if (near.cpu >= 0)
		(void)sched_setaffinity(0, sizeof near.home, &near.home);
	near.cpu = -1;
}

static void go_to(uint32_t pid)
{
	int cpu = cpu_of(pid);
	cpu_set_t one;

	if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == near.cpu || !CPU_ISSET(cpu, &near.home))
		return;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (!sched_setaffinity(0, sizeof one, &one))
		near.cpu = cpu;
}

void near_answered(uint32_t pid)
{
	if (pid != near.caller) {
		near.caller = pid;
		near.in_a_row = 0;
		/* Several callers: the scheduler knows best. */
		near_leave();
		return;
	}
	near.in_a_row++;
	if (pid && (near.in_a_row == BURST || near.in_a_row % LOOK_AGAIN == 0))
		go_to(pid);
}

bool near_is_here(void)
{
	return near.cpu >= 0;
}

int64_t near_patience(void)
{
	/* On the caller's CPU it cannot go on before we sleep. */
	if (near.cpu >= 0)
		return 0;
	if (near.skip) {
		near.skip--;
		return 0;
	}
	return PATIENCE_US;
}

void near_waited(bool came)
{
	if (came)
		near.misses = 0;
	else if (++near.misses > FREE_MISSES)
		near.skip = 1u << MIN(near.misses - FREE_MISSES, MAX_SKIP_SHIFT);
}
