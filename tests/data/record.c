/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded by test_powerloss.py: what is changed below $VMFS_RECORD_ROOT is told, in order, in the
 * file $VMFS_RECORD. A record is a line of tab-separated words, the last of which is the number of
 * bytes of data that follow it.
 *
 *	create INODE PATH	write INODE OFFSET	resize INODE SIZE	sync INODE
 *	mkdir INODE PATH	symlink INODE PATH	rmdir PATH		unlink PATH
 *	rename FROM TO		exchange FROM TO
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE (1 << 1)
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static size_t root_len;
static int log_fd = -1;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("VMFS_RECORD");

	root = getenv("VMFS_RECORD_ROOT");
	if (!path || !root)
		return;
	root_len = strlen(root);
	log_fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	/* Out of the way of the descriptors that vmfs counts on. */
	if (log_fd >= 0) {
		int high = fcntl(log_fd, F_DUPFD_CLOEXEC, 900);

		close(log_fd);
		log_fd = high;
	}
}

static int is_below_root(const char *path)
{
	return log_fd >= 0 && !strncmp(path, root, root_len) && path[root_len] == '/';
}

/* The absolute path of a name; whether it is to be told. */
static int path_of(int dir, const char *name, char ret[2 * PATH_MAX])
{
	char link[64], base[PATH_MAX];
	ssize_t n;

	if (log_fd < 0)
		return 0;
	if (name[0] == '/' || dir == AT_FDCWD) {
		snprintf(ret, 2 * PATH_MAX, "%s", name);
	} else {
		snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
		n = readlink(link, base, sizeof base - 1);
		base[n > 0 ? n : 0] = 0;
		snprintf(ret, 2 * PATH_MAX, "%s/%s", base, name);
	}
	return is_below_root(ret);
}

static void tell(const void *data, size_t len, const char *fmt, ...)
{
	char line[5 * PATH_MAX];
	struct iovec iov[2] = { { .iov_base = line }, { (void *)(uintptr_t)data, len } };
	const int kept = errno;
	va_list ap;
	size_t n;

	va_start(ap, fmt);
	n = (size_t)vsnprintf(line, sizeof line - 32, fmt, ap);
	va_end(ap);
	n += (size_t)snprintf(line + n, 32, "\t%zu\n", len);
	iov[0].iov_len = n;
	if (syscall(SYS_writev, log_fd, iov, 2) != (long)(n + len))
		abort();
	errno = kept;
}

static unsigned long inode_at(int dir, const char *name)
{
	struct stat st;

	return fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) ? 0 : st.st_ino;
}

/* The inode of a descriptor of a file or directory that is to be told of; 0: of none. */
static unsigned long inode_of(int fd)
{
	char path[2 * PATH_MAX], link[64];
	struct stat st;
	ssize_t n;

	if (log_fd < 0 || fd == log_fd || fstat(fd, &st) ||
	    (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)))
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof path - 1);
	path[n > 0 ? n : 0] = 0;
	return is_below_root(path) || !strcmp(path, root) ? st.st_ino : 0;
}

static int do_open(int dir, const char *name, int flags, mode_t mode)
{
	char path[2 * PATH_MAX];
	int fd, is_new;

	if (!(flags & (O_CREAT | O_TRUNC)) || !path_of(dir, name, path))
		return (int)syscall(SYS_openat, dir, name, flags, mode);
	pthread_mutex_lock(&lock);
	is_new = !inode_at(dir, name);
	fd = (int)syscall(SYS_openat, dir, name, flags, mode);
	if (fd >= 0 && is_new)
		tell(NULL, 0, "create\t%lu\t%s", inode_of(fd), path);
	else if (fd >= 0 && flags & O_TRUNC)
		tell(NULL, 0, "resize\t%lu\t0", inode_of(fd));
	pthread_mutex_unlock(&lock);
	return fd;
}

#define MODE(last)                                                                                 \
	({                                                                                         \
		va_list ap;                                                                        \
		mode_t given;                                                                      \
		va_start(ap, last);                                                                \
		given = va_arg(ap, mode_t);                                                        \
		va_end(ap);                                                                        \
		given;                                                                             \
	})

int open(const char *name, int flags, ...)
{
	return do_open(AT_FDCWD, name, flags, MODE(flags));
}

int openat(int dir, const char *name, int flags, ...)
{
	return do_open(dir, name, flags, MODE(flags));
}

int open64(const char *, int, ...) __attribute__((alias("open")));
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));

