/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of simulated machines on the disk: what a guest was told to remember, in a directory like
 * that of a real one, with checksums and all.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backends/sim/sim.h"
#include "vmfs/err.h"
#include "vmfs/savedir.h"
#include "vmfs/vm.h"

#define HEADER	   "sim memory\n"
#define MAX_MEMORY 4096

typedef struct Saving {
	SimVm *s; /* NULL: the VM went from memory */
	Op *op;
	char *dir;
	SaveJob *job;
	SavedNote *note;
} Saving;

static void drop(Saving *v)
{
	savedir_cancel(&v->job);
	vm_saved_forget(&v->note);
}

static void cancel(Op *op, void *ctx)
{
	drop(ctx);
}

static void job_done(void *arg, const Manifest *m, const GError *err)
{
	Saving *v = arg;

	v->job = NULL;
	op_answered(v->op, err);
}

static void noted(void *arg, const GError *err)
{
	Saving *v = arg;

	v->note = NULL;
	op_answered(v->op, err);
}

/* ---- sleep ---- */

static bool write_memory(SimVm *s, int dir, GError **err)
{
	const Vm *vm = s->base.vm;
	g_autofree char *text = g_strconcat(HEADER, s->memory ? s->memory : "", NULL);
	const size_t len = s->disk_full ? strlen(HEADER) : strlen(text);
	g_autoptr(GBytes) memory = g_bytes_new(text, len);

	if (!savedir_put(dir, SAVEDIR_SPEC, s->base.spec->text, vm_uid(vm), vm_gid(vm), err) ||
	    !savedir_put(dir, SAVEDIR_MEMORY, memory, vm_uid(vm), vm_gid(vm), err))
		return false;
	return !s->disk_full ||
	       err_set(err, ENOSPC, "cannot write '" SAVEDIR_MEMORY "': %s", g_strerror(ENOSPC));
}

static void prepare_run(Op *op, void *ctx)
{
	Saving *v = ctx;

	v->job = savedir_drop(v->dir, job_done, v);
}

static void memory_run(Op *op, void *ctx)
{
	Saving *v = ctx;
	const Vm *vm = v->s->base.vm;
	GError *err = NULL;
	const int dir = savedir_make(v->dir, vm_uid(vm), vm_gid(vm), &err);
	const bool ok = dir >= 0 && write_memory(v->s, dir, &err);

	if (dir >= 0)
		close(dir);
	if (ok)
		op_next(op);
	else
		op_fail(op, err);
}

static void memory_undone(void *arg, const Manifest *m, const GError *err)
{
	op_next(arg);
}

static void memory_undo(Op *op, void *ctx)
{
	(void)savedir_drop(((Saving *)ctx)->dir, memory_undone, op);
}

static void seal_run(Op *op, void *ctx)
{
	Saving *v = ctx;
	const Vm *vm = v->s->base.vm;
	g_autoptr(GPtrArray) facts = g_ptr_array_new();

	g_ptr_array_add(facts, (char *)"backend sim");
	v->job = savedir_seal(v->dir, vm_uid(vm), vm_gid(vm), job_done, v);
	savedir_written(v->job, facts);
}

static void record_run(Op *op, void *ctx)
{
	Saving *v = ctx;

	v->note = vm_set_saved(v->s->base.vm, SAVED_ASLEEP, noted, v);
}

static void record_undo(Op *op, void *ctx)
{
	const Saving *v = ctx;

	(void)vm_set_saved(v->s->base.vm, SAVED_NONE, NULL, NULL);
	op_next(op);
}

static void end_run(Op *op, void *ctx)
{
	SimVm *s = ((Saving *)ctx)->s;

	g_clear_pointer(&s->memory, g_free);
	sim_gone(s, VM_ASLEEP, "slept", 0);
	op_next(op);
}

static const Step sleep_steps[] = {
	{ "prepare", prepare_run, cancel, NULL }, { "memory", memory_run, NULL, memory_undo },
	{ "seal", seal_run, cancel, NULL },	  { "record", record_run, cancel, record_undo },
	{ "end", end_run, NULL, NULL },		  { 0 },
};

/* ---- wake ---- */

