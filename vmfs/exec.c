/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/exec.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/node.h"
#include "vmfs/notify.h"
#include "vmfs/registry.h"
#include "vmfs/vm.h"
#include "vmfs/waitq.h"

#define GROUP	   "exec %u"
#define MAX_NUMBER 0xffffffu /* what an inode number has room for */

struct Exec {
	GPtrArray *jobs; /* of ExecJob, by number */
	uint32_t last;	 /* number given out */
	GQueue waiters;
};

static const char *const stream_names[EXEC_STREAMS] = { "stdin", "stdout", "stderr" };

static Exec *exec_of(Vm *vm)
{
	if (!vm->exec) {
		vm->exec = g_new0(Exec, 1);
		vm->exec->jobs = g_ptr_array_new();
		g_queue_init(&vm->exec->waiters);
	}
	return vm->exec;
}

static const ExecClass *class_of(const Vm *vm)
{
	return vm->bv ? vm->bv->be->cls->exec : NULL;
}

/* Of a job that runs: its backend is there for as long. */
static const ExecClass *class_of_run(const ExecJob *job)
{
	const ExecClass *cls = class_of(job->vm);

	g_assert(cls);
	return cls;
}

bool exec_is_possible(Vm *vm)
{
	const Backend *be = vm->bv && vm_is_live(vm) ? vm->bv->be : backend_for(vm->spec, NULL);

	return be && be->cls->exec;
}

ExecJob *exec_by_number(const Vm *vm, uint32_t number)
{
	ExecJob *job = number ? exec_after(vm, number - 1) : NULL;

	return job && job->number == number ? job : NULL;
}

ExecJob *exec_after(const Vm *vm, uint32_t number)
{
	for (unsigned i = 0; vm->exec && i < vm->exec->jobs->len; i++) {
		ExecJob *job = vm->exec->jobs->pdata[i];

		if (job->number > number)
			return job;
	}
	return NULL;
}

ExecJob *exec_find(const Vm *vm, const char *name)
{
	for (unsigned i = 0; vm->exec && i < vm->exec->jobs->len; i++) {
		ExecJob *job = vm->exec->jobs->pdata[i];

		if (!strcmp(job->name, name))
			return job;
	}
	return NULL;
}

GQueue *exec_queue(Vm *vm)
{
	return &exec_of(vm)->waiters;
}

const char *exec_status(const ExecJob *job)
{
	switch (job->phase) {
	case EXEC_NEW:
		return "new";
	case EXEC_STARTING:
	case EXEC_RUNNING:
		return "running";
	case EXEC_ENDED:
		break;
	}
	return job->end;
}

static void changed(ExecJob *job)
{
	g_autofree char *text = g_strdup_printf("%s %s", job->name, exec_status(job));
	const NodeRef dir = { .node = exec_dir.child, .vm = job->vm, .sub = job->number };

	vm_changed(job->vm, EV_EXEC);
	notify_object_change(&dir, EV_EXEC);
	events_emit_word(job->vm, "exec", text);
	waitq_wake(exec_queue(job->vm));
	vm_save_run(job->vm);
}

/* ---- making and removing ---- */

static ExecJob *job_new(Vm *vm, uint32_t number, const char *name)
{
	ExecJob *job = g_new0(ExecJob, 1);

	job->vm = vm;
	job->number = number;
	job->name = g_strdup(name);
	for (int i = 0; i < EXEC_STREAMS; i++)
		job->links[i] = g_strdup_printf("../../.io/exec/%s/%s", name, stream_names[i]);
	job->input = g_byte_array_new();
	g_ptr_array_add(exec_of(vm)->jobs, job);
	return job;
}

static void job_free(ExecJob *job)
{
	for (int i = 0; i < EXEC_STREAMS; i++)
		g_free(job->links[i]);
	g_byte_array_unref(job->input);
	g_free(job->name);
	g_free(job->command);
	g_free(job->end);
	g_free(job);
}

static bool check_make(Vm *vm, const char *name, GError **err)
{
	if (vm->state != VM_RUNNING && vm->state != VM_PAUSED)
		return err_set(err, ESRCH,
			       "it is %s, and a command needs a guest that runs; 'start' it first",
			       vm_state_name(vm->state));
	if (exec_of(vm)->jobs->len >= EXEC_MAX_JOBS)
		return err_set(err, ENOSPC,
			       "a VM has at most %d jobs; rmdir one that has ended first",
			       EXEC_MAX_JOBS);
	if (exec_of(vm)->last == MAX_NUMBER)
		return err_set(err, ENOSPC, "all numbers of jobs are used up until it is stopped");
	if (registry_check_name(name))
		return err_set(err, registry_check_name(name),
			       "a job's name is up to 63 letters, digits, '.', '_' and '-', and "
			       "does not begin with a sign");
	return true;
}

