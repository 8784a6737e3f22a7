/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session: reads /dev/fuse from the loop, and keeps the requests that wait. Everything is
 * answered on the loop thread, which must never touch the mount itself.
 */
#include "vmfs/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/fs_internal.h"
#include "vmfs/keep.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/near.h"
#include "vmfs/notify.h"
#include "vmfs/op.h"
#include "vmfs/request.h"
#include "vmfs/store.h"

#define REQUESTS_A_TURN 64     /* then other descriptors have their turn */
#define LONG_S		3600.0 /* as good as for ever, to the kernel's caches of names and attributes */
#define MAX_GROUPS	1024

static struct {
	struct fuse_session *session;
	struct fuse_buf buf; /* in the memory file */
	Watch *watch;
	uv_prepare_t commit;	    /* before the loop sleeps */
	GQueue parked, interrupted; /* of Parked */
	FsOptions options;
} fs;

void fs_caller(fuse_req_t req, Caller *who)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	*who = (Caller){ .uid = ctx->uid, .gid = ctx->gid, .pid = ctx->pid, .umask = ctx->umask };
}

void fs_caller_groups(fuse_req_t req, Caller *who)
{
	int n;

	fs_caller(req, who);
	if (who->uid == geteuid())
		return;
	who->groups = g_new(gid_t, MAX_GROUPS);
	n = fuse_req_getgroups(req, MAX_GROUPS, who->groups);
	who->n_groups = CLAMP(n, 0, MAX_GROUPS);
}

/* A name that is always there can be believed in until somebody removes it, which the kernel sees.
 */
static double entry_timeout(const NodeRef *r)
{
	return r->node->present || r->node->scratch || node_is_whole(r->node) ? 0 : LONG_S;
}

/* Owner and mode change only through the mount; of other changes fs_changed() tells the kernel. */
double fs_attr_timeout(const NodeRef *r)
{
	return r->node->dir || r->node->target || r->node->exact ? LONG_S : 0;
}

static void forget_attr(const NodeRef *r)
{
	/* A negative offset: attributes only, without a lock that a request could hold. */
	(void)fuse_lowlevel_notify_inval_inode(fs.session, node_ino(r), -1, 0);
}

void fs_changed(Vm *vm, unsigned changes)
{
	NodeRef r = { .vm = vm };

	if (!fs.session || vm->removed)
		return;
	for (r.node = vm_dir.rows; r.node->name; r.node++)
		if (changes & EV_OWNER || (r.node->exact && r.node->events & changes))
			forget_attr(&r);
	if (!(changes & EV_OWNER))
		return;
	for (r.node = io_dir.rows; r.node->name; r.node++)
		forget_attr(&r);
}

void fs_names_changed(const NodeRef *dir)
{
	if (fs.session)
		forget_attr(dir); /* and with them the list of names that it keeps */
}

bool fs_is_serving(void)
{
	return fs.watch;
}

void fs_fill_entry(const NodeRef *r, struct fuse_entry_param *e)
{
	*e = (struct fuse_entry_param){ .ino = node_ino(r),
					.entry_timeout = entry_timeout(r),
					.attr_timeout = fs_attr_timeout(r) };
	node_stat(r, &e->attr);
	notify_looked_up(e->ino);
}

void fs_reply_entry(fuse_req_t req, const NodeRef *r)
{
	struct fuse_entry_param e;

	fs_fill_entry(r, &e);
	fuse_reply_entry(req, &e);
}

bool fs_ref(fuse_req_t req, fuse_ino_t ino, NodeRef *r)
{
	if (node_from_ino(ino, r))
		return true;
	fuse_reply_err(req, ESTALE);
	return false;
}

bool fs_ref_dir(fuse_req_t req, fuse_ino_t ino, NodeRef *r)
{
	if (!fs_ref(req, ino, r))
		return false;
	if (r->node->dir)
		return true;
	fuse_reply_err(req, ENOTDIR);
	return false;
}

/*
 * libfuse calls this with the request locked, perhaps from within fuse_req_interrupt_func(): the
 * answer, which frees the request, has to wait until it has returned.
 */
static void on_interrupt(fuse_req_t req, void *data)
{
	Parked *p = data;

	(void)req;
	if (p->is_interrupted)
		return;
	p->is_interrupted = true;
	p->interrupted.data = p;
	g_queue_push_tail_link(&fs.interrupted, &p->interrupted);
}

static void answer_interrupted(void)
{
	while (fs.interrupted.head) {
		Parked *p = fs.interrupted.head->data;

		p->end(p, EINTR);
	}
}

static void answer_interrupted_later(void *arg)
{
	(void)arg;
	answer_interrupted();
}

void fs_park(Parked *p, fuse_req_t req, void (*end)(Parked *p, int err))
{
	p->req = req;
	p->end = end;
	p->is_interrupted = false;
	p->all.data = p;
	g_queue_push_tail_link(&fs.parked, &p->all);
	fuse_req_interrupt_func(req, on_interrupt, p);
	/* Interrupted before we came here: outside of a turn of the session nobody else looks. */
	if (p->is_interrupted)
		loop_defer(answer_interrupted_later, NULL);
}

fuse_req_t fs_unpark(Parked *p)
{
	g_queue_unlink(&fs.parked, &p->all);
	if (p->is_interrupted)
		g_queue_unlink(&fs.interrupted, &p->interrupted);
	p->is_interrupted = false;
	fuse_req_interrupt_func(p->req, NULL, NULL);
	return p->req;
}

