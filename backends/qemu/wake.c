/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waking: a start whose memory comes from a file. Its checksum is looked at while QEMU comes up and
 * loads it, and the vCPUs run only if it is right; until then nothing is lost by a failure, and the
 * VM is asleep again. Loop thread only.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/qemu/wake.h"
#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/savedir.h"

#define CLOCK_TIMEOUT_MS 5000

/* ---- memory: the file, its machine, and its checksum ---- */

static void both(Start *s)
{
	QemuWake *w = s->wake;

	if (!w->waiting || !w->verified)
		return;
	if (w->bad)
		op_fail(s->op, g_steal_pointer(&w->bad));
	else if (w->load_error)
		op_fail(s->op, g_steal_pointer(&w->load_error));
	else if (w->loaded) {
		w->waiting = false;
		op_next(s->op);
	}
}

static void verified(void *arg, const Manifest *m, const GError *err)
{
	Start *s = arg;

	s->wake->verify = NULL;
	if (err)
		s->wake->bad = err_new(err_code(err),
				       "its memory cannot be used: %s; 'kill' "
				       "gives it up",
				       err->message);
	s->wake->verified = true;
	both(s);
}

static bool read_machine(QemuWake *w, int dir, GError **err)
{
	g_autoptr(GBytes) text = NULL;
	g_autoptr(Manifest) m = NULL;
	const char *machine;
	gsize len;

	text = savedir_get(dir, SAVEDIR_MANIFEST, SAVEDIR_MAX_MANIFEST, err);
	if (text)
		m = manifest_parse(g_bytes_get_data(text, &len), g_bytes_get_size(text), err);
	if (!m)
		return false;
	machine = manifest_fact(m, "machine");
	/* An option of QEMU's is made of it. */
	g_clear_pointer(&w->machine, g_free);
	if (machine && savedir_is_name(machine))
		w->machine = g_strdup(machine);
	g_free(w->slots);
	w->slots = g_strdup(manifest_fact(m, "slots"));
	return true;
}

bool wake_read_machine(QemuWake *w, GError **err)
{
	const int dir = savedir_open(w->dir, err);
	const bool ok = dir >= 0 && read_machine(w, dir, err);

	if (dir >= 0)
		close(dir);
	return ok;
}

bool wake_open_memory(QemuWake *w, GError **err)
{
	const int dir = savedir_open(w->dir, err);
	struct stat st;

	if (dir < 0)
		return false;
	if (read_machine(w, dir, err))
		w->memory = savedir_open_file(dir, SAVEDIR_MEMORY, false, err);
	close(dir);
	if (w->memory < 0)
		return false;
	if (!fstat(w->memory, &st))
		w->slept_s = MAX(0, g_get_real_time() / G_USEC_PER_SEC - st.st_mtim.tv_sec);
	return true;
}

static void memory_run(Op *op, void *ctx)
{
	Start *s = ctx;
	GError *err = NULL;

	if (!wake_open_memory(s->wake, &err)) {
		op_fail(op, err_new(err_code(err),
				    "its memory cannot be used: %s; 'kill' gives it "
				    "up",
				    err->message));
		g_error_free(err);
		return;
	}
	s->wake->verify = savedir_verify(s->wake->dir, verified, s);
	op_next(op);
}

static void memory_cancel(Op *op, void *ctx)
{
	qemu_wake_drop(((Start *)ctx)->wake);
}

static void memory_undo(Op *op, void *ctx)
{
	qemu_wake_drop(((Start *)ctx)->wake);
	op_next(op);
}

/* ---- load ---- */

void wake_loaded(void *arg, const GError *err)
{
	Start *s = arg;
	QemuWake *w = s->wake;

	w->stream = NULL;
	/* A QEMU that cannot load it ends, and says why in its log. */
	if (err && !qmp_is_alive(s->q->qmp))
		return;
	w->loaded = !err;
	if (err)
		w->load_error = g_error_copy(err);
	both(s);
}

