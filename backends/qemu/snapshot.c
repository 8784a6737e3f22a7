/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots. Of a VM that runs: the guest stands still while a copy of each of its own disks is
 * begun, from which on QEMU saves what is about to be overwritten first; then memory is written.
 * Where the kernel lets QEMU write-protect the memory, the guest goes on as soon as that is done;
 * else, when all of the disks and the memory are written. Of one that is stopped: its disks are
 * copied. Loop thread only.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/qemu/save.h"
#include "vmfs/diskfile.h"
#include "vmfs/err.h"

typedef struct Disk {
	const SpecDisk *spec;
	char *source, *node, *file_node, *job; /* names of block nodes and jobs */
	char *path, *backing, *format;
	json_int_t size;
	bool made, copying;
} Disk;

typedef struct Taking {
	QemuVm *q; /* NULL: the VM went from memory */
	Op *op;
	const Snapshot *snapshot;
	char *dir;
	int memory;
	bool held;
	gint64 stopped; /* us, monotonic */
	GPtrArray *facts, *disks;
	guint making; /* index of the disk that is made */
	unsigned copying;
	bool want_copies; /* the step waits for the copies */
	QmpSlot *slot;
	QemuStream *stream;
	SaveJob *job;
} Taking;

static void disk_free(void *arg)
{
	Disk *d = arg;

	g_free(d->source);
	g_free(d->node);
	g_free(d->file_node);
	g_free(d->job);
	g_free(d->path);
	g_free(d->backing);
	g_free(d->format);
	g_free(d);
}

static void drop(Taking *t)
{
	qmp_cancel(&t->slot);
	qemu_stream_forget(&t->stream);
	savedir_cancel(&t->job);
	t->want_copies = false;
}

static void cancel(Op *op, void *ctx)
{
	drop(ctx);
}

static void died(QemuVm *q)
{
	Taking *t = q->taking;

	drop(t);
	/* Its end is reported when all is undone. */
	op_fail(t->op, err_new(EIO, "QEMU ended before the snapshot was taken"));
}

static json_t *args_of(const char *key, const char *value)
{
	json_t *args = json_object();

	json_object_set_new(args, key, json_string(value));
	return args;
}

/* ---- prepare: directory, memory file, what QEMU can ---- */

/* What t->slot asked is answered. False: by an error, which ends the op. */
static bool answered(Taking *t, const GError *err)
{
	t->slot = NULL;
	if (err)
		op_fail(t->op, g_error_copy(err));
	return !err;
}

static void prepared(void *arg, const json_t *result, const GError *err)
{
	Taking *t = arg;

	if (answered(t, err))
		op_next(t->op);
}

static void machine_answered(void *arg, const json_t *result, const GError *err)
{
	Taking *t = arg;

	if (!answered(t, err))
		return;
	qemu_add_machine_fact(t->facts, result);
	/*
	 * The guest is paused meanwhile: QEMU 7.2 hangs for good where a migration with
	 * background-snapshot is cancelled or fails.
	 */
	t->slot = qemu_stream_prepare(t->q, false, prepared, t);
}

static bool make_files(Taking *t, bool memory, GError **err)
{
	Vm *vm = qemu_vm(t->q);
	const int dir = savedir_make(t->dir, vm_uid(vm), vm_gid(vm), err);
	bool ok;

	if (dir < 0)
		return false;
	ok = savedir_put(dir, SAVEDIR_SPEC, t->q->base.spec->text, vm_uid(vm), vm_gid(vm), err);
	if (ok && memory) {
		t->memory = savedir_create(dir, SAVEDIR_MEMORY, vm_uid(vm), vm_gid(vm), err);
		ok = t->memory >= 0;
	}
	close(dir);
	return ok;
}

static void prepare_run(Op *op, void *ctx)
{
	Taking *t = ctx;
	GError *err = NULL;

	t->q->died = died;
	if (make_files(t, true, &err))
		t->slot = qemu_ask_machine(t->q, machine_answered, t);
	else
		op_fail(op, err);
}

static void prepare_undo(Op *op, void *ctx)
{
	Taking *t = ctx;

	if (t->q->died == died)
		t->q->died = NULL;
	if (t->q->exited)
		qemu_report_end(t->q);
	op_next(op);
}

/* ---- disks: an empty file for each, as the one it is of ---- */

static void make_next(Taking *t);

