/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded by test_faults.py: system calls that fail, or that see another time, as a test orders
 * through a shared file ($VMFS_FAULTS). The calls of the store are those of its own thread.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct orders {
	int32_t error;	   /* what the calls of the store fail with; 0: nothing */
	int32_t countdown; /* calls of the store that still succeed */
	int32_t once;	   /* then one fails, not all */
	int32_t calls;	   /* of the store so far */
	int32_t clone;	   /* what clone(2) fails with */
	int32_t unused;
	int64_t clock; /* seconds that the clock is wrong by */
};

static struct orders *orders;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("VMFS_FAULTS");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *map = fd < 0 ? MAP_FAILED
			   : mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map != MAP_FAILED)
		orders = map;
	if (fd >= 0)
		close(fd);
}

static int is_store(void)
{
	char name[16] = "";

	return !prctl(PR_GET_NAME, name) && !strcmp(name, "store");
}

static int fails(void)
{
	if (!orders || !is_store())
		return 0;
	orders->calls++;
	if (!orders->error || orders->countdown-- > 0)
		return 0;
	errno = orders->error;
	if (orders->once)
		orders->error = 0;
	return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t len)
{
	return fails() ? -1 : NEXT(write)(fd, data, len);
}

int fsync(int fd)
{
	return fails() ? -1 : NEXT(fsync)(fd);
}

int mkdirat(int dir, const char *path, mode_t mode)
{
	return fails() ? -1 : NEXT(mkdirat)(dir, path, mode);
}

int renameat(int dir, const char *from, int to_dir, const char *to)
{
	return fails() ? -1 : NEXT(renameat)(dir, from, to_dir, to);
}

int renameat2(int dir, const char *from, int to_dir, const char *to, unsigned flags)
{
	return fails() ? -1 : NEXT(renameat2)(dir, from, to_dir, to, flags);
}

int unlinkat(int dir, const char *path, int flags)
{
	return fails() ? -1 : NEXT(unlinkat)(dir, path, flags);
}

int openat(int dir, const char *path, int flags, ...)
{
	va_list ap;
	mode_t mode;

	va_start(ap, flags);
	mode = va_arg(ap, mode_t);
	va_end(ap);
	return fails() ? -1 : NEXT(openat)(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...) __attribute__((alias("openat")));

int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	va_list ap;
	void *rest[3];

	va_start(ap, arg);
	for (int i = 0; i < 3; i++)
		rest[i] = va_arg(ap, void *);
	va_end(ap);
	if (orders && orders->clone) {
		errno = orders->clone;
		return -1;
	}
	return NEXT(clone)(fn, stack, flags, arg, rest[0], rest[1], rest[2]);
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int r = NEXT(clock_gettime)(id, ts);

	if (!r && id == CLOCK_REALTIME && orders)
		ts->tv_sec += orders->clock;
	return r;
}
