/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing to open files, and closing them: commands, typing at a console, documents, scratch files,
 * orders of the host's. Closes of commands may wait for long, writes for a second.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "vmfs/document.h"
#include "vmfs/err.h"
#include "vmfs/fs_internal.h"
#include "vmfs/keep.h"
#include "vmfs/loop.h"
#include "vmfs/notify.h"
#include "vmfs/request.h"
#include "vmfs/scratch.h"
#include "vmfs/store.h"

/* A write holds the inode's lock, so it is answered soon; the rest is waited for in close(2). */
#define WRITE_WAIT_MS 1000
/* A growing document is judged at each write while that cannot add up to much. */
#define PREFIX_ALWAYS (8u << 10)

/* ---- commands: answered by write when soon over, else waited for in close ---- */

typedef struct Command {
	Parked parked; /* the write, or the flush */
	Handle *h;
	Op *op; /* a reference */
	OpWaiter *waiter;
	Timer *timer;
	size_t size; /* of the write; 0: a flush */
	int err;     /* to answer with once the store has caught up */
} Command;

static void command_free(Command *c)
{
	timer_stop(&c->timer);
	if (c->waiter)
		op_unwait(c->op, c->waiter);
	op_unref(c->op);
	g_free(c);
}

static void command_answer(void *arg, int store_err)
{
	Command *c = arg;

	(void)store_err;
	if (c->err || !c->size)
		fuse_reply_err(c->parked.req, c->err);
	else
		fuse_reply_write(c->parked.req, c->size);
	if (c->size)
		notify_release(c->h->ref.vm);
	command_free(c);
}

static void command_end(Command *c, int err)
{
	timer_stop(&c->timer);
	(void)fs_unpark(&c->parked);
	c->err = err;
	/* What a successor of this daemon must know of it is stored before the user hears of it. */
	store_barrier(command_answer, c);
}

/* The op is over, or goes on for so long that close(2) is to wait for it. */
static void command_leave_to_flush(Command *c)
{
	if (!(c->h->flags & O_NONBLOCK)) {
		op_unref(c->h->op);
		c->h->op = op_ref(c->op);
		fs_keep_handle(c->h);
	}
	command_end(c, 0);
}

static void command_woken(Op *op, void *arg)
{
	Command *c = arg;

	c->waiter = NULL;
	if (op_done(op))
		command_end(c, op_error(op) ? err_code(op_error(op)) : 0);
	else
		command_leave_to_flush(c);
}

static void command_long(void *arg)
{
	Command *c = arg;

	c->timer = NULL;
	op_unwait(c->op, c->waiter);
	c->waiter = NULL;
	command_leave_to_flush(c);
}

static void command_ended(Parked *parked, int err)
{
	Command *c = (Command *)parked;

	fuse_reply_err(fs_unpark(parked), err);
	if (c->size)
		notify_release(c->h->ref.vm);
	command_free(c);
}

/* The op for which this request waited when the former daemon died: a reference, or NULL. */
static Op *op_of_request(void)
{
	uint64_t number;
	Op *op = request_begun(&number) ? op_restored(number) : op_restored_by(request_unique());

	return op ? op_ref(op) : NULL;
}

static void write_command(fuse_req_t req, Handle *h, const char *buf, size_t size)
{
	Command *c = g_new0(Command, 1);
	g_autoptr(GError) e = NULL;

	c->h = h;
	c->size = size;
	c->op = op_of_request();
	notify_hold(h->ref.vm);
	if (h->ref.vm && h->ref.vm->removed)
		(void)err_set(&e, ENODEV, "the VM has been removed");
	else if (!c->op)
		(void)h->ref.node->store(&h->ref, buf, size, &c->op, &e);
	if (c->op && !op_done(c->op) && op_number(c->op))
		request_begin(op_number(c->op));
	fs_park(&c->parked, req, command_ended);
	if (e)
		command_end(c, err_code(e));
	else if (!c->op)
		command_end(c, 0);
	else if (op_done(c->op))
		command_end(c, op_error(c->op) ? err_code(op_error(c->op)) : 0);
	else if (h->flags & O_NONBLOCK || op_accepted(c->op))
		command_leave_to_flush(c);
	else {
		c->waiter = op_wait(c->op, true, command_woken, c);
		c->timer = timer_start(WRITE_WAIT_MS, command_long, c);
	}
}