/* QEMU says what it has, not what it was asked for. */
static GError *explain(const Start *s, GError *take)
{
	const QemuWake *w = s->wake;
	const int status = s->q->exited ? s->q->exit_status : 0;
	GError *e;

	/* What a mapped file gives to whoever writes to it on a full disk. */
	if (w->ram && status > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) {
		g_error_free(take);
		return err_new(ENOSPC,
			       "from: there is no room for the memory that the clones of a "
			       "snapshot share, %s",
			       w->ram);
	}
	if (!w->machine || !strstr(take->message, "supported machines"))
		return take;
	e = err_new(EOPNOTSUPP,
		    "this version of QEMU has no machine '%s', with which the memory was "
		    "saved",
		    w->machine);
	g_error_free(take);
	return e;
}

void qemu_wake_fail(Start *s, GError *take)
{
	QemuWake *w = s->wake;

	take = explain(s, take);
	if (!w->waiting || w->bad) {
		op_fail(s->op, w->bad ? g_steal_pointer(&w->bad) : g_error_copy(take));
		g_error_free(take);
		return;
	}
	g_clear_error(&w->load_error);
	w->load_error = take;
	both(s);
}

void wake_load_run(Op *op, void *ctx)
{
	Start *s = ctx;
	QemuWake *w = s->wake;

	start_connect(s);
	(void)qemu_stream_prepare(s->q, w->ram, NULL, NULL);
	w->stream = qemu_stream_in(s->q, op, w->memory, wake_loaded, s);
	w->memory = -1;
	w->waiting = true;
}

/* ---- mark and run ---- */

static void marked(void *arg, const GError *err)
{
	Start *s = arg;

	s->wake->note = NULL;
	op_answered(s->op, err);
}

static void mark_run(Op *op, void *ctx)
{
	Start *s = ctx;

	s->wake->note = vm_set_saved(qemu_vm(s->q), SAVED_WAKING, marked, s);
}

/* A QEMU that refused to let the vCPUs run is still there. */
static void mark_undo(Op *op, void *ctx)
{
	const Start *s = ctx;

	if (!s->wake->ran || (!s->q->exited && qmp_is_alive(s->q->qmp)))
		(void)vm_set_saved(qemu_vm(s->q), SAVED_ASLEEP, NULL, NULL);
	op_next(op);
}

void wake_run_run(Op *op, void *ctx)
{
	Start *s = ctx;

	s->wake->ran = true;
	start_cont(s);
}

QemuEnd qemu_wake_end(const Start *s)
{
	if (s->wake->restore)
		return (QemuEnd){ VM_STOPPED, "restore-failed" };
	if (s->wake->clone)
		return (QemuEnd){ VM_STOPPED, "start-failed" };
	if (vm_saved(qemu_vm(s->q)) == SAVED_ASLEEP)
		return (QemuEnd){ VM_ASLEEP, "wake-failed" };
	return (QemuEnd){ VM_CRASHED, "wake-failed" };
}

void qemu_wake_running(Start *s)
{
	QemuVm *q = s->q;
	g_autofree char *late = g_strdup_printf("late %" G_GINT64_FORMAT " s, no guest agent has "
						"set it yet",
						s->wake->slept_s);
	if (s->wake->clone && !qemu_clone_running(s))
		return;
	if (!s->wake->clone && !s->wake->restore)
		qemu_sleep_drop(q, NULL);
	backend_fact(&q->base, "clock", late);
	q->clock_is_late = true;
	qemu_set_clock(q);
}

static void clock_set(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	if (err) {
		log_info("%s: the clock: %s", vm_name(qemu_vm(q)), err->message);
		return;
	}
	q->clock_is_late = false;
	backend_fact(&q->base, "clock", NULL);
}