ExecJob *exec_make(Vm *vm, const char *name, GError **err)
{
	GError *e = NULL;
	ExecJob *job;

	if (!check_make(vm, name, &e)) {
		vm_set_error(vm, "exec", e);
		g_propagate_error(err, e);
		return NULL;
	}
	job = job_new(vm, ++exec_of(vm)->last, name);
	changed(job);
	return job;
}

static void forget(ExecJob *job)
{
	Vm *vm = job->vm;

	if (job->run)
		class_of_run(job)->forget(job);
	op_unref(job->op);
	g_ptr_array_remove(exec_of(vm)->jobs, job);
	job_free(job);
	/* Readers find nothing any more: that is their end of file. */
	waitq_wake(exec_queue(vm));
}

bool exec_remove(ExecJob *job, GError **err)
{
	Vm *vm = job->vm;

	if (job->op || (job->phase == EXEC_RUNNING && !job->silent)) {
		GError *e =
			err_new(EBUSY, "job '%s' runs; write 'signal 9' to its status to end it",
				job->name);

		vm_set_error(vm, "exec", e);
		g_propagate_error(err, e);
		return false;
	}
	if (job->run)
		class_of_run(job)->drop(job);
	forget(job);
	vm_changed(vm, EV_EXEC);
	vm_save_run(vm);
	return true;
}

bool exec_make_way(Vm *vm, GError **err)
{
	for (unsigned i = 0; vm->exec && i < vm->exec->jobs->len; i++) {
		const ExecJob *job = vm->exec->jobs->pdata[i];

		if (job->op || job->phase == EXEC_RUNNING)
			return err_set(err, EBUSY,
				       "the command of exec/%s runs, and would be lost; wait for "
				       "its end, or write 'signal 9' to its status",
				       job->name);
	}
	for (unsigned i = 0; vm->exec && i < vm->exec->jobs->len; i++) {
		ExecJob *job = vm->exec->jobs->pdata[i];

		if (job->run)
			class_of_run(job)->drop(job);
	}
	return true;
}

void exec_forget_all(Vm *vm)
{
	while (vm->exec && vm->exec->jobs->len)
		forget(vm->exec->jobs->pdata[0]);
}

void exec_free(Vm *vm)
{
	if (!vm->exec)
		return;
	exec_forget_all(vm);
	g_ptr_array_unref(vm->exec->jobs);
	g_clear_pointer(&vm->exec, g_free);
}

/* ---- running ---- */

/* Give the guest what was written before it was there, and the end of it. */
static void flush(ExecJob *job)
{
	const ExecClass *cls = class_of(job->vm);

	if (job->phase != EXEC_RUNNING)
		return;
	while (job->input->len) {
		const size_t n = cls->write(job, (char *)job->input->data, job->input->len);

		if (!n)
			return;
		g_byte_array_remove_range(job->input, 0, (guint)n);
	}
	if (job->input_closed && !job->input_ended)
		cls->close_input(job);
	job->input_ended = job->input_closed;
}

static void run_op(void *bv, Op *op)
{
	BackendVm *b = bv;

	b->be->cls->op[op_kind(op)](b, op);
}

/* These are beside the VM's one operation: several jobs may start while it is, say, paused. */
static void begin(ExecJob *job, OpKind kind, void (*ended)(Op *op), Op **ret)
{
	job->op = op_new(job->vm, verb_of(kind), 0, job, NULL);
	*ret = op_ref(job->op);
	op_start(job->op, run_op, job->vm->bv, ended);
}

static void end_op(ExecJob *job, Op *op)
{
	vm_set_error(job->vm, "exec", op_error(op));
	job->op = NULL;
	op_unref(op);
}

static void started(Op *op)
{
	ExecJob *job = op_arg(op);

	if (job->phase == EXEC_STARTING)
		job->phase = op_error(op) ? EXEC_NEW : EXEC_RUNNING;
	if (op_error(op))
		g_clear_pointer(&job->command, g_free);
	end_op(job, op);
	changed(job);
	flush(job);
}

static void signalled(Op *op)
{
	end_op(op_arg(op), op);
}

static bool check_guest(const Vm *vm, GError **err)
{
	if (vm->state == VM_PAUSED)
		return err_set(err, EBUSY, "it is paused, and its guest does nothing; 'resume' it");
	if (vm->state != VM_RUNNING)
		return err_set(err, ESRCH, "it is %s; there is no guest to run a command",
			       vm_state_name(vm->state));
	if (!class_of(vm))
		return err_set(err, EOPNOTSUPP, "its backend cannot run commands in a guest");
	return true;
}

