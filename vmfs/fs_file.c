/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files: opening, reading, polling. A handle is a number; what is kept for it is only what
 * this one reader or writer has got so far. Reads of streams may wait for long.
 *
 * Of a shown file that is opened for reading nothing is kept at all until there is something to
 * remember: its number tells which version of the text was there when it was opened. That makes
 * the commonest thing that is done here cheap, and a successor needs nothing to go on with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/fs_internal.h"
#include "vmfs/keep.h"
#include "vmfs/request.h"
#include "vmfs/scratch.h"
#include "vmfs/waitq.h"

/* Each can hold a document or what a stream has to tell. */
#define MAX_HANDLES 16384

/* In the number of a light handle: that it is one, and the version that was there. */
#define LIGHT	     ((uint64_t)1 << 63)
#define VERSION_BITS 24
#define VERSION_MASK ((1u << VERSION_BITS) - 1)

static GHashTable *handles; /* by fh; but for this one: */
/*
 * The light handle that was made last. Small files are mostly read one after the other, and then
 * this is the only one, made once. When it has no number it is free.
 */
static Handle *newest;
#define SMALL_TEXT 4096 /* bytes of room that are kept for the next one */

static uint32_t version_of(const NodeRef *r)
{
	uint32_t sum = 0;

	const uint32_t *versions = r->vm ? r->vm->versions : vm_all.versions;

	for (unsigned i = 0; i < EV_COUNT; i++)
		if (r->node->events & (1u << i))
			sum += versions[i];
	return sum & VERSION_MASK;
}

static void poll_end(Handle *h)
{
	waitq_remove(&h->poll);
	h->kh = 0;
}

static void handle_end(Handle *h)
{
	poll_end(h);
	if (h->kept)
		fs_forget_handle(h->fh);
	if (h->ref.node->stream && h->ref.node->stream->close)
		h->ref.node->stream->close(&h->ref, &h->reader);
	if (h->reader.first)
		g_string_free(h->reader.first, TRUE);
	if (h->answer)
		g_bytes_unref(h->answer);
	if (h->doc)
		g_byte_array_unref(h->doc);
	op_unref(h->op);
	vm_unref(h->ref.vm);
}

static void handle_free(void *data)
{
	Handle *h = data;

	if (h->fh)
		handle_end(h);
	if (h->text)
		g_string_free(h->text, TRUE);
	g_free(h);
}

static void handles_add(Handle *h)
{
	if (!handles)
		handles = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, handle_free);
	g_hash_table_insert(handles, &h->fh, h);
}

static void handle_init(Handle *h, uint64_t fh, const NodeRef *r, int flags)
{
	GString *text = h->text;

	*h = (Handle){ .fh = fh, .ref = *r, .flags = flags, .text = text };
	if (r->vm)
		vm_ref(r->vm);
	h->reader.writes = (flags & O_ACCMODE) != O_RDONLY;
}

Handle *fs_handle_insert(uint64_t fh, const NodeRef *r, int flags)
{
	Handle *h = g_new0(Handle, 1);

	/* Also one of a daemon that did not number them there. */
	if (!(fh & LIGHT))
		keep_head()->handles = MAX(keep_head()->handles, fh);
	handle_init(h, fh, r, flags);
	handles_add(h);
	return h;
}

static bool too_many(void)
{
	return handles && g_hash_table_size(handles) >= MAX_HANDLES;
}

/* NULL: too many are open. */
static Handle *handle_new(const NodeRef *r, int flags)
{
	Handle *h;

	if (too_many())
		return NULL;
	h = fs_handle_insert(++keep_head()->handles, r, flags);
	h->seen = version_of(r);
	if (r->node->stream)
		r->node->stream->open(r, &h->reader);
	fs_keep_handle(h);
	fs_keep_text(h->fh, h->reader.first);
	return h;
}

Handle *fs_handle(uint64_t fh)
{
	if (fh && newest && newest->fh == fh)
		return newest;
	return handles ? g_hash_table_lookup(handles, &fh) : NULL;
}

static bool is_light(const NodeRef *r, int flags)
{
	return r->node->show && (flags & O_ACCMODE) == O_RDONLY;
}

static uint64_t light_fh(const NodeRef *r)
{
	return LIGHT | ++keep_head()->handles << VERSION_BITS | version_of(r);
}