void qemu_set_clock(QemuVm *q)
{
	json_t *args;

	if (!q->clock_is_late || !q->agent || !agent_is_open(q->agent))
		return;
	args = json_object();
	json_object_set_new(args, "time", json_integer(g_get_real_time() * 1000));
	agent_request(q->agent, "guest-set-time", args, false, CLOCK_TIMEOUT_MS, clock_set, q);
}

/* ---- restore: the same from a snapshot, after what ran has ended and the disks are put back ----
 */

static void restore_verified(void *arg, const Manifest *m, const GError *err)
{
	Start *s = arg;
	QemuWake *w = s->wake;

	w->verify = NULL;
	w->verified = !err;
	if (err)
		op_fail(s->op,
			err_new(err_code(err), "the snapshot cannot be used: %s", err->message));
	else
		op_next(s->op);
}

static void verify_run(Op *op, void *ctx)
{
	Start *s = ctx;

	s->wake->verify = savedir_verify(s->wake->dir, restore_verified, s);
}

static void verify_cancel(Op *op, void *ctx)
{
	savedir_cancel(&((Start *)ctx)->wake->verify);
}

static void spec_run(Op *op, void *ctx)
{
	Start *s = ctx;
	GError *err = NULL;

	s->wake->spec = savedir_spec(s->wake->dir, "qemu", &err);
	if (s->wake->spec && qemu_check(qemu_host(), s->wake->spec, &err))
		op_next(op);
	else
		op_fail(op, err);
}

static void ended(QemuVm *q)
{
	const Start *s = q->start;
	Op *op = s->op;
	const int status = q->exit_status;

	qemu_forget(q);
	vm_remove_run_dir(qemu_vm(q));
	backend_gone(&q->base, VM_STOPPED, "restoring", status);
	op_next(op);
}

/* From here on there is no way back to what ran. */
static void end_run(Op *op, void *ctx)
{
	QemuVm *q = ((Start *)ctx)->q;

	if (!q->proc) {
		backend_gone(&q->base, VM_STOPPED, "restoring", -1);
		op_next(op);
		return;
	}
	q->died = ended;
	if (q->exited)
		ended(q);
	else
		qemu_quit(q, VM_STOPPED, "restoring");
}

static void end_cancel(Op *op, void *ctx)
{
	QemuVm *q = ((Start *)ctx)->q;

	if (q->died == ended)
		q->died = NULL;
}

static void copied(void *arg, const Manifest *m, const GError *err)
{
	Start *s = arg;

	s->wake->verify = NULL;
	op_answered(s->op, err);
}

/* Beside the disks that are in use: there is room for them, or nothing is changed. */
static void copy_run(Op *op, void *ctx)
{
	Start *s = ctx;
	QemuWake *w = s->wake;
	Vm *vm = qemu_vm(s->q);

	w->copies = qemu_snapshot_pairs(s->q, w->spec, w->dir, true);
	w->verify = savedir_copy(w->copies, vm_uid(vm), vm_gid(vm), copied, s);
}

static void copy_undo(Op *op, void *ctx)
{
	const QemuWake *w = ((Start *)ctx)->wake;

	for (guint i = 1; i < w->copies->len; i += 2)
		(void)unlink(w->copies->pdata[i]);
	op_next(op);
}

static void checked(void *arg, const GError *err)
{
	copied(arg, NULL, err);
}

/* What would keep it from running is found while what runs can still go on. */
static void check_run(Op *op, void *ctx)
{
	Start *s = ctx;

	qemu_disks_check_copies(s->q, s->wake->spec, s->wake->copies, checked, s);
}

static void put_back_run(Op *op, void *ctx)
{
	Start *s = ctx;
	GError *err = NULL;

	if (!qemu_disks_put_back(s->q, s->wake->spec, s->wake->copies, &err)) {
		op_fail(op, err);
		return;
	}
	backend_spec(&s->q->base, s->wake->spec);
	op_next(op);
}