static void verified(void *arg, const Manifest *m, const GError *err)
{
	Saving *v = arg;

	v->job = NULL;
	if (err)
		op_fail(v->op, err_new(err_code(err),
				       "its memory cannot be used: %s; 'kill' "
				       "gives it up",
				       err->message));
	else
		op_next(v->op);
}

static void verify_run(Op *op, void *ctx)
{
	Saving *v = ctx;

	v->job = savedir_verify(v->dir, verified, v);
}

static void load_run(Op *op, void *ctx)
{
	Saving *v = ctx;
	GError *err = NULL;
	const int dir = savedir_open(v->dir, &err);
	g_autoptr(GBytes) text = NULL;

	if (dir >= 0) {
		text = savedir_get(dir, SAVEDIR_MEMORY, MAX_MEMORY, &err);
		close(dir);
	}
	if (!text) {
		op_fail(op, err);
		return;
	}
	const size_t len = g_bytes_get_size(text), skip = MIN(len, strlen(HEADER));
	g_free(v->s->memory);
	v->s->memory = g_strndup((const char *)g_bytes_get_data(text, NULL) + skip, len - skip);
	op_next(op);
}

static void mark_run(Op *op, void *ctx)
{
	Saving *v = ctx;

	v->note = vm_set_saved(v->s->base.vm, SAVED_WAKING, noted, v);
}

static void mark_undo(Op *op, void *ctx)
{
	const Saving *v = ctx;

	(void)vm_set_saved(v->s->base.vm, SAVED_ASLEEP, NULL, NULL);
	op_next(op);
}

static void go_on(Op *op, SimVm *s, const char *reason)
{
	s->lost = false;
	sim_tell(s, VM_RUNNING, reason);
	sim_booted(s);
	op_next(op);
}

static void run_run(Op *op, void *ctx)
{
	go_on(op, ((Saving *)ctx)->s, "woken");
}

static void tidy_run(Op *op, void *ctx)
{
	Saving *v = ctx;

	v->job = savedir_drop(v->dir, job_done, v);
}

static const Step wake_steps[] = {
	{ "verify", verify_run, cancel, NULL },	 { "load", load_run, NULL, NULL },
	{ "mark", mark_run, cancel, mark_undo }, { "run", run_run, NULL, NULL },
	{ "tidy", tidy_run, cancel, NULL },	 { 0 },
};

/* ---- snapshots ---- */

static void fixed_run(Op *op, void *ctx)
{
	op_accept(op);
	op_next(op);
}

static void copy_run(Op *op, void *ctx)
{
	Saving *v = ctx;
	const Vm *vm = v->s->base.vm;
	GError *err = NULL;
	const int dir = savedir_make(v->dir, vm_uid(vm), vm_gid(vm), &err);
	bool ok = dir >= 0;

	if (ok && v->s->truth == VM_RUNNING)
		ok = write_memory(v->s, dir, &err);
	else if (ok)
		ok = savedir_put(dir, SAVEDIR_SPEC, v->s->base.spec->text, vm_uid(vm), vm_gid(vm),
				 &err);
	if (dir >= 0)
		close(dir);
	if (ok)
		op_next(op);
	else
		op_fail(op, err);
}

static const Step snapshot_steps[] = {
	{ "memory", copy_run, NULL, NULL },
	{ "fixed", fixed_run, NULL, NULL },
	{ "seal", seal_run, cancel, NULL },
	{ 0 },
};

/* ---- restore ---- */

static void spec_run(Op *op, void *ctx)
{
	Saving *v = ctx;
	GError *err = NULL;
	Spec *spec = savedir_spec(v->dir, "sim", &err);

	if (!spec) {
		op_fail(op, err);
		return;
	}
	if (vm_state(v->s->base.vm) == VM_RUNNING || vm_state(v->s->base.vm) == VM_PAUSED)
		sim_gone(v->s, VM_STOPPED, "restoring", -1);
	backend_spec(&v->s->base, spec);
	spec_unref(spec);
	op_next(op);
}

static void resume_run(Op *op, void *ctx)
{
	go_on(op, ((Saving *)ctx)->s, "restored");
}

static void stopped_run(Op *op, void *ctx)
{
	sim_gone(((Saving *)ctx)->s, VM_STOPPED, "restored", -1);
	op_next(op);
}