static Handle *light_new(uint64_t fh, const NodeRef *r)
{
	if (newest && newest->fh)
		handles_add(g_steal_pointer(&newest));
	if (!newest)
		newest = g_new0(Handle, 1);
	handle_init(newest, fh, r, O_RDONLY);
	newest->seen = fh & VERSION_MASK;
	return newest;
}

static void light_end(void)
{
	handle_end(newest);
	newest->fh = 0;
	if (newest->text && newest->text->allocated_len > SMALL_TEXT)
		g_string_free(g_steal_pointer(&newest->text), TRUE);
	else if (newest->text)
		g_string_truncate(newest->text, 0);
}

/* Of a light one this is the first that there is to remember. Else an errno is in *err. */
static Handle *handle_used(fuse_ino_t ino, const struct fuse_file_info *fi, int *err)
{
	Handle *h = fs_handle(fi->fh);
	NodeRef r;

	if (h)
		return h;
	if (!(fi->fh & LIGHT))
		*err = EBADF;
	else if (!node_from_ino(ino, &r))
		*err = ESTALE;
	else if (too_many())
		*err = ENFILE;
	else
		h = light_new(fi->fh, &r);
	return h;
}

void fs_handle_close(Handle *h)
{
	if (h == newest)
		light_end();
	else
		g_hash_table_remove(handles, &h->fh);
}

void fs_close_handles(void)
{
	g_clear_pointer(&handles, g_hash_table_unref);
	g_clear_pointer(&newest, handle_free);
}

/* ---- open ---- */

static uint32_t open_flags(const Node *n, int flags)
{
	/* Direct I/O: the page cache would hand out old and torn values. */
	uint32_t ret = FOPEN_DIRECT_IO;

	if (n->stream)
		ret |= FOPEN_STREAM; /* no f_pos lock: one descriptor reads and writes at once */
	/* Only what was written has anything to say when it is closed. */
	if ((!node_is_whole(n) && !n->store) || (flags & O_ACCMODE) == O_RDONLY)
		ret |= FOPEN_NOFLUSH;
	return ret;
}

void fs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fuse_open_out out = { 0 };
	NodeRef r;
	Handle *h;
	int err;

	if (!fs_ref(req, ino, &r))
		return;
	if (r.node->scratch && (fi->flags & O_TRUNC))
		(void)scratch_truncate(scratch_by_number(r.vm, r.sub), 0);
	out.open_flags = open_flags(r.node, fi->flags);
	if (is_light(&r, fi->flags)) {
		out.fh = light_fh(&r);
		fuse_reply_buf(req, (const char *)&out, sizeof out);
		return;
	}
	h = handle_new(&r, fi->flags);
	if (!h) {
		fuse_reply_err(req, ENFILE);
		return;
	}
	if (node_is_whole(r.node) && (fi->flags & O_TRUNC)) {
		h->doc = g_byte_array_new();
		h->truncated = true;
		fs_keep_handle(h);
		fs_keep_document(h);
	}
	if (r.node->file && (err = fs_open_blob(h))) {
		g_hash_table_remove(handles, &h->fh);
		fuse_reply_err(req, err);
		return;
	}
	out.fh = h->fh;
	if (r.node->ask || r.node->fetch) {
		fs_open_asked(req, h, &out);
		return;
	}
	/* libfuse 3.14 has no way to set FOPEN_STREAM. */
	if (fuse_reply_buf(req, (const char *)&out, sizeof out))
		g_hash_table_remove(handles, &h->fh);
}

/* A request that waits for a directory's slot to have made a file. */
typedef struct Creation {
	Parked parked;
	NodeRef dir; /* holds a reference to the VM */
	char *name;
	int flags;
	bool over; /* answered, because its caller was hit by a signal */
} Creation;

static void reply_created(fuse_req_t req, const NodeRef *r, struct fuse_file_info *fi)
{
	struct fuse_entry_param e;
	Handle *h = handle_new(r, fi->flags);
	int err = h ? 0 : ENFILE;

	if (h && r->node->file)
		err = fs_open_blob(h);
	if (err) {
		fuse_reply_err(req, err);
		if (h)
			fs_handle_close(h);
		return;
	}
	if (node_is_whole(r->node)) {
		h->doc = g_byte_array_new();
		h->truncated = true;
		fs_keep_handle(h);
		fs_keep_document(h);
	}
	fs_fill_entry(r, &e);
	fi->fh = h->fh;
	fi->direct_io = 1;
	if (fuse_reply_create(req, &e, fi))
		fs_handle_close(h);
}

