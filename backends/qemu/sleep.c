/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleep: memory and devices go to a file in the data directory, then the VMM ends. The VM is asleep
 * from when the store says so, which is after all of it is safe on the disk and before QEMU is told
 * to quit; until then every failure lets the guest go on. Waking is a start, in start.c.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backends/qemu/save.h"
#include "vmfs/err.h"
#include "vmfs/savedir.h"

typedef struct Sleep {
	QemuVm *q; /* NULL: the VM went from memory */
	Op *op;
	char *dir;
	int memory;  /* the file; -1: none, or given to QEMU */
	bool resume; /* its vCPUs ran before */
	GPtrArray *facts;
	QmpSlot *slot;
	QemuStream *stream;
	SaveJob *job;
	SavedNote *note;
} Sleep;

char *qemu_sleep_dir(QemuVm *q)
{
	return g_build_filename(vm_data_dir(qemu_vm(q)), "sleep", NULL);
}

static void dir_dropped(void *arg, const Manifest *m, const GError *err)
{
	QemuVm *q = arg;
	void (*fn)(QemuVm *) = g_steal_pointer(&q->dropped);

	q->dropping = NULL;
	if (fn)
		fn(q);
}

void qemu_sleep_drop(QemuVm *q, void (*fn)(QemuVm *q))
{
	g_autofree char *dir = qemu_sleep_dir(q);

	q->dropped = fn;
	if (!q->dropping)
		q->dropping = savedir_drop(dir, dir_dropped, q);
}

static void drop(Sleep *s)
{
	if (s->q)
		s->q->dropped = NULL;
	qmp_cancel(&s->slot);
	qemu_stream_forget(&s->stream);
	savedir_cancel(&s->job);
	vm_saved_forget(&s->note);
}

static void cancel(Op *op, void *ctx)
{
	drop(ctx);
}

static void died(QemuVm *q)
{
	Sleep *s = q->sleep;

	drop(s);
	/* Its end is reported when all is undone. */
	op_fail(s->op, err_new(EIO, "QEMU ended before the memory was saved"));
}

/* ---- prepare: what was left of a sleep before goes, the directory is made ---- */

static bool make_files(Sleep *s, GError **err)
{
	Vm *vm = qemu_vm(s->q);
	const uid_t uid = vm_uid(vm);
	const gid_t gid = vm_gid(vm);
	const int dir = savedir_make(s->dir, uid, gid, err);
	bool ok;

	if (dir < 0)
		return false;
	ok = savedir_put(dir, SAVEDIR_SPEC, s->q->base.spec->text, uid, gid, err);
	if (ok)
		s->memory = savedir_create(dir, SAVEDIR_MEMORY, uid, gid, err);
	close(dir);
	return ok && s->memory >= 0;
}

static void facts_answered(void *arg, const json_t *result, const GError *err)
{
	Sleep *s = arg;
	GError *e = NULL;

	s->slot = NULL;
	if (err)
		e = g_error_copy(err);
	else
		qemu_add_machine_fact(s->facts, result);
	if (!e && make_files(s, &e))
		op_next(s->op);
	else
		op_fail(s->op, e);
}

static void old_dropped(QemuVm *q)
{
	Sleep *s = q->sleep;

	if (!q->qmp) {
		op_fail(s->op, err_new(EHOSTDOWN, "QEMU does not answer; 'kill' ends it"));
		return;
	}
	(void)qemu_stream_prepare(q, false, NULL, NULL);
	s->slot = qemu_ask_machine(q, facts_answered, s);
}

static void prepare_run(Op *op, void *ctx)
{
	Sleep *s = ctx;

	s->q->died = died;
	qemu_sleep_drop(s->q, old_dropped);
}

static void new_dropped(QemuVm *q)
{
	Sleep *s = q->sleep;

	op_next(s->op);
}

static void prepare_undo(Op *op, void *ctx)
{
	Sleep *s = ctx;

	if (s->q->died == died)
		s->q->died = NULL;
	if (s->q->exited)
		qemu_report_end(s->q);
	qemu_sleep_drop(s->q, new_dropped);
}

/* ---- memory, and its checksum meanwhile ---- */

static void sealed(void *arg, const Manifest *m, const GError *err);

static void saved(void *arg, const GError *err)
{
	Sleep *s = arg;

	s->stream = NULL;
	op_answered(s->op, err);
}