static bool check_run(const ExecJob *job, const char *text, size_t len, GError **err)
{
	if (job->op || job->phase == EXEC_RUNNING)
		return err_set(err, EBUSY, "job '%s' runs a command already; make another job",
			       job->name);
	if (job->phase == EXEC_ENDED)
		return err_set(err, EALREADY, "job '%s' has run its command; make another job",
			       job->name);
	if (!len)
		return err_set(err, EINVAL, "the command is empty");
	if (len > EXEC_MAX_COMMAND)
		return err_set(err, E2BIG,
			       "a command has at most %u bytes; write what is longer "
			       "to stdin, of 'sh' for example",
			       EXEC_MAX_COMMAND);
	if (!g_utf8_validate(text, (gssize)len, NULL))
		return err_set(err, EINVAL,
			       "a command is UTF-8 text without NUL; other bytes can "
			       "be written to stdin");
	return check_guest(job->vm, err);
}

static bool refuse(ExecJob *job, GError *e, GError **err)
{
	vm_set_error(job->vm, "exec", e);
	g_propagate_error(err, e);
	return false;
}

bool exec_run(ExecJob *job, const char *text, size_t len, Op **op, GError **err)
{
	GError *e = NULL;

	while (len && text[len - 1] == '\n')
		len--;
	if (!check_run(job, text, len, &e))
		return refuse(job, e, err);
	job->command = g_strndup(text, len);
	job->phase = EXEC_STARTING;
	begin(job, OP_EXEC, started, op);
	return true;
}

bool exec_order(ExecJob *job, const char *text, size_t len, Op **op, GError **err)
{
	g_autofree char *line = g_strndup(text, MIN(len, 64));
	GError *e = NULL;
	int n = 0;

	if (sscanf(line, " signal %d %n", &job->signal, &n) != 1 || line[n] || job->signal < 1 ||
	    job->signal > EXEC_MAX_SIGNAL)
		(void)err_set(&e, EINVAL, "write 'signal' and a number from 1 to %d, as signal 15",
			      EXEC_MAX_SIGNAL);
	else if (job->op)
		(void)err_set(&e, EBUSY, "job '%s' is being started or signalled", job->name);
	else if (job->phase != EXEC_RUNNING)
		(void)err_set(&e, ESRCH, "job '%s' does not run: %s", job->name, exec_status(job));
	else
		(void)check_guest(job->vm, &e);
	if (e)
		return refuse(job, e, err);
	begin(job, OP_EXEC_SIGNAL, signalled, op);
	return true;
}

void exec_ended(ExecJob *job, const char *fmt, ...)
{
	va_list ap;

	if (job->phase != EXEC_RUNNING)
		return;
	va_start(ap, fmt);
	job->end = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	job->phase = EXEC_ENDED;
	job->silent = false;
	g_byte_array_set_size(job->input, 0);
	changed(job);
}

void exec_silent(ExecJob *job, bool silent)
{
	job->silent = silent;
}

void exec_lost(BackendVm *bv, const char *why)
{
	Exec *x = bv->vm->exec;

	for (unsigned i = 0; x && i < x->jobs->len; i++) {
		ExecJob *job = x->jobs->pdata[i];

		if (job->phase == EXEC_RUNNING)
			exec_ended(job, "lost %s", why);
	}
}

void exec_end_all(Vm *vm, const char *why)
{
	for (unsigned i = 0; vm->exec && i < vm->exec->jobs->len; i++) {
		ExecJob *job = vm->exec->jobs->pdata[i];

		if (job->op)
			op_cancel(job->op, err_new(ESRCH, "the VM has ended (%s)", why));
	}
	if (vm->bv)
		exec_lost(vm->bv, why);
}

/* ---- streams ---- */

ssize_t exec_read(ExecJob *job, ExecStream which, char *buf, size_t size)
{
	if (!job)
		return 0;
	if (!job->run)
		return job->phase == EXEC_ENDED ? 0 : -EAGAIN;
	return class_of_run(job)->read(job, which, buf, size);
}

bool exec_ready(ExecJob *job, ExecStream which)
{
	if (!job)
		return true;
	if (!job->run)
		return job->phase == EXEC_ENDED;
	return class_of_run(job)->ready(job, which);
}