static void fs_init(void *arg, struct fuse_conn_info *conn)
{
	(void)arg;
	/* Requests and answers are small: copying them is cheaper than a pipe. */
	conn->want &=
		~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void fs_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	notify_forgotten(ino, nlookup);
	fuse_reply_none(req);
}

static void fs_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		notify_forgotten(forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

static void refuse_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
			 dev_t dev)
{
	(void)parent;
	(void)name;
	(void)mode;
	(void)dev;
	fuse_reply_err(req, EPERM);
}

static void refuse_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	(void)ino;
	(void)parent;
	(void)name;
	fuse_reply_err(req, EPERM);
}

static void fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino;
	(void)datasync;
	(void)fi;
	/* Whatever changed a directory was on the disk before it was answered. */
	fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops ops = {
	.init = fs_init,
	.lookup = fs_lookup,
	.forget = fs_forget,
	.forget_multi = fs_forget_multi,
	.getattr = fs_getattr,
	.setattr = fs_setattr,
	.readlink = fs_readlink,
	.mknod = refuse_mknod,
	.mkdir = fs_mkdir,
	.unlink = fs_unlink,
	.rmdir = fs_rmdir,
	.symlink = fs_symlink,
	.rename = fs_rename,
	.link = refuse_link,
	.open = fs_open,
	.read = fs_read,
	.write = fs_write,
	.flush = fs_flush,
	.release = fs_release,
	.fsync = fs_fsync,
	.opendir = fs_opendir,
	.releasedir = fs_releasedir,
	.readdir = fs_readdir,
	.readdirplus = fs_readdirplus,
	.fsyncdir = fsyncdir,
	.create = fs_create,
	.poll = fs_poll,
};

static struct fuse_session *new_session(const char *options, GError **err)
{
	char *argv[] = { (char *)"vmfs", (char *)"-o", (char *)options, NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	struct fuse_session *session = fuse_session_new(&args, &ops, sizeof ops, NULL);

	fuse_opt_free_args(&args);
	if (!session)
		(void)err_set(err, EINVAL, "fuse refuses the mount options '%s'", options);
	return session;
}

int fs_mount(const char *mountpoint, const char *options, GError **err)
{
	struct fuse_session *session = new_session(options, err);

	if (!session)
		return -1;
	if (!fuse_session_mount(session, mountpoint)) {
		fs.session = session; /* which owns the descriptor */
		return fuse_session_fd(session);
	}
	fuse_session_destroy(session);
	(void)err_set(err, EIO, "cannot mount %s; the lines above say why", mountpoint);
	return -1;
}

static void commit(uv_prepare_t *handle)
{
	(void)handle;
	keep_commit();
}

bool fs_open_session(const FsOptions *options, GError **err)
{
	int flags = fcntl(options->fd, F_GETFL);

	fs.options = *options;
	fs.session = new_session(options->fuse_options, err);
	if (!fs.session)
		return false;
	(void)fcntl(options->fd, F_SETFL, flags | O_NONBLOCK);
	if (fuse_session_custom_io(fs.session, &request_io, options->fd))
		return err_set(err, ENOMEM, "cannot make a fuse session");
	fs.buf.mem = keep_slot();
	request_init(fs.session, options->fd);
	fs_restore_handles();
	(void)uv_prepare_init(loop_get(), &fs.commit);
	(void)uv_prepare_start(&fs.commit, commit);
	return true;
}

void fs_notify_poll(uint64_t kh)
{
	struct fuse_notify_poll_wakeup_out poll = { .kh = kh };
	struct fuse_out_header out = { .len = sizeof out + sizeof poll, .error = FUSE_NOTIFY_POLL };
	struct iovec iov[] = { { &out, sizeof out }, { &poll, sizeof poll } };

	/* ENOENT: it is not polled any more. */
	(void)request_io.writev(fuse_session_fd(fs.session), iov, G_N_ELEMENTS(iov), NULL);
}

/* As fuse_session_receive_buf(), but not asleep at once when there is nothing. */
static int receive(bool busy)
{
	int n = fuse_session_receive_buf(fs.session, &fs.buf);
	int64_t patience, end;

	/* The store's thread may need this CPU. */
	if (n != -EAGAIN || !busy || store_busy() || !(patience = near_patience()))
		return n;
	end = g_get_monotonic_time() + patience;
	do {
		n = fuse_session_receive_buf(fs.session, &fs.buf);
	} while (n == -EAGAIN && g_get_monotonic_time() < end);
	near_waited(n > 0);
	return n;
}

static void on_fuse(void *arg, int status, int events)
{
	(void)arg;
	(void)status;
	(void)events;
	for (unsigned i = 0; i < REQUESTS_A_TURN; i++) {
		int n = receive(i > 0);

		if (n == -EINTR)
			continue;
		if (n == -EAGAIN)
			return;
		/* 0: unmounted; others: the connection was aborted. */
		if (n <= 0 || fuse_session_exited(fs.session)) {
			watch_stop(&fs.watch, false);
			fs.options.ended(fs.options.arg);
			return;
		}
		request_handle();
		answer_interrupted();
	}
}

void fs_serve(void)
{
	request_resume();
	answer_interrupted();
	op_restore_done();
	fs.watch = watch_start(fuse_session_fd(fs.session), UV_READABLE, on_fuse, NULL);
}

void fs_hand_over(void)
{
	keep_detach();
	request_mute();
}

void fs_close_session(void)
{
	if (fs.watch)
		watch_stop(&fs.watch, false);
	while (fs.parked.head) {
		Parked *p = fs.parked.head->data;

		p->end(p, ENOTCONN);
	}
	fs_close_handles();
	fuse_session_destroy(fs.session);
	fs.session = NULL;
}