static void flush_command(fuse_req_t req, Handle *h)
{
	Op *op = h->op ? g_steal_pointer(&h->op) : op_of_request();
	Command *c;

	if (!op) {
		fuse_reply_err(req, 0);
		return;
	}
	if (op_number(op))
		request_begin(op_number(op));
	c = g_new0(Command, 1);
	c->h = h;
	c->op = op;
	fs_keep_handle(h);
	fs_park(&c->parked, req, command_ended);
	if (op_done(c->op))
		command_end(c, op_error(c->op) ? err_code(op_error(c->op)) : 0);
	else
		c->waiter = op_wait(c->op, false, command_woken, c);
}

/* ---- typing at a stream ---- */

typedef struct ParkedWrite {
	Parked parked;
	WaitEntry wait;
	Timer *timer;
	Handle *h;
	char *data;
	size_t size;
} ParkedWrite;

static void parked_write_free(ParkedWrite *p)
{
	waitq_remove(&p->wait);
	timer_stop(&p->timer);
	g_free(p->data);
	g_free(p);
}

static void reply_written(fuse_req_t req, ssize_t n)
{
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_write(req, (size_t)n);
}

static void write_woken(WaitEntry *e)
{
	ParkedWrite *p = WAIT_OWNER(e, ParkedWrite, wait);
	const NodeRef *r = &p->h->ref;
	ssize_t n = r->node->stream->write(r, &p->h->reader, p->data, p->size);

	if (n == -EAGAIN)
		return;
	reply_written(fs_unpark(&p->parked), n);
	parked_write_free(p);
}

static void write_late(void *arg)
{
	ParkedWrite *p = arg;

	p->timer = NULL;
	fuse_reply_err(fs_unpark(&p->parked), EAGAIN);
	parked_write_free(p);
}

static void write_ended(Parked *parked, int err)
{
	fuse_reply_err(fs_unpark(parked), err);
	parked_write_free((ParkedWrite *)parked);
}

static void write_stream(fuse_req_t req, Handle *h, const char *buf, size_t size, int flags)
{
	const StreamClass *s = h->ref.node->stream;
	ssize_t n = s->write ? s->write(&h->ref, &h->reader, buf, size) : -EBADF;
	ParkedWrite *p;

	if (n != -EAGAIN || flags & O_NONBLOCK) {
		reply_written(req, n);
		return;
	}
	p = g_new0(ParkedWrite, 1);
	p->h = h;
	p->data = g_memdup2(buf, size);
	p->size = size;
	p->wait.wake = write_woken;
	waitq_add(s->write_queue(&h->ref), &p->wait);
	if (!s->patient)
		p->timer = timer_start(WRITE_WAIT_MS, write_late, p);
	fs_park(&p->parked, req, write_ended);
}

/* ---- documents: gathered by writes, taken as a whole by flush ---- */

typedef struct DocumentRequest {
	fuse_req_t req;
	uint64_t fh;
	size_t size; /* of a write; 0: a flush or release */
} DocumentRequest;

static void document_answer(void *arg, const GError *e)
{
	DocumentRequest *d = arg;
	Handle *h = fs_handle(d->fh);

	if (h && e)
		h->refused = true;
	if (h)
		fs_keep_handle(h);
	if (e)
		fuse_reply_err(d->req, err_code(e));
	else if (d->size)
		fuse_reply_write(d->req, d->size);
	else
		fuse_reply_err(d->req, 0);
	g_free(d);
}

static GBytes *document_text(const Handle *h)
{
	return g_bytes_new(h->doc->data, h->doc->len);
}

GBytes *fs_document_text(const NodeRef *r)
{
	GString *shown;

	if (r->node->document)
		return g_bytes_ref(r->vm->spec->text);
	shown = g_string_new(NULL);
	r->node->show(r, shown);
	return g_string_free_to_bytes(shown);
}