static void del_nodes(Taking *t)
{
	for (guint i = 0; i < t->disks->len; i++) {
		const Disk *d = t->disks->pdata[i];

		/* The end of its job does that. */
		if (d->copying || !t->q->qmp)
			continue;
		qmp_execute(t->q->qmp, "blockdev-del", args_of("node-name", d->node), NULL, NULL);
		qmp_execute(t->q->qmp, "blockdev-del", args_of("node-name", d->file_node), NULL,
			    NULL);
	}
}

static void opened(void *arg, const json_t *result, const GError *err)
{
	Taking *t = arg;

	if (!answered(t, err))
		return;
	t->making++;
	make_next(t);
}

static void job_asked(void *arg, const json_t *result, const GError *err)
{
	Taking *t = arg;
	const Disk *d = t->disks->pdata[t->making];
	const char *why = NULL;
	const json_t *j;
	json_t *args;
	size_t i;

	t->slot = NULL;
	json_array_foreach(result, i, j)
	{
		const char *id = json_string_value(json_object_get(j, "id"));

		if (id && !strcmp(id, d->job))
			why = json_string_value(json_object_get(j, "error"));
	}
	qmp_execute(t->q->qmp, "job-dismiss", args_of("id", d->job), NULL, NULL);
	if (err || why) {
		op_fail(t->op, err ? g_error_copy(err)
				   : err_new(qemu_errno(why), "disks.%s: %s", d->spec->name, why));
		return;
	}
	args = args_of("driver", "qcow2");
	json_object_set_new(args, "node-name", json_string(d->node));
	json_object_set_new(args, "file", json_string(d->file_node));
	t->slot = qmp_execute(t->q->qmp, "blockdev-add", args, opened, t);
}

static void create_answered(void *arg, const json_t *result, const GError *err)
{
	(void)answered(arg, err);
}

static void file_opened(void *arg, const json_t *result, const GError *err)
{
	Taking *t = arg;
	const Disk *d = t->disks->pdata[t->making];
	json_t *args = args_of("job-id", d->job), *options = args_of("driver", "qcow2");

	t->slot = NULL;
	if (err) {
		json_decref(args);
		json_decref(options);
		op_fail(t->op, g_error_copy(err));
		return;
	}
	json_object_set_new(options, "file", json_string(d->file_node));
	json_object_set_new(options, "size", json_integer(d->size));
	if (d->backing) {
		json_object_set_new(options, "backing-file", json_string(d->backing));
		if (d->format)
			json_object_set_new(options, "backing-fmt", json_string(d->format));
	}
	json_object_set_new(args, "options", options);
	t->slot = qmp_execute(t->q->qmp, "blockdev-create", args, create_answered, t);
}

static bool make_disk_file(Taking *t, const Disk *d, GError **err)
{
	Vm *vm = qemu_vm(t->q);
	g_autofree char *name = g_path_get_basename(d->path);
	const int dir = savedir_open(t->dir, err);
	const int fd = dir < 0 ? -1 : savedir_create(dir, name, vm_uid(vm), vm_gid(vm), err);

	if (fd >= 0)
		close(fd);
	if (dir >= 0)
		close(dir);
	return fd >= 0;
}

static void make_next(Taking *t)
{
	GError *err = NULL;
	json_t *args;
	Disk *d;

	if (t->making == t->disks->len) {
		op_next(t->op);
		return;
	}
	d = t->disks->pdata[t->making];
	if (!make_disk_file(t, d, &err)) {
		op_fail(t->op, err);
		return;
	}
	args = args_of("driver", "file");
	json_object_set_new(args, "node-name", json_string(d->file_node));
	json_object_set_new(args, "filename", json_string(d->path));
	t->slot = qmp_execute(t->q->qmp, "blockdev-add", args, file_opened, t);
}

static void take_node(Disk *d, const json_t *node)
{
	const json_t *image = json_object_get(node, "image");
	const char *backing = json_string_value(json_object_get(image, "full-backing-filename"));
	const char *format = json_string_value(json_object_get(image, "backing-filename-format"));

	d->size = json_integer_value(json_object_get(image, "virtual-size"));
	d->backing = g_strdup(backing);
	d->format = g_strdup(format);
}

