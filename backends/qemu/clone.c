/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first start of a VM that begins as a snapshot of another one. Its memory is mapped, private,
 * from a file that all clones of the snapshot share: the template, made by the first of them. For
 * that a QEMU loads the snapshot's memory into the file, writes the state of the devices to another
 * one, and ends; its vCPUs never run. Loop thread only.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/qemu/wake.h"
#include "vmfs/err.h"

#define RAM    "ram"
#define DEVICE "device"

struct QemuClone {
	char *snapshot, *template,
		*fresh;		  /* directories; fresh: the template until it is complete */
	char *from;		  /* as in the spec */
	bool has_memory, foreign; /* foreign: the snapshot is another user's */
	bool claimed;		  /* it makes the template */
	bool making;		  /* its QEMU is the one that does */
	bool made;
};

/* Starts that wait for a template which another one makes: path to GQueue of Start. */
static GHashTable *making;

static QemuClone *clone_of(void *ctx)
{
	return ((Start *)ctx)->wake->clone;
}

static char *fresh_file(const QemuClone *c, const char *name)
{
	return g_build_filename(c->fresh, name, NULL);
}

/* ---- the snapshot, with the owner's rights ---- */

static void source_run(Op *op, void *ctx)
{
	Start *s = ctx;
	const Snapshot *from;
	GError *err = NULL;

	if (vm_clone_source(qemu_vm(s->q), &s->q->user, &from, &err))
		op_next(op);
	else
		op_fail(op, err);
}

/* ---- claim: one makes the template, and the others wait ---- */

static void claim(Start *s)
{
	QemuClone *c = s->wake->clone;
	GQueue *waiting;

	if (!access(c->template, F_OK)) {
		op_next(s->op);
		return;
	}
	if (!making)
		making = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	waiting = g_hash_table_lookup(making, c->template);
	if (waiting) {
		g_queue_push_tail(waiting, s);
		return;
	}
	g_hash_table_insert(making, g_strdup(c->template), g_queue_new());
	c->claimed = true;
	op_next(s->op);
}

/* It is made, or will not be: then the next one tries. */
static void release(QemuClone *c)
{
	GQueue *waiting;

	if (!c->claimed)
		return;
	c->claimed = false;
	waiting = g_hash_table_lookup(making, c->template);
	g_hash_table_remove(making, c->template);
	while (waiting->head)
		claim(g_queue_pop_head(waiting));
	g_queue_free(waiting);
}

static void claim_run(Op *op, void *ctx)
{
	/* All of a guest's memory may have to be read and written. */
	if (access(clone_of(ctx)->template, F_OK))
		op_has_time_of(op, OP_WAKE);
	claim(ctx);
}

static void stop_waiting(Start *s)
{
	GQueue *waiting = making ? g_hash_table_lookup(making, s->wake->clone->template) : NULL;

	if (waiting)
		g_queue_remove(waiting, s);
}

static void claim_cancel(Op *op, void *ctx)
{
	stop_waiting(ctx);
}

static void claim_undo(Op *op, void *ctx)
{
	release(clone_of(ctx));
	op_next(op);
}

/* ---- the files: the snapshot's checksums, an empty template, disks ---- */

static void job_done(void *arg, const Manifest *m, const GError *err)
{
	Start *s = arg;

	s->wake->verify = NULL;
	if (err)
		op_fail(s->op, err_new(err_code(err), "from: %s cannot be used: %s",
				       s->wake->clone->from, err->message));
	else
		op_next(s->op);
}

static void job_cancel(Op *op, void *ctx)
{
	savedir_cancel(&((Start *)ctx)->wake->verify);
}

/* The template is another's work, or done: the step has nothing to do. */
static bool is_over(Op *op, const Start *s)
{
	const bool over = !s->wake->clone->claimed;

	if (over)
		op_next(op);
	return over;
}

