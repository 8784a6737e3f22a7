/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/err.h"

/* At the file's begin. Written in one piece, and after the bytes that it tells of. */
typedef struct SpoolHead {
	uint64_t last, from, to; /* offsets in what follows */
} SpoolHead;

struct Spool {
	int fd;
	SpoolHead head;
};

static bool write_head(Spool *s, SpoolHead head)
{
	if (pwrite(s->fd, &head, sizeof head, 0) != sizeof head)
		return false;
	s->head = head;
	return true;
}

Spool *spool_open(const char *path, bool make, GError **err)
{
	const int flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	Spool *s = g_new0(Spool, 1);
	struct stat st;

	s->fd = open(path, make ? flags | O_CREAT : flags, 0600);
	if (s->fd < 0) {
		(void)err_set(err, errno, "cannot open %s: %s", path, g_strerror(errno));
	} else if (fstat(s->fd, &st) || !S_ISREG(st.st_mode) || st.st_nlink != 1) {
		(void)err_set(err, EINVAL, "%s is not a file of vmfs", path);
	} else {
		const bool told = pread(s->fd, &s->head, sizeof s->head, 0) == sizeof s->head;

		if (!told || s->head.from > s->head.to || s->head.to > (uint64_t)st.st_size)
			memset(&s->head, 0, sizeof s->head);
		return s;
	}
	spool_close(s);
	return NULL;
}

void spool_close(Spool *s)
{
	if (!s)
		return;
	if (s->fd >= 0)
		close(s->fd);
	g_free(s);
}

bool spool_add(Spool *s, uint64_t number, const void *data, size_t len, GError **err)
{
	const uint64_t to = s->head.to;
	const off_t at = (off_t)(sizeof s->head + to);
	const ssize_t n = pwrite(s->fd, data, len, at);

	if (n == (ssize_t)len && write_head(s, (SpoolHead){ number, s->head.from, to + len }))
		return true;
	return err_set(err, n < 0 ? errno : ENOSPC, "cannot keep what was printed: %s",
		       g_strerror(n < 0 ? errno : ENOSPC));
}

uint64_t spool_last(const Spool *s)
{
	return s->head.last;
}

GByteArray *spool_peek(const Spool *s)
{
	GByteArray *bytes = g_byte_array_new();
	ssize_t n;

	g_byte_array_set_size(bytes, (guint)spool_len(s));
	n = pread(s->fd, bytes->data, bytes->len, (off_t)(sizeof s->head + s->head.from));
	g_byte_array_set_size(bytes, (guint)MAX(n, 0));
	return bytes;
}

void spool_clear(Spool *s)
{
	(void)write_head(s, (SpoolHead){ s->head.last, 0, 0 });
}

size_t spool_take(Spool *s, char *buf, size_t size)
{
	SpoolHead head = s->head;

	if (!spool_len(s))
		return 0;
	const ssize_t n =
		pread(s->fd, buf, MIN(size, spool_len(s)), (off_t)(sizeof head + head.from));

	/* Somebody has cut it off: there is no more. */
	head.from = n > 0 ? head.from + (uint64_t)n : head.to;
	if (head.from == head.to)
		head.from = head.to = 0;
	(void)write_head(s, head);
	return n > 0 ? (size_t)n : 0;
}

size_t spool_len(const Spool *s)
{
	return s->head.to - s->head.from;
}