static const Step restore_steps[] = {
	{ "verify", verify_run, cancel, NULL },
	{ "spec", spec_run, NULL, NULL },
	{ "load", load_run, NULL, NULL },
	{ "run", resume_run, NULL, NULL },
	{ 0 },
};

static const Step restore_stopped_steps[] = {
	{ "verify", verify_run, cancel, NULL },
	{ "spec", spec_run, NULL, NULL },
	{ "stop", stopped_run, NULL, NULL },
	{ 0 },
};

/* ---- clone ---- */

static void clone_verified(void *arg, const Manifest *m, const GError *err)
{
	Saving *v = arg;

	v->job = NULL;
	if (err)
		op_fail(v->op, err_new(err_code(err), "from: %s", err->message));
	else
		op_next(v->op);
}

static void clone_verify_run(Op *op, void *ctx)
{
	Saving *v = ctx;

	v->job = savedir_verify(v->dir, clone_verified, v);
}

static void clone_run(Op *op, void *ctx)
{
	SimVm *s = ((Saving *)ctx)->s;

	s->lost = false;
	sim_tell(s, VM_RUNNING, "cloned");
	sim_booted(s);
	op_next(op);
}

static void boot_run(Op *op, void *ctx)
{
	SimVm *s = ((Saving *)ctx)->s;

	s->lost = false;
	sim_tell(s, VM_RUNNING, "started");
	sim_boot(s);
	op_next(op);
}

static const Step clone_steps[] = {
	{ "verify", clone_verify_run, cancel, NULL },
	{ "load", load_run, NULL, NULL },
	{ "run", clone_run, NULL, NULL },
	{ 0 },
};

static const Step clone_stopped_steps[] = {
	{ "verify", clone_verify_run, cancel, NULL },
	{ "run", boot_run, NULL, NULL },
	{ 0 },
};

/* ---- kill ---- */

static void killed_run(Op *op, void *ctx)
{
	sim_gone(((Saving *)ctx)->s, VM_STOPPED, "killed", -1);
	op_next(op);
}

static const Step kill_steps[] = {
	{ "tidy", tidy_run, cancel, NULL },
	{ "end", killed_run, NULL, NULL },
	{ 0 },
};

static void saving_free(void *ctx)
{
	Saving *v = ctx;

	drop(v);
	if (v->s)
		v->s->saving = NULL;
	g_free(v->dir);
	g_free(v);
}

static void begin_in(SimVm *s, Op *op, const Step *steps, char *take_dir)
{
	Saving *v = g_new0(Saving, 1);

	v->s = s;
	v->op = op;
	v->dir = take_dir;
	s->saving = v;
	op_steps(op, steps, v, saving_free);
}

static void begin(SimVm *s, Op *op, const Step *steps)
{
	begin_in(s, op, steps, g_build_filename(vm_data_dir(s->base.vm), "sleep", NULL));
}

void sim_snapshot(SimVm *s, Op *op)
{
	begin_in(s, op, snapshot_steps, g_strdup(snapshot_dir(op_arg(op))));
}

void sim_restore(SimVm *s, Op *op)
{
	const Snapshot *snapshot = op_arg(op);

	begin_in(s, op, snapshot_has_memory(snapshot) ? restore_steps : restore_stopped_steps,
		 g_strdup(snapshot_dir(snapshot)));
}

void sim_clone(SimVm *s, Op *op)
{
	const ProcUser owner = { .uid = vm_uid(s->base.vm), .gid = vm_gid(s->base.vm) };
	const Snapshot *from;
	GError *err = NULL;

	if (vm_clone_source(s->base.vm, &owner, &from, &err))
		begin_in(s, op, snapshot_has_memory(from) ? clone_steps : clone_stopped_steps,
			 g_strdup(snapshot_dir(from)));
	else
		op_fail(op, err);
}

void sim_sleep(SimVm *s, Op *op)
{
	begin(s, op, sleep_steps);
}

void sim_wake(SimVm *s, Op *op)
{
	begin(s, op, wake_steps);
}

void sim_kill_memory(SimVm *s, Op *op)
{
	begin(s, op, kill_steps);
}

void sim_saved_abandon(SimVm *s)
{
	Saving *v = s->saving;

	g_clear_pointer(&s->memory, g_free);
	if (!v)
		return;
	drop(v);
	v->s = NULL;
}