static void verify_run(Op *op, void *ctx)
{
	Start *s = ctx;

	if (!is_over(op, s))
		s->wake->verify = savedir_verify(s->wake->clone->snapshot, job_done, s);
}

static void tidy_run(Op *op, void *ctx)
{
	Start *s = ctx;

	if (!is_over(op, s))
		s->wake->verify = savedir_drop(s->wake->clone->fresh, job_done, s);
}

static bool make_file(Vm *vm, int dir, const char *name, GError **err)
{
	const int fd = savedir_create(dir, name, vm_uid(vm), vm_gid(vm), err);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static bool make_files(Vm *vm, const QemuClone *c, GError **err)
{
	const int dir = savedir_make(c->fresh, vm_uid(vm), vm_gid(vm), err);
	bool ok = dir >= 0;

	if (ok && c->has_memory)
		ok = make_file(vm, dir, RAM, err) && make_file(vm, dir, DEVICE, err);
	if (dir >= 0)
		close(dir);
	return ok;
}

static void files_run(Op *op, void *ctx)
{
	Start *s = ctx;
	GError *err = NULL;

	if (!s->wake->clone->claimed || make_files(qemu_vm(s->q), s->wake->clone, &err))
		op_next(op);
	else
		op_fail(op, err);
}

static void files_undone(void *arg, const Manifest *m, const GError *err)
{
	op_next(arg);
}

static void files_undo(Op *op, void *ctx)
{
	const QemuClone *c = clone_of(ctx);

	if (c->claimed)
		(void)savedir_drop(c->fresh, files_undone, op);
	else
		op_next(op);
}

/* Another user's disks can only be read by way of a copy. */
static void copy_run(Op *op, void *ctx)
{
	Start *s = ctx;
	const QemuClone *c = s->wake->clone;
	const Spec *spec = s->q->base.spec;
	Vm *vm = qemu_vm(s->q);
	g_autoptr(GPtrArray) pairs = g_ptr_array_new_with_free_func(g_free);

	for (guint i = 0; c->claimed && c->foreign && i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];
		g_autofree char *name = qemu_snapshot_disk(d);
		char *path = g_build_filename(c->snapshot, name, NULL);

		if (d->file || access(path, F_OK)) {
			g_free(path);
			continue;
		}
		g_ptr_array_add(pairs, path);
		g_ptr_array_add(pairs, fresh_file(c, name));
	}
	if (pairs->len)
		s->wake->verify = savedir_copy(pairs, vm_uid(vm), vm_gid(vm), job_done, s);
	else
		op_next(op);
}

char *qemu_clone_base(const QemuVm *q, const SpecDisk *d)
{
	const Start *s = q->start;
	const QemuClone *c = s && s->wake ? s->wake->clone : NULL;
	g_autofree char *name = qemu_snapshot_disk(d);
	g_autofree char *path =
		c ? g_build_filename(c->foreign ? c->template : c->snapshot, name, NULL) : NULL;

	return path && !access(path, F_OK) ? g_steal_pointer(&path) : NULL;
}

/* ---- the template's QEMU ---- */

static void make_run(Op *op, void *ctx)
{
	Start *s = ctx;
	QemuWake *w = s->wake;
	GError *err = NULL;

	if (is_over(op, s))
		return;
	if (!wake_open_memory(w, &err)) {
		op_fail(op, err);
		return;
	}
	w->clone->making = true;
	w->ram = fresh_file(w->clone, RAM);
	start_spawn_run(op, s);
}

static void fill_run(Op *op, void *ctx)
{
	Start *s = ctx;
	QemuWake *w = s->wake;

	if (is_over(op, s))
		return;
	s->q->held = true;
	start_connect_monitor(s);
	(void)qemu_stream_prepare(s->q, false, NULL, NULL);
	w->stream = qemu_stream_in(s->q, op, w->memory, wake_loaded, s);
	w->memory = -1;
	w->waiting = true;
}

static void saved(void *arg, const GError *err)
{
	Start *s = arg;

	s->wake->stream = NULL;
	op_answered(s->op, err);
}