/* Begin to write through this handle: with what holds now, unless it was truncated. */
static GByteArray *document_of(Handle *h)
{
	if (!h->doc) {
		g_autoptr(GBytes) now = fs_document_text(&h->ref);
		gsize len;
		const char *text = g_bytes_get_data(now, &len);

		h->doc = g_byte_array_new();
		if (len)
			g_byte_array_append(h->doc, (const guint8 *)text, (guint)len);
		fs_keep_document(h);
	}
	return h->doc;
}

int fs_truncate_handle(uint64_t fh, uint64_t size)
{
	Handle *h = fs_handle(fh);
	GByteArray *doc;
	size_t old;

	if (!h || !node_is_whole(h->ref.node))
		return EBADF;
	if (size > SPEC_MAX_TEXT)
		return EFBIG;
	doc = document_of(h);
	old = doc->len;
	g_byte_array_set_size(doc, (guint)size);
	if (size > old)
		memset(doc->data + old, 0, size - old);
	h->truncated = true;
	fs_keep_document(h);
	fs_keep_handle(h);
	return 0;
}

static DocumentRequest *document_request(fuse_req_t req, const Handle *h, size_t size)
{
	DocumentRequest *d = g_new0(DocumentRequest, 1);

	d->req = req;
	d->fh = h->fh;
	d->size = size;
	return d;
}

static void document_too_large(fuse_req_t req, Handle *h)
{
	g_autoptr(GBytes) text = document_text(h);
	g_autoptr(GError) e = err_new(EFBIG, "a document has at most %u bytes", SPEC_MAX_TEXT);

	if (h->ref.vm) {
		vm_set_rejected(h->ref.vm, text);
		vm_set_error(h->ref.vm, "spec.yaml", e);
	}
	h->refused = true;
	fs_keep_handle(h);
	fuse_reply_err(req, EFBIG);
}

static void write_document(fuse_req_t req, Handle *h, const char *buf, size_t size, off_t off)
{
	GByteArray *doc = document_of(h);
	size_t at = h->flags & O_APPEND ? doc->len : (size_t)off, end = at + size;
	g_autoptr(GBytes) text = NULL;
	Caller who;

	if (h->refused) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if (off < 0 || at > SPEC_MAX_TEXT || size > SPEC_MAX_TEXT - at) {
		document_too_large(req, h);
		return;
	}
	if (at == doc->len) {
		g_byte_array_append(doc, (const guint8 *)buf, (guint)size);
		keep_append(KEEP_DOCUMENT, h->fh, buf, size);
	} else {
		size_t old = doc->len;

		if (end > old)
			g_byte_array_set_size(doc, (guint)end);
		if (at > old)
			memset(doc->data + old, 0, at - old);
		memcpy(doc->data + at, buf, size);
		fs_keep_document(h);
	}
	h->dirty = true;
	fs_keep_handle(h);
	/* Shells' own `echo` does not see an error of close(2): what is hopeless is told here. */
	if (at + size != doc->len || (doc->len > PREFIX_ALWAYS && size < doc->len / 8)) {
		fuse_reply_write(req, size);
		return;
	}
	text = document_text(h);
	if (h->ref.node->judge) {
		g_autoptr(GError) e = NULL;
		int err = h->ref.node->judge(&h->ref, text);

		if (err)
			e = err_new(err, "refused");
		document_answer(document_request(req, h, size), e);
		return;
	}
	fs_caller_groups(req, &who);
	document_check_prefix(h->ref.vm, text, &who, document_answer,
			      document_request(req, h, size));
	g_free(who.groups);
}

/* ---- orders of the host's ---- */

typedef struct Order {
	Parked parked; /* of a write of a command */
	size_t size;
	bool over;	 /* answered, because its caller was hit by a signal */
	DocumentDone fn; /* of a document in place of that */
	int bad;
	void *arg;
} Order;

static void ordered(void *arg, int err)
{
	Order *o = arg;
	g_autoptr(GError) e =
		err ? err_new(o->fn && err == EINVAL ? o->bad : err, "refused") : NULL;

	if (o->fn)
		o->fn(o->arg, e);
	else if (!o->over)
		reply_written(fs_unpark(&o->parked), err ? -err : (ssize_t)o->size);
	g_free(o);
}

static void order_ended(Parked *parked, int err)
{
	Order *o = (Order *)parked;

	fuse_reply_err(fs_unpark(parked), err);
	o->over = true;
}