static void memory_run(Op *op, void *ctx)
{
	Sleep *s = ctx;
	QemuVm *q = s->q;

	s->resume = !q->paused;
	q->held = true;
	s->job = savedir_seal(s->dir, vm_uid(qemu_vm(q)), vm_gid(qemu_vm(q)), sealed, s);
	qmp_execute(q->qmp, "stop", NULL, NULL, NULL);
	s->stream = qemu_stream_out(q, op, s->memory, saved, s);
	s->memory = -1;
}

static void aborted(void *arg, const GError *err)
{
	Sleep *s = arg;
	QemuVm *q = s->q;

	s->stream = NULL;
	if (s->resume && q->qmp)
		qmp_execute(q->qmp, "cont", NULL, NULL, NULL);
	q->held = false;
	op_next(s->op);
}

static void memory_undo(Op *op, void *ctx)
{
	Sleep *s = ctx;
	QemuVm *q = s->q;

	savedir_cancel(&s->job);
	if (q->qmp && !q->exited)
		qemu_stream_abort(q, aborted, s);
	else
		aborted(s, NULL);
}

/* ---- seal, record, quit ---- */

static void sealed(void *arg, const Manifest *m, const GError *err)
{
	Sleep *s = arg;

	s->job = NULL;
	if (err) {
		drop(s); /* it may be before all is written */
		op_fail(s->op, g_error_copy(err));
	} else {
		op_next(s->op);
	}
}

static void seal_run(Op *op, void *ctx)
{
	Sleep *s = ctx;

	savedir_written(s->job, s->facts);
}

static void recorded(void *arg, const GError *err)
{
	Sleep *s = arg;

	s->note = NULL;
	op_answered(s->op, err);
}

static void record_run(Op *op, void *ctx)
{
	Sleep *s = ctx;

	s->note = vm_set_saved(qemu_vm(s->q), SAVED_ASLEEP, recorded, s);
}

static void record_undo(Op *op, void *ctx)
{
	const Sleep *s = ctx;

	(void)vm_set_saved(qemu_vm(s->q), SAVED_NONE, NULL, NULL);
	op_next(op);
}

static void quitted(QemuVm *q)
{
	Sleep *s = q->sleep;
	const int status = q->exit_status;

	qemu_forget(q);
	vm_remove_run_dir(qemu_vm(q));
	backend_gone(&q->base, VM_ASLEEP, "slept", status);
	op_next(s->op);
}

static void quit_run(Op *op, void *ctx)
{
	QemuVm *q = ((Sleep *)ctx)->q;

	q->died = quitted;
	if (q->exited)
		quitted(q);
	else
		qemu_quit(q, VM_ASLEEP, "slept");
}

/* A kill that comes now is to kill: what was saved is given up. */
static void quit_undo(Op *op, void *ctx)
{
	QemuVm *q = ((Sleep *)ctx)->q;

	q->died = NULL;
	op_next(op);
}

static const Step steps[] = {
	{ "prepare", prepare_run, cancel, prepare_undo },
	{ "memory", memory_run, cancel, memory_undo },
	{ "seal", seal_run, cancel, NULL },
	{ "record", record_run, cancel, record_undo },
	{ "quit", quit_run, NULL, quit_undo },
	{ 0 },
};

static void sleep_free(void *ctx)
{
	Sleep *s = ctx;

	drop(s);
	if (s->memory >= 0)
		close(s->memory);
	if (s->q)
		s->q->sleep = NULL;
	g_ptr_array_unref(s->facts);
	g_free(s->dir);
	g_free(s);
}

void qemu_sleep_abandon(QemuVm *q)
{
	Sleep *s = q->sleep;

	if (!s)
		return;
	drop(s);
	s->q = NULL;
}

void qemu_sleep(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);
	GError *err = NULL;
	Sleep *s;

	if (!q->qmp || q->exited || q->end.reason) {
		op_fail(op, q->end.reason
				    ? err_new(ESRCH, "it is about to end")
				    : err_new(EHOSTDOWN, "QEMU does not answer; 'kill' ends it"));
		return;
	}
	if (!qemu_can_be_saved(q, &err)) {
		op_fail(op, err);
		return;
	}
	s = g_new0(Sleep, 1);
	s->q = q;
	s->op = op;
	s->memory = -1;
	s->dir = qemu_sleep_dir(q);
	s->facts = g_ptr_array_new_with_free_func(g_free);
	g_ptr_array_add(s->facts, g_strdup("backend qemu"));
	qemu_add_slots_fact(s->facts, q);
	q->sleep = s;
	op_steps(op, steps, s, sleep_free);
}