static void save_run(Op *op, void *ctx)
{
	Start *s = ctx;
	const QemuClone *c = s->wake->clone;
	GError *err = NULL;
	int dir, fd;

	if (is_over(op, s))
		return;
	dir = savedir_open(c->fresh, &err);
	fd = dir < 0 ? -1 : savedir_open_file(dir, DEVICE, true, &err);
	if (dir >= 0)
		close(dir);
	if (fd < 0) {
		op_fail(op, err);
		return;
	}
	(void)qemu_stream_prepare(s->q, true, NULL, NULL);
	s->wake->stream = qemu_stream_out(s->q, op, fd, saved, s);
}

static void ended(QemuVm *q)
{
	const Start *s = q->start;
	Op *op = s->op;

	s->wake->clone->making = false;
	g_clear_pointer(&s->wake->ram, g_free);
	qemu_forget(q);
	vm_remove_run_dir(qemu_vm(q));
	backend_pid(&q->base, 0);
	op_next(op);
}

static void end_run(Op *op, void *ctx)
{
	Start *s = ctx;

	if (is_over(op, s))
		return;
	s->q->died = ended;
	s->q->lost = NULL;
	if (s->q->exited)
		ended(s->q);
	else
		qemu_quit(s->q, VM_STOPPED, "starting");
}

static void end_cancel(Op *op, void *ctx)
{
	QemuVm *q = ((Start *)ctx)->q;

	if (q->died == ended)
		q->died = NULL;
}

static void published(void *arg, const Manifest *m, const GError *err)
{
	Start *s = arg;
	QemuClone *c = s->wake->clone;

	if (!err) {
		c->made = true;
		release(c);
	}
	job_done(arg, m, err);
}

static void publish_run(Op *op, void *ctx)
{
	Start *s = ctx;
	const QemuClone *c = s->wake->clone;

	if (!is_over(op, s))
		s->wake->verify = savedir_publish(c->fresh, c->template, published, s);
}

/* ---- the clone itself ---- */

static void prepare_again_run(Op *op, void *ctx)
{
	/* What was prepared is used up. */
	if (clone_of(ctx)->made)
		start_prepare_run(op, ctx);
	else
		op_next(op);
}

static bool open_device(QemuWake *w, GError **err)
{
	const int dir = savedir_open(w->clone->template, err);

	if (dir < 0)
		return false;
	w->memory = savedir_open_file(dir, DEVICE, false, err);
	close(dir);
	return w->memory >= 0;
}

static void template_run(Op *op, void *ctx)
{
	Start *s = ctx;
	QemuWake *w = s->wake;
	GError *err = NULL;

	w->loaded = false;
	/* For the machine and its slots; its memory is in the template. */
	if (!wake_open_memory(w, &err)) {
		op_fail(op, err);
		return;
	}
	close(w->memory);
	w->memory = -1;
	w->ram = g_build_filename(w->clone->template, RAM, NULL);
	if (open_device(w, &err))
		op_next(op);
	else
		op_fail(op, err);
}

static const Step steps[] = {
	{ "prepare", start_prepare_run, start_prepare_cancel, start_prepare_undo },
	{ "source", source_run, NULL, NULL },
	{ "template", claim_run, claim_cancel, claim_undo },
	{ "verify", verify_run, job_cancel, NULL },
	{ "tidy", tidy_run, job_cancel, NULL },
	{ "files", files_run, NULL, files_undo },
	{ "copy", copy_run, job_cancel, NULL },
	{ "make", make_run, start_spawn_cancel, start_spawn_undo },
	{ "fill", fill_run, start_monitor_cancel, start_monitor_undo },
	{ "save", save_run, start_monitor_cancel, NULL },
	{ "end", end_run, end_cancel, NULL },
	{ "publish", publish_run, job_cancel, NULL },
	{ "prepare", prepare_again_run, start_prepare_cancel, start_prepare_undo },
	{ "disks", start_disks_run, start_disks_cancel, NULL },
	{ "open", template_run, NULL, NULL },
	{ "spawn", start_spawn_run, start_spawn_cancel, start_spawn_undo },
	{ "load", wake_load_run, start_monitor_cancel, start_monitor_undo },
	{ "run", wake_run_run, start_monitor_cancel, NULL },
	{ 0 },
};