static void order(const NodeRef *r, GBytes *text, Order *o)
{
	int err = r->node->order(r, text, ordered, o);

	if (err)
		ordered(o, err);
}

static void write_order(fuse_req_t req, const Handle *h, const char *buf, size_t size)
{
	g_autoptr(GBytes) text = g_bytes_new(buf, size);
	Order *o = g_new0(Order, 1);

	o->size = size;
	fs_park(&o->parked, req, order_ended);
	order(&h->ref, text, o);
}

void fs_document_commit(fuse_req_t req, const NodeRef *r, GBytes *text, int bad, DocumentDone fn,
			void *arg)
{
	Caller who;

	if (r->node->judge) {
		Order *o = g_new0(Order, 1);

		o->fn = fn;
		o->bad = bad;
		o->arg = arg;
		order(r, text, o);
		return;
	}
	fs_caller_groups(req, &who);
	document_commit(r->vm, text, &who, bad, fn, arg);
	g_free(who.groups);
}

static void commit(fuse_req_t req, Handle *h, DocumentDone fn, void *arg)
{
	g_autoptr(GBytes) text = document_text(h);

	h->dirty = false;
	h->truncated = false;
	fs_document_commit(req, &h->ref, text, EINVAL, fn, arg);
}

static void flush_document(fuse_req_t req, Handle *h)
{
	if (h->refused)
		fuse_reply_err(req, EINVAL);
	else if (!h->dirty)
		/* Shells close a duplicate before their first write. */
		fuse_reply_err(req, 0);
	else
		commit(req, h, document_answer, document_request(req, h, 0));
}

/* Only now is it forgotten: a successor would have to do it again. */
static void release_answer(void *arg, const GError *e)
{
	DocumentRequest *d = arg;
	Handle *h = fs_handle(d->fh);

	(void)e;
	if (h)
		fs_handle_close(h);
	fuse_reply_err(d->req, 0);
	g_free(d);
}

/* ---- write, flush, release ---- */

static void write_scratch(fuse_req_t req, const Handle *h, const char *buf, size_t size, off_t off)
{
	Scratch *f = scratch_by_number(h->ref.vm, h->ref.sub);
	uint64_t at = f && h->flags & O_APPEND ? f->data->len : (uint64_t)off;
	int err = f ? scratch_write(f, buf, size, at) : ESTALE;

	if (err)
		fuse_reply_err(req, err);
	else
		fuse_reply_write(req, size);
}

void fs_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
	      struct fuse_file_info *fi)
{
	Handle *h = fs_handle(fi->fh);
	const Node *n = h ? h->ref.node : NULL;

	(void)ino;
	if (!h)
		fuse_reply_err(req, EBADF);
	else if (n->stream)
		write_stream(req, h, buf, size, fi->flags);
	else if (node_is_whole(n))
		write_document(req, h, buf, size, off);
	else if (n->scratch)
		write_scratch(req, h, buf, size, off);
	else if (n->edit)
		fs_write_blob(req, h, buf, size, off);
	else if (n->store)
		write_command(req, h, buf, size);
	else if (n->order)
		write_order(req, h, buf, size);
	else
		fuse_reply_err(req, EACCES);
}

void fs_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	Handle *h = fs_handle(fi->fh);

	(void)ino;
	if (!h)
		fuse_reply_err(req, 0);
	else if (node_is_whole(h->ref.node))
		flush_document(req, h);
	else
		flush_command(req, h);
}

void fs_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	const Handle *h = fs_handle(fi->fh);

	(void)datasync;
	if (h && node_is_whole(h->ref.node))
		fs_flush(req, ino, fi);
	else
		fuse_reply_err(req, 0);
}

void fs_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	Handle *h = fs_handle(fi->fh);

	(void)ino;
	/* Emptied and never written to (`: > spec.yaml`): only now it is known that nothing
	 * follows. */
	if (h && node_is_whole(h->ref.node) && (h->dirty || h->truncated) && !h->refused &&
	    !(h->ref.vm && h->ref.vm->removed)) {
		commit(req, h, release_answer, document_request(req, h, 0));
		return;
	}
	if (h)
		fs_close_blob(h);
	if (h)
		fs_handle_close(h);
	fuse_reply_err(req, 0);
}