static void nodes_answered(void *arg, const json_t *result, const GError *err)
{
	Taking *t = arg;
	const json_t *node;
	size_t i;

	if (!answered(t, err))
		return;
	json_array_foreach(result, i, node)
	{
		const char *name = json_string_value(json_object_get(node, "node-name"));

		for (guint k = 0; name && k < t->disks->len; k++) {
			Disk *d = t->disks->pdata[k];
			if (!strcmp(d->source, name))
				take_node(d, node);
		}
	}
	for (guint k = 0; k < t->disks->len; k++) {
		const Disk *d = t->disks->pdata[k];
		if (d->size <= 0) {
			op_fail(t->op,
				err_new(EIO, "disks.%s: QEMU does not know it", d->spec->name));
			return;
		}
	}
	make_next(t);
}

static void disks_run(Op *op, void *ctx)
{
	Taking *t = ctx;
	json_t *args;

	if (!t->disks->len) {
		op_next(op);
		return;
	}
	args = json_object();
	json_object_set_new(args, "flat", json_true());
	t->slot = qmp_execute(t->q->qmp, "query-named-block-nodes", args, nodes_answered, t);
}

static void disks_undo(Op *op, void *ctx)
{
	del_nodes(ctx);
	op_next(op);
}

/* ---- hold: the moment ---- */

static void copies_begun(void *arg, const json_t *result, const GError *err)
{
	Taking *t = arg;

	if (!answered(t, err))
		return;
	t->copying = t->disks->len;
	for (guint i = 0; i < t->disks->len; i++)
		((Disk *)t->disks->pdata[i])->copying = true;
	op_next(t->op);
}

static json_t *copy_action(const Disk *d)
{
	json_t *action = args_of("type", "blockdev-backup"), *data = args_of("job-id", d->node);

	json_object_set_new(data, "device", json_string(d->source));
	json_object_set_new(data, "target", json_string(d->node));
	/* What the image has, the copy has too, being of it. */
	json_object_set_new(data, "sync", json_string(d->backing ? "top" : "full"));
	json_object_set_new(action, "data", data);
	return action;
}

static void hold_run(Op *op, void *ctx)
{
	Taking *t = ctx;
	json_t *args, *actions;

	t->held = t->q->held = true;
	t->stopped = g_get_monotonic_time();
	qmp_execute(t->q->qmp, "stop", NULL, NULL, NULL);
	if (!t->disks->len) {
		op_next(op);
		return;
	}
	args = json_object();
	actions = json_array();
	for (guint i = 0; i < t->disks->len; i++)
		json_array_append_new(actions, copy_action(t->disks->pdata[i]));
	json_object_set_new(args, "actions", actions);
	t->slot = qmp_execute(t->q->qmp, "transaction", args, copies_begun, t);
}

static void aborted(void *arg, const GError *err)
{
	Taking *t = arg;
	QemuVm *q = t->q;

	if (t->held && q->qmp)
		qmp_execute(q->qmp, "cont", NULL, NULL, NULL);
	t->held = q->held = false;
	op_next(t->op);
}

void qemu_snapshot_cancel_copy(QemuVm *q, const char *job)
{
	json_t *args = args_of("device", job);

	json_object_set_new(args, "force", json_true());
	qmp_execute(q->qmp, "block-job-cancel", args, NULL, NULL);
}

static void hold_undo(Op *op, void *ctx)
{
	Taking *t = ctx;
	QemuVm *q = t->q;

	if (!q->qmp || q->exited) {
		aborted(t, NULL);
		return;
	}
	for (guint i = 0; i < t->disks->len; i++) {
		const Disk *d = t->disks->pdata[i];

		if (d->copying)
			qemu_snapshot_cancel_copy(q, d->node);
	}
	qemu_stream_abort(q, aborted, t);
}

/* ---- memory ---- */

static void resumed(Taking *t)
{
	char fact[64];

	if (!t->held)
		return;
	t->held = t->q->held = false;
	snprintf(fact, sizeof(fact), "paused %.1f ms",
		 (double)(g_get_monotonic_time() - t->stopped) / 1000);
	g_ptr_array_add(t->facts, g_strdup(fact));
	op_accept(t->op);
}

void qemu_snapshot_resumed(QemuVm *q)
{
	if (q->taking)
		resumed(q->taking);
}

static void cont_answered(void *arg, const json_t *result, const GError *err)
{
	Taking *t = arg;

	if (!answered(t, err))
		return;
	resumed(t);
	op_next(t->op);
}