static ssize_t write_at(int fd, const void *data, size_t len, off_t at, int moves)
{
	const unsigned long inode = inode_of(fd);
	ssize_t n;

	if (inode)
		pthread_mutex_lock(&lock);
	if (inode && moves)
		at = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END)
						   : lseek(fd, 0, SEEK_CUR);
	n = moves ? syscall(SYS_write, fd, data, len) : syscall(SYS_pwrite64, fd, data, len, at);
	if (inode && n > 0)
		tell(data, (size_t)n, "write\t%lu\t%lld", inode, (long long)at);
	if (inode)
		pthread_mutex_unlock(&lock);
	return n;
}

ssize_t write(int fd, const void *data, size_t len)
{
	return write_at(fd, data, len, 0, 1);
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t at)
{
	return write_at(fd, data, len, at, 0);
}

ssize_t pwrite64(int, const void *, size_t, off_t) __attribute__((alias("pwrite")));

ssize_t copy_file_range(int from, off_t *at, int to, off_t *out, size_t len, unsigned flags)
{
	/* As a file system that cannot: the caller copies. */
	if (inode_of(to)) {
		errno = EXDEV;
		return -1;
	}
	return syscall(SYS_copy_file_range, from, at, to, out, len, flags);
}

int ftruncate(int fd, off_t size)
{
	const unsigned long inode = inode_of(fd);
	int r;

	pthread_mutex_lock(&lock);
	r = (int)syscall(SYS_ftruncate, fd, size);
	if (!r && inode)
		tell(NULL, 0, "resize\t%lu\t%lld", inode, (long long)size);
	pthread_mutex_unlock(&lock);
	return r;
}

int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));

/* Told when it is over: what is asked for while it goes on is not part of it for sure. */
static int do_sync(long call, int fd)
{
	const unsigned long inode = inode_of(fd);
	int r;

	pthread_mutex_lock(&lock);
	r = (int)syscall(call, fd);
	if (!r && inode)
		tell(NULL, 0, "sync\t%lu", inode);
	pthread_mutex_unlock(&lock);
	return r;
}

int fsync(int fd)
{
	return do_sync(SYS_fsync, fd);
}

int fdatasync(int fd)
{
	return do_sync(SYS_fdatasync, fd);
}

int renameat2(int dir, const char *from, int to_dir, const char *to, unsigned flags)
{
	char a[2 * PATH_MAX], b[2 * PATH_MAX];
	const int told = path_of(dir, from, a) & path_of(to_dir, to, b);
	int r;

	pthread_mutex_lock(&lock);
	r = (int)syscall(SYS_renameat2, dir, from, to_dir, to, flags);
	if (!r && told)
		tell(NULL, 0, "%s\t%s\t%s", flags & RENAME_EXCHANGE ? "exchange" : "rename", a, b);
	pthread_mutex_unlock(&lock);
	return r;
}

int renameat(int dir, const char *from, int to_dir, const char *to)
{
	return renameat2(dir, from, to_dir, to, 0);
}

int rename(const char *from, const char *to)
{
	return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlinkat(int dir, const char *name, int flags)
{
	char path[2 * PATH_MAX];
	const int told = path_of(dir, name, path);
	int r;

	pthread_mutex_lock(&lock);
	r = (int)syscall(SYS_unlinkat, dir, name, flags);
	if (!r && told)
		tell(NULL, 0, "%s\t%s", flags & AT_REMOVEDIR ? "rmdir" : "unlink", path);
	pthread_mutex_unlock(&lock);
	return r;
}

int unlink(const char *name)
{
	return unlinkat(AT_FDCWD, name, 0);
}

int rmdir(const char *name)
{
	return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}

int mkdirat(int dir, const char *name, mode_t mode)
{
	char path[2 * PATH_MAX];
	const int told = path_of(dir, name, path);
	int r;

	pthread_mutex_lock(&lock);
	r = (int)syscall(SYS_mkdirat, dir, name, mode);
	if (!r && told)
		tell(NULL, 0, "mkdir\t%lu\t%s", inode_at(dir, name), path);
	pthread_mutex_unlock(&lock);
	return r;
}

int mkdir(const char *name, mode_t mode)
{
	return mkdirat(AT_FDCWD, name, mode);
}

int symlink(const char *target, const char *name)
{
	char path[2 * PATH_MAX];
	const int told = path_of(AT_FDCWD, name, path);
	int r;

	pthread_mutex_lock(&lock);
	r = (int)syscall(SYS_symlinkat, target, AT_FDCWD, name);
	if (!r && told)
		tell(target, strlen(target), "symlink\t%lu\t%s", inode_at(AT_FDCWD, name), path);
	pthread_mutex_unlock(&lock);
	return r;
}