static void created(void *arg, int err)
{
	Creation *c = arg;
	struct fuse_file_info fi = { .flags = c->flags };
	NodeRef r;

	if (!c->over) {
		fuse_req_t req = fs_unpark(&c->parked);

		if (err)
			fuse_reply_err(req, err);
		else if (node_lookup(&c->dir, c->name, &r))
			reply_created(req, &r, &fi);
		else
			fuse_reply_err(req, ENOENT);
	}
	vm_unref(c->dir.vm);
	g_free(c->name);
	g_free(c);
}

static void creation_ended(Parked *parked, int err)
{
	Creation *c = (Creation *)parked;

	fuse_reply_err(fs_unpark(parked), err);
	c->over = true;
}

static void create_object(fuse_req_t req, const NodeRef *dir, const char *name, int flags)
{
	Creation *c = g_new0(Creation, 1);
	Caller who;
	int err;

	c->dir = *dir;
	vm_ref(dir->vm);
	c->name = g_strdup(name);
	c->flags = flags;
	fs_caller(req, &who);
	fs_park(&c->parked, req, creation_ended);
	err = dir->node->dir->create(dir, name, &who, created, c);
	if (err)
		created(c, err);
}

void fs_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
	       struct fuse_file_info *fi)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	NodeRef dir, r = { 0 };
	int err = 0;

	if (!fs_ref_dir(req, parent, &dir))
		return;
	if (dir.node->dir->create && !node_lookup(&dir, name, &r)) {
		create_object(req, &dir, name, fi->flags);
		return;
	}
	if (!dir.node->dir->scratch) {
		fuse_reply_err(req, EPERM);
		return;
	}
	(void)node_lookup(&dir, name, &r);
	if (r.node && !node_is_whole(r.node) && !r.node->scratch) {
		fuse_reply_err(req, EPERM);
		return;
	}
	if (!r.node) {
		g_autofree char *path = dir.node->dir->scratch(&dir, name);
		const Scratch *f =
			scratch_new(dir.vm, path, mode & 07777, ctx->uid, ctx->gid, &err);

		if (!f) {
			fuse_reply_err(req, err);
			return;
		}
		r = (NodeRef){ .node = dir.node->dir->child, .vm = dir.vm, .sub = f->number };
	}
	if (node_is_whole(r.node))
		scratch_here(node_ino(&r));
	reply_created(req, &r, fi);
}

/* ---- read ---- */

void fs_reply_slice(fuse_req_t req, const char *data, size_t len, off_t off, size_t size)
{
	if (off < 0 || (size_t)off >= len)
		fuse_reply_buf(req, NULL, 0);
	else
		fuse_reply_buf(req, data + off, MIN(size, len - (size_t)off));
}

static void read_shown(fuse_req_t req, Handle *h, size_t size, off_t off)
{
	if (off == 0 || !h->text || !h->text->len) {
		const uint32_t seen = h->seen;

		if (!h->text)
			h->text = g_string_new(NULL);
		g_string_truncate(h->text, 0);
		h->seen = version_of(&h->ref);
		h->ref.node->show(&h->ref, h->text);
		/* The rest of it is to be of one piece with this. */
		if (h->seen != seen || h->text->len > size)
			fs_keep_handle(h);
		if (h->kept)
			fs_keep_text(h->fh, h->text->len > size ? h->text : NULL);
	}
	fs_reply_slice(req, h->text->str, h->text->len, off, size);
}

static void read_document(fuse_req_t req, const Handle *h, size_t size, off_t off)
{
	gsize len;
	const char *text;

	if (h->doc) {
		fs_reply_slice(req, (const char *)h->doc->data, h->doc->len, off, size);
		return;
	}
	text = g_bytes_get_data(h->ref.vm->spec->text, &len);
	fs_reply_slice(req, text, len, off, size);
}

typedef struct ParkedRead {
	Parked parked;
	WaitEntry wait;
	Handle *h; /* outlives the request: no release before its reads are answered */
	size_t size;
} ParkedRead;