static void written(void *arg, const GError *err)
{
	Taking *t = arg;

	t->stream = NULL;
	if (err)
		op_fail(t->op, g_error_copy(err));
	else if (t->held) /* QEMU has ended with it, and gives the disks away as for good */
		t->slot = qmp_execute(t->q->qmp, "cont", NULL, cont_answered, t);
	else
		op_next(t->op);
}

static void write_memory(Taking *t)
{
	t->stream = qemu_stream_out(t->q, t->op, t->memory, written, t);
	t->memory = -1;
}

static void memory_run(Op *op, void *ctx)
{
	Taking *t = ctx;

	if (!t->copying)
		write_memory(t);
	else /* at whose end QEMU would end the copies */
		t->want_copies = true;
}

/* ---- the copies ---- */

static void copies_run(Op *op, void *ctx)
{
	Taking *t = ctx;

	if (t->copying)
		t->want_copies = true;
	else
		op_next(op);
}

static void copied(Taking *t, Disk *d, const char *error)
{
	d->copying = false;
	t->copying--;
	if (error) {
		op_fail(t->op, err_new(qemu_errno(error), "disks.%s: %s", d->spec->name, error));
		return;
	}
	if (t->copying || !t->want_copies)
		return;
	t->want_copies = false;
	if (t->held)
		write_memory(t);
	else
		op_next(t->op);
}

void qemu_snapshot_job(QemuVm *q, const char *id, const char *status, const char *error)
{
	Taking *t = q->taking;

	/* Whoever began it may be gone: with the job goes what it wrote to. */
	if (!strcmp(status, "null") && g_str_has_prefix(id, QEMU_COPY_PREFIX) && q->qmp) {
		g_autofree char *file = g_strconcat("file", id, NULL);

		qmp_execute(q->qmp, "blockdev-del", args_of("node-name", id), NULL, NULL);
		qmp_execute(q->qmp, "blockdev-del", args_of("node-name", file), NULL, NULL);
	}
	for (guint i = 0; t && i < t->disks->len; i++) {
		Disk *d = t->disks->pdata[i];

		if (!strcmp(status, "concluded") && !strcmp(id, d->job) && !t->slot)
			t->slot = qmp_execute(q->qmp, "query-jobs", NULL, job_asked, t);
		else if (!strcmp(status, "completed") && !strcmp(id, d->node) && d->copying) {
			copied(t, d, error);
			return;
		}
	}
}

/* ---- seal ---- */

static void job_done(void *arg, const Manifest *m, const GError *err)
{
	Taking *t = arg;

	t->job = NULL;
	op_answered(t->op, err);
}

static void seal_run(Op *op, void *ctx)
{
	Taking *t = ctx;
	Vm *vm = qemu_vm(t->q);

	/* Not while the guest stands still: its memory is on the way to the disk the sooner. */
	t->job = savedir_seal(t->dir, vm_uid(vm), vm_gid(vm), job_done, t);
	savedir_written(t->job, t->facts);
}

static void end_run(Op *op, void *ctx)
{
	Taking *t = ctx;

	if (t->q->died == died)
		t->q->died = NULL;
	if (t->q->exited)
		qemu_report_end(t->q);
	op_next(op);
}

static const Step steps[] = {
	{ "prepare", prepare_run, cancel, prepare_undo },
	{ "disks", disks_run, cancel, disks_undo },
	{ "hold", hold_run, cancel, hold_undo },
	{ "memory", memory_run, cancel, NULL },
	{ "copies", copies_run, cancel, NULL },
	{ "seal", seal_run, cancel, NULL },
	{ "end", end_run, NULL, NULL },
	{ 0 },
};

/* ---- of a stopped VM ---- */

static void copy_run(Op *op, void *ctx)
{
	Taking *t = ctx;
	Vm *vm = qemu_vm(t->q);
	g_autoptr(GPtrArray) pairs = NULL;
	GError *err = NULL;

	if (!make_files(t, false, &err)) {
		op_fail(op, err);
		return;
	}
	op_accept(op);
	pairs = qemu_snapshot_pairs(t->q, t->q->base.spec, t->dir, false);
	t->job = savedir_copy(pairs, vm_uid(vm), vm_gid(vm), job_done, t);
}

static const Step stopped_steps[] = {
	{ "copy", copy_run, cancel, NULL },
	{ "seal", seal_run, cancel, NULL },
	{ 0 },
};