ssize_t exec_write(ExecJob *job, const char *data, size_t len)
{
	size_t n;

	if (!job || job->phase == EXEC_ENDED || job->input_closed)
		return -EPIPE;
	if (job->phase == EXEC_RUNNING) {
		n = job->input->len ? 0 : class_of_run(job)->write(job, data, len);
	} else {
		n = MIN(len, EXEC_MAX_INPUT - job->input->len);
		g_byte_array_append(job->input, (const guint8 *)data, (guint)n);
	}
	return n || !len ? (ssize_t)n : -EAGAIN;
}

void exec_look_again(ExecJob *job)
{
	flush(job);
	waitq_wake(exec_queue(job->vm));
}

void exec_open_input(ExecJob *job)
{
	if (job)
		job->writers++;
}

void exec_close_input(ExecJob *job)
{
	if (!job || job->input_closed)
		return;
	/* One that a former daemon had opened was not counted. */
	if (job->writers)
		job->writers--;
	if (job->writers)
		return;
	job->input_closed = true;
	flush(job);
	vm_save_run(job->vm);
}

/* ---- what a restarted daemon must know ---- */

static bool is_job_group(const char *group, unsigned *number)
{
	return sscanf(group, GROUP, number) == 1 && *number && *number <= MAX_NUMBER;
}

/* Until the run is adopted, what is stored of its jobs stays stored. */
static void keep_saved(GKeyFile *from, GKeyFile *to)
{
	g_auto(GStrv) groups = g_key_file_get_groups(from, NULL);
	unsigned number;

	g_key_file_set_uint64(to, "vm", "jobs", g_key_file_get_uint64(from, "vm", "jobs", NULL));
	for (unsigned i = 0; groups[i]; i++) {
		g_auto(GStrv) keys = is_job_group(groups[i], &number)
					     ? g_key_file_get_keys(from, groups[i], NULL, NULL)
					     : NULL;

		for (unsigned k = 0; keys && keys[k]; k++) {
			g_autofree char *value =
				g_key_file_get_value(from, groups[i], keys[k], NULL);

			g_key_file_set_value(to, groups[i], keys[k], value);
		}
	}
}

void exec_save(const Vm *vm, GKeyFile *run)
{
	const ExecClass *cls = class_of(vm);

	if (vm->run)
		keep_saved(vm->run, run);
	if (!vm->exec || !cls)
		return;
	g_key_file_set_uint64(run, "vm", "jobs", vm->exec->last);
	for (unsigned i = 0; i < vm->exec->jobs->len; i++) {
		const ExecJob *job = vm->exec->jobs->pdata[i];
		g_autofree char *group = g_strdup_printf(GROUP, job->number);

		g_key_file_set_string(run, group, "name", job->name);
		g_key_file_set_boolean(run, group, "input_closed", job->input_closed);
		if (job->command)
			g_key_file_set_string(run, group, "command", job->command);
		if (job->end)
			g_key_file_set_string(run, group, "end", job->end);
		if (job->run)
			cls->save(job, run, group);
	}
}

static void adopt_job(Vm *vm, GKeyFile *run, const char *group, uint32_t number, bool live)
{
	g_autofree char *name = g_key_file_get_string(run, group, "name", NULL);
	const ExecClass *cls = class_of(vm);
	ExecJob *job;

	if (!name || registry_check_name(name) || exec_find(vm, name))
		return;
	job = job_new(vm, number, name);
	job->command = g_key_file_get_string(run, group, "command", NULL);
	job->end = g_key_file_get_string(run, group, "end", NULL);
	job->input_closed = g_key_file_get_boolean(run, group, "input_closed", NULL);
	job->phase = job->end ? EXEC_ENDED : job->command ? EXEC_RUNNING : EXEC_NEW;
	if (job->phase != EXEC_NEW && !(live && cls->adopt(vm->bv, job, run, group)))
		exec_ended(job, "lost %s", live ? "restart" : vm_state_name(vm->state));
}

void exec_adopt(Vm *vm, GKeyFile *run, bool live)
{
	g_auto(GStrv) groups = g_key_file_get_groups(run, NULL);
	const guint64 last = g_key_file_get_uint64(run, "vm", "jobs", NULL);
	unsigned number;

	if (!class_of(vm))
		return;
	for (unsigned i = 0; groups[i]; i++)
		if (is_job_group(groups[i], &number) && exec_of(vm)->jobs->len < EXEC_MAX_JOBS &&
		    !exec_after(vm, number - 1))
			adopt_job(vm, run, groups[i], number, live);
	/* Also when no job is left: what they had in the VMM may be. */
	if (vm->exec || last)
		exec_of(vm)->last = (uint32_t)MIN(last, MAX_NUMBER);
}
