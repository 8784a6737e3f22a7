/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of which the hypervisor is asked when they are opened (screen.png, leases). The open waits
 * for the answer, so that the size is true from then on, which tar, rsync and whoever maps the file
 * rely on. Opening for reading holds no lock of the kernel: nobody else waits. Each open file keeps
 * the answer it was given; reading again from the beginning asks again.
 */
#include <errno.h>

#include "vmfs/err.h"
#include "vmfs/fs_internal.h"

typedef struct AskedRequest {
	Parked parked;
	Handle *h; /* outlives the request */
	AskWaiter *waiter;
	struct fuse_open_out out; /* of an open */
	size_t size;		  /* of a read; 0: an open */
	bool over;		  /* answered, while it is still being fetched */
} AskedRequest;

static void reply_open(fuse_req_t req, const AskedRequest *a, int err)
{
	int failed = err ? err : fuse_reply_buf(req, (const char *)&a->out, sizeof a->out);

	if (err)
		fuse_reply_err(req, err);
	/* Nobody will close what was not opened. */
	if (failed)
		fs_handle_close(a->h);
}

static void reply(fuse_req_t req, AskedRequest *a, int err)
{
	if (!a->size)
		reply_open(req, a, err);
	else if (err)
		fuse_reply_err(req, err);
	else
		fs_reply_slice(req, g_bytes_get_data(a->h->answer, NULL),
			       g_bytes_get_size(a->h->answer), 0, a->size);
}

static void take(Handle *h, GBytes *answer)
{
	if (h->answer)
		g_bytes_unref(h->answer);
	h->answer = g_bytes_ref(answer);
	fs_keep_answer(h);
}

static void answered(void *arg, GBytes *answer, const GError *e)
{
	AskedRequest *a = arg;
	fuse_req_t req = fs_unpark(&a->parked);
	int err = e ? err_code(e) : 0;

	/* What does not run shows nothing; that is no failure. */
	if (err == ESRCH) {
		g_autoptr(GBytes) none = g_bytes_new_static("", 0);

		take(a->h, none);
		err = 0;
	} else if (e) {
		vm_set_error(a->h->ref.vm, a->h->ref.node->name, e);
	} else {
		take(a->h, answer);
	}
	a->h->unread = !a->size;
	if (!err)
		fs_keep_handle(a->h);
	reply(req, a, err);
	g_free(a);
}

static void fetched(void *arg, GBytes *text, int err)
{
	AskedRequest *a = arg;
	fuse_req_t req;

	if (!a->over) {
		req = fs_unpark(&a->parked);
		if (!err)
			take(a->h, text);
		a->h->unread = !a->size;
		if (!err)
			fs_keep_handle(a->h);
		reply(req, a, err);
	}
	g_free(a);
}

static void ended(Parked *parked, int err)
{
	AskedRequest *a = (AskedRequest *)parked;

	/* Of an open, the answer closes the handle. */
	a->over = a->h->ref.node->fetch != NULL;
	ask_leave(&a->waiter);
	reply(fs_unpark(parked), a, err);
	if (!a->over)
		g_free(a);
}

static void park(fuse_req_t req, AskedRequest *a)
{
	const NodeRef *r = &a->h->ref;
	int err;

	fs_park(&a->parked, req, ended);
	if (r->node->fetch) {
		err = r->node->fetch(r, fetched, a);
		if (err)
			fetched(a, NULL, err);
		return;
	}
	ask_backend(a->h->ref.vm, a->h->ref.node->ask, NULL, answered, a, &a->waiter);
}

void fs_open_asked(fuse_req_t req, Handle *h, const struct fuse_open_out *out)
{
	AskedRequest *a = g_new0(AskedRequest, 1);

	/* Not open yet: a successor of this daemon would open it again. */
	fs_forget_handle(h->fh);
	a->h = h;
	a->out = *out;
	park(req, a);
}

void fs_read_asked(fuse_req_t req, Handle *h, size_t size, off_t off)
{
	AskedRequest *a;

	if (off > 0 || h->unread || !size) {
		if (h->unread) {
			h->unread = false;
			fs_keep_handle(h);
		}
		fs_reply_slice(req, g_bytes_get_data(h->answer, NULL), g_bytes_get_size(h->answer),
			       off, size);
		return;
	}
	a = g_new0(AskedRequest, 1);
	a->h = h;
	a->size = size;
	park(req, a);
}