char *qemu_snapshot_disk(const SpecDisk *d)
{
	return g_strdup_printf("disk-%s.qcow2", d->name);
}

GPtrArray *qemu_snapshot_pairs(QemuVm *q, const Spec *spec, const char *dir, bool back)
{
	GPtrArray *pairs = g_ptr_array_new_with_free_func(g_free);
	for (guint i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];
		char *own, *saved;

		if (d->file)
			continue;
		own = diskfile_path(vm_data_dir(qemu_vm(q)), d);
		g_autofree char *name = qemu_snapshot_disk(d);
		saved = g_build_filename(dir, name, NULL);
		if (access(back ? saved : own, F_OK)) {
			g_free(own);
			g_free(saved);
			continue;
		}
		g_ptr_array_add(pairs, back ? saved : own);
		g_ptr_array_add(pairs, back ? g_strconcat(own, QEMU_RESTORED, NULL) : saved);
		if (back)
			g_free(own);
	}
	return pairs;
}

/* ---- begin ---- */

static void taking_free(void *ctx)
{
	Taking *t = ctx;

	drop(t);
	if (t->memory >= 0)
		close(t->memory);
	if (t->q)
		t->q->taking = NULL;
	g_ptr_array_unref(t->facts);
	g_ptr_array_unref(t->disks);
	g_free(t->dir);
	g_free(t);
}

void qemu_snapshot_abandon(QemuVm *q)
{
	Taking *t = q->taking;

	if (!t)
		return;
	drop(t);
	t->q = NULL;
}

static void add_disk(Taking *t, const SpecDisk *spec)
{
	const unsigned number = snapshot_number(t->snapshot);
	Disk *d = g_new0(Disk, 1);

	d->spec = spec;
	d->source = qemu_block_node("disk-", spec->name);
	d->node = g_strdup_printf(QEMU_COPY_PREFIX "%u-%u", number, t->disks->len);
	d->file_node = g_strconcat("file", d->node, NULL);
	d->job = g_strconcat("make", d->node, NULL);
	g_autofree char *name = qemu_snapshot_disk(spec);
	d->path = g_build_filename(t->dir, name, NULL);
	g_ptr_array_add(t->disks, d);
}

static bool check(const Spec *spec, GError **err)
{
	for (guint i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];

		if (d->file && !d->readonly)
			return err_set(err, EOPNOTSUPP,
				       "disks.%s is a file of yours, which a snapshot can neither "
				       "hold nor put back: set `readonly: true`, or use it as the "
				       "`image:` of a disk",
				       d->name);
		if (!d->file && !strcmp(diskfile_format(d), "raw"))
			return err_set(err, EOPNOTSUPP,
				       "disks.%s has the format raw, and what a snapshot holds is "
				       "qcow2: leave `format` out",
				       d->name);
	}
	if (spec->firmware == FIRMWARE_UEFI)
		return err_set(err, EOPNOTSUPP,
			       "firmware: a snapshot does not hold the variables "
			       "of uefi");
	return true;
}

void qemu_snapshot(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);
	const bool running = vm_state(bv->vm) == VM_RUNNING;
	GError *err = NULL;
	Taking *t;

	if (running && (!q->qmp || q->exited || q->end.reason))
		err = err_new(EHOSTDOWN, "QEMU does not answer; 'kill' ends it");
	if (err || !check(bv->spec, &err) || (running && !qemu_can_be_saved(q, &err))) {
		op_fail(op, err);
		return;
	}
	t = g_new0(Taking, 1);
	t->q = q;
	t->op = op;
	t->memory = -1;
	t->snapshot = op_arg(op);
	t->dir = g_strdup(snapshot_dir(t->snapshot));
	t->facts = g_ptr_array_new_with_free_func(g_free);
	t->disks = g_ptr_array_new_with_free_func(disk_free);
	g_ptr_array_add(t->facts, g_strdup("backend qemu"));
	if (running)
		qemu_add_slots_fact(t->facts, q);
	g_ptr_array_add(t->facts, g_strdup_printf("vm %s", vm_name(bv->vm)));
	for (guint i = 0; running && i < bv->spec->disks->len; i++) {
		const SpecDisk *d = bv->spec->disks->pdata[i];
		if (!d->file)
			add_disk(t, d);
	}
	q->taking = t;
	op_steps(op, running ? steps : stopped_steps, t, taking_free);
}