/* Answers, and returns true, unless there is nothing to read yet. */
static bool try_read(fuse_req_t req, Handle *h, size_t size)
{
	g_autofree char *buf = g_malloc(size);
	ssize_t n = h->ref.node->stream->read(&h->ref, &h->reader, buf, size);

	if (n == -EAGAIN)
		return false;
	fs_keep_handle(h);
	fs_keep_text(h->fh, h->reader.first);
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_buf(req, buf, (size_t)n);
	return true;
}

static void parked_read_free(ParkedRead *p)
{
	waitq_remove(&p->wait);
	g_free(p);
}

static void read_woken(WaitEntry *e)
{
	ParkedRead *p = WAIT_OWNER(e, ParkedRead, wait);
	const NodeRef *r = &p->h->ref;

	if (!r->node->stream->ready(r, &p->h->reader))
		return;
	if (try_read(fs_unpark(&p->parked), p->h, p->size))
		parked_read_free(p);
}

static void read_ended(Parked *parked, int err)
{
	ParkedRead *p = (ParkedRead *)parked;

	fuse_reply_err(fs_unpark(parked), err);
	parked_read_free(p);
}

static void read_stream(fuse_req_t req, Handle *h, size_t size, int flags)
{
	ParkedRead *p;

	if (try_read(req, h, size))
		return;
	if (flags & O_NONBLOCK) {
		fuse_reply_err(req, EAGAIN);
		return;
	}
	p = g_new0(ParkedRead, 1);
	p->h = h;
	p->size = size;
	p->wait.wake = read_woken;
	waitq_add(h->ref.node->stream->queue(&h->ref), &p->wait);
	fs_park(&p->parked, req, read_ended);
}

void fs_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	int err = 0;
	Handle *h = handle_used(ino, fi, &err);
	const Node *n = h ? h->ref.node : NULL;

	if (!h) {
		fuse_reply_err(req, err);
	} else if (n->stream) {
		read_stream(req, h, size, fi->flags);
	} else if (n->ask || n->fetch) {
		fs_read_asked(req, h, size, off);
	} else if (n->document || h->doc) {
		read_document(req, h, size, off);
	} else if (n->show) {
		read_shown(req, h, size, off);
	} else if (n->file) {
		fs_read_blob(req, h, size, off);
	} else if (n->scratch) {
		const Scratch *f = scratch_by_number(h->ref.vm, h->ref.sub);

		if (f)
			fs_reply_slice(req, (const char *)f->data->data, f->data->len, off, size);
		else
			fuse_reply_err(req, ESTALE);
	} else {
		/* Write-only: root is let in all the same, and finds nothing. */
		fuse_reply_buf(req, NULL, 0);
	}
}

/* ---- poll ---- */

static unsigned poll_events(const Handle *h)
{
	const NodeRef *r = &h->ref;
	unsigned events = r->node->mode & 0222 ? POLLOUT : 0;

	if (r->node->stream)
		return events | (r->node->stream->ready(r, &h->reader) ? POLLIN : 0);
	events |= POLLIN;
	/* As sysfs does it: until the new value is read. */
	if (version_of(r) != h->seen)
		events |= POLLPRI | POLLERR;
	return events;
}

static void poll_woken(WaitEntry *e)
{
	Handle *h = WAIT_OWNER(e, Handle, poll);

	if (!(poll_events(h) & (h->ref.node->stream ? POLLIN : POLLPRI)))
		return;
	fs_notify_poll(h->kh);
	poll_end(h);
	fs_keep_handle(h);
}

void fs_handle_poll(Handle *h, uint64_t kh)
{
	poll_end(h);
	h->kh = kh;
	h->poll.wake = poll_woken;
	if (h->ref.node->stream)
		waitq_add(h->ref.node->stream->queue(&h->ref), &h->poll);
	else
		waitq_add(h->ref.vm ? &h->ref.vm->waiters : &vm_all.waiters, &h->poll);
}

void fs_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph)
{
	const struct fuse_poll_in *in = request_body();
	int err = 0;
	Handle *h = handle_used(ino, fi, &err);

	/* libfuse's is a pointer; what the kernel sent can be kept. */
	if (ph)
		fuse_pollhandle_destroy(ph);
	if (!h) {
		fuse_reply_err(req, err);
		return;
	}
	if (ph) {
		/* The kernel has one handle an open file: the last stands for all who wait on it.
		 */
		fs_handle_poll(h, in->kh);
		fs_keep_handle(h);
	}
	fuse_reply_poll(req, poll_events(h));
}