/* Of a VM that was stopped: its disks, and a boot. */
static const Step stopped_steps[] = {
	{ "prepare", start_prepare_run, start_prepare_cancel, start_prepare_undo },
	{ "source", source_run, NULL, NULL },
	{ "template", claim_run, claim_cancel, claim_undo },
	{ "verify", verify_run, job_cancel, NULL },
	{ "tidy", tidy_run, job_cancel, NULL },
	{ "files", files_run, NULL, files_undo },
	{ "copy", copy_run, job_cancel, NULL },
	{ "publish", publish_run, job_cancel, NULL },
	{ "disks", start_disks_run, start_disks_cancel, NULL },
	{ "shares", start_shares_run, start_shares_cancel, start_shares_undo },
	{ "spawn", start_spawn_run, start_spawn_cancel, start_spawn_undo },
	{ "monitor", start_monitor_run, start_monitor_cancel, start_monitor_undo },
	{ 0 },
};

void qemu_clone_args(const QemuClone *c, QemuArgs *args)
{
	args->incoming = c->has_memory;
	args->making = c->making;
	if (c->has_memory && !c->making)
		qemu_slots_cloned(args->slots, args->spec);
}

bool qemu_clone_running(const Start *s)
{
	if (s->wake->clone->has_memory)
		qemu_identity_begin(s->q);
	return s->wake->clone->has_memory;
}

void qemu_clone_forget(QemuClone *c)
{
	release(c);
	g_free(c->snapshot);
	g_free(c->template);
	g_free(c->fresh);
	g_free(c->from);
	g_free(c);
}

void qemu_clone_abandon(QemuVm *q)
{
	Start *s = q->start;

	if (s && s->wake && s->wake->clone)
		stop_waiting(s);
}

static QemuWake *wake_new(const BackendVm *bv, const Snapshot *from)
{
	QemuClone *c = g_new0(QemuClone, 1);
	QemuWake *w = g_new0(QemuWake, 1);
	const uid_t uid = vm_uid(bv->vm);

	c->snapshot = g_strdup(snapshot_dir(from));
	c->template = snapshot_template(from, uid);
	c->fresh = g_strconcat(c->template, SNAPSHOT_UNFINISHED, NULL);
	c->from = g_strdup(bv->spec->from);
	c->has_memory = snapshot_has_memory(from);
	c->foreign = snapshot_uid(from) != uid;
	w->dir = g_strdup(c->snapshot);
	w->memory = -1;
	w->verified = true;
	w->clone = c;
	return w;
}

void qemu_clone(BackendVm *bv, Op *op)
{
	const Snapshot *from;
	GError *err = NULL;
	QemuWake *w;

	if (!vm_clone_source(bv->vm, NULL, &from, &err)) {
		op_fail(op, err);
		return;
	}
	w = wake_new(bv, from);
	start_begin(bv, op, w->clone->has_memory ? steps : stopped_steps, w);
}

bool qemu_clone_plan(QemuVm *q, QemuWake **ret, GError **err)
{
	const Snapshot *from;

	*ret = NULL;
	if (!vm_clone_planned(qemu_vm(q), &from, err))
		return false;
	if (!from || !snapshot_has_memory(from))
		return true;
	*ret = wake_new(&q->base, from);
	if (!wake_read_machine(*ret, err)) {
		qemu_wake_free(g_steal_pointer(ret));
		return false;
	}
	(*ret)->ram = g_build_filename((*ret)->clone->template, RAM, NULL);
	return true;
}