static void restored_memory_run(Op *op, void *ctx)
{
	Start *s = ctx;
	GError *err = NULL;

	if (wake_open_memory(s->wake, &err))
		op_next(op);
	else
		op_fail(op, err);
}

static const Step restore_steps[] = {
	{ "verify", verify_run, verify_cancel, NULL },
	{ "spec", spec_run, NULL, NULL },
	{ "copy", copy_run, verify_cancel, copy_undo },
	{ "check", check_run, start_disks_cancel, NULL },
	{ "end", end_run, end_cancel, NULL },
	{ "put-back", put_back_run, NULL, NULL },
	{ "prepare", start_prepare_run, start_prepare_cancel, start_prepare_undo },
	{ "disks", start_disks_run, start_disks_cancel, NULL },
	{ "memory", restored_memory_run, NULL, NULL },
	{ "spawn", start_spawn_run, start_spawn_cancel, start_spawn_undo },
	{ "load", wake_load_run, start_monitor_cancel, start_monitor_undo },
	{ "run", wake_run_run, start_monitor_cancel, NULL },
	{ 0 },
};

static const Step restore_stopped_steps[] = {
	{ "verify", verify_run, verify_cancel, NULL },
	{ "spec", spec_run, NULL, NULL },
	{ "copy", copy_run, verify_cancel, copy_undo },
	{ "check", check_run, start_disks_cancel, NULL },
	{ "end", end_run, end_cancel, NULL },
	{ "put-back", put_back_run, NULL, NULL },
	{ 0 },
};

void qemu_restore(BackendVm *bv, Op *op)
{
	const Snapshot *snapshot = op_arg(op);
	QemuWake *w = g_new0(QemuWake, 1);

	w->dir = g_strdup(snapshot_dir(snapshot));
	w->memory = -1;
	w->restore = true;
	start_begin(bv, op, snapshot_has_memory(snapshot) ? restore_steps : restore_stopped_steps,
		    w);
}

static const Step steps[] = {
	{ "prepare", start_prepare_run, start_prepare_cancel, start_prepare_undo },
	{ "disks", start_disks_run, start_disks_cancel, NULL },
	{ "memory", memory_run, memory_cancel, memory_undo },
	{ "spawn", start_spawn_run, start_spawn_cancel, start_spawn_undo },
	{ "load", wake_load_run, start_monitor_cancel, start_monitor_undo },
	{ "mark", mark_run, start_monitor_cancel, mark_undo },
	{ "run", wake_run_run, start_monitor_cancel, NULL },
	{ 0 },
};

void qemu_wake_args(const QemuWake *w, QemuArgs *args)
{
	args->machine = w->machine;
	args->incoming = true;
	args->ram = w->ram;
	if (w->clone)
		qemu_clone_args(w->clone, args);
}

const char *qemu_wake_slots(const QemuWake *w)
{
	return w->slots;
}

void qemu_wake_drop(QemuWake *w)
{
	savedir_cancel(&w->verify);
	qemu_stream_forget(&w->stream);
	vm_saved_forget(&w->note);
	g_clear_error(&w->load_error);
	g_clear_error(&w->bad);
	w->waiting = false;
}

void qemu_wake_free(QemuWake *w)
{
	qemu_wake_drop(w);
	if (w->clone)
		qemu_clone_forget(w->clone);
	if (w->memory >= 0)
		close(w->memory);
	g_free(w->ram);
	if (w->spec)
		spec_unref(w->spec);
	if (w->copies)
		g_ptr_array_unref(w->copies);
	g_free(w->machine);
	g_free(w->slots);
	g_free(w->dir);
	g_free(w);
}

void qemu_wake(BackendVm *bv, Op *op)
{
	QemuWake *w = g_new0(QemuWake, 1);

	w->dir = qemu_sleep_dir(qemu_of(bv));
	w->memory = -1;
	start_begin(bv, op, steps, w);
}
