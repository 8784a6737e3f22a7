/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows with a real file behind them: it is opened for each request, whose bytes go to or come from
 * it in the pool. So large ones neither go through memory as a whole nor keep anybody waiting.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/fs_internal.h"
#include "vmfs/loop.h"

typedef struct Blob {
	Parked parked;
	Handle *h; /* outlives the request; NULL: the request was answered otherwise */
	NodeRef ref;
	int fd;
	bool write;
	char *buf;
	size_t size;
	off_t off;
	ssize_t done; /* or -errno */
} Blob;

static void work(void *arg)
{
	Blob *b = arg;
	if (!b->write) {
		b->done = pread(b->fd, b->buf, b->size, b->off);
		if (b->done < 0)
			b->done = -errno;
		return;
	}
	/* All of it or an error: a part would leave the reason untold. */
	while (b->done >= 0 && (size_t)b->done < b->size) {
		const ssize_t n = pwrite(b->fd, b->buf + b->done, b->size - (size_t)b->done,
					 b->off + b->done);

		b->done = n < 0 ? -errno : b->done + n;
	}
}

static void blob_free(Blob *b)
{
	close(b->fd);
	g_free(b->buf);
	if (b->ref.vm)
		vm_unref(b->ref.vm);
	g_free(b);
}

static void worked(void *arg)
{
	Blob *b = arg;
	fuse_req_t req;

	if (b->h) {
		req = fs_unpark(&b->parked);
		if (b->done < 0)
			fuse_reply_err(req, (int)-b->done);
		else if (b->write)
			fuse_reply_write(req, (size_t)b->done);
		else
			fuse_reply_buf(req, b->buf, (size_t)b->done);
	}
	if (b->write && b->ref.node->edited && !b->ref.vm->removed)
		b->ref.node->edited(&b->ref, EDIT_WROTE, b->done < 0 ? (int)-b->done : 0);
	blob_free(b);
}

/* The work is not stopped by a signal, but not waited for either. */
static void ended(Parked *parked, int err)
{
	Blob *b = (Blob *)parked;

	fuse_reply_err(fs_unpark(parked), err);
	b->h = NULL;
}

static void begin(fuse_req_t req, Handle *h, int fd, bool write, const char *buf, size_t size,
		  off_t off)
{
	Blob *b = g_new0(Blob, 1);

	b->h = h;
	b->ref = h->ref;
	if (b->ref.vm)
		vm_ref(b->ref.vm);
	b->fd = fd;
	b->write = write;
	b->buf = write ? g_memdup2(buf, size) : g_malloc(size);
	b->size = size;
	b->off = off;
	fs_park(&b->parked, req, ended);
	loop_work(work, worked, b);
}

void fs_read_blob(fuse_req_t req, Handle *h, size_t size, off_t off)
{
	const int fd = h->ref.node->file(&h->ref);

	if (fd >= 0)
		begin(req, h, fd, false, NULL, size, off);
	else if (errno == ENOENT) /* not there before the first start */
		fuse_reply_buf(req, NULL, 0);
	else
		fuse_reply_err(req, errno);
}

void fs_write_blob(fuse_req_t req, Handle *h, const char *buf, size_t size, off_t off)
{
	const int fd = h->ref.node->edit(&h->ref);

	if (fd >= 0)
		begin(req, h, fd, true, buf, size, off);
	else
		fuse_reply_err(req, errno);
}

/* 0 or an errno. */
int fs_truncate_blob(const NodeRef *r, off_t size)
{
	const int fd = r->node->edit(r);
	int err = 0;

	if (fd < 0)
		return errno;
	if (ftruncate(fd, size))
		err = errno;
	close(fd);
	return err;
}

int fs_open_blob(Handle *h)
{
	const int access = h->flags & O_ACCMODE;
	int err = 0;

	if (access == O_RDONLY)
		return 0;
	if (!h->ref.node->edit)
		return EACCES;
	if (h->flags & O_TRUNC) {
		err = fs_truncate_blob(&h->ref, 0);
	} else {
		const int fd = h->ref.node->edit(&h->ref);

		if (fd < 0)
			return errno;
		close(fd);
	}
	if (err)
		return err;
	h->editing = true;
	h->ref.node->edited(&h->ref, EDIT_OPENED, 0);
	return 0;
}

void fs_close_blob(Handle *h)
{
	if (h->editing && !h->ref.vm->removed)
		h->ref.node->edited(&h->ref, EDIT_CLOSED, 0);
	h->editing = false;
}
