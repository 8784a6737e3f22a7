/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands in the guest, through its agent alone: nothing is plugged in, so it works on every host,
 * and with domains that others have made. The agent tells nothing by itself, so it is asked, at
 * growing pauses, and at once when there is a reason. What has been fetched is kept in a file until
 * it is read. Loop thread only; the guest's side is in execlook.c.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backends/agentexec.h"
#include "backends/libvirt/agent.h"
#include "backends/libvirt/exec.h"
#include "vmfs/err.h"
#include "vmfs/exec.h"
#include "vmfs/spool.h"

#define FIRST_PAUSE_MS 5
#define MAX_PAUSE_MS   2000
#define MAX_GIVEN      (48u << 10) /* bytes of input at once */
#define MAX_REST       (1u << 20)  /* bytes that a command may leave behind at its end */
#define MAX_REST_LOOKS 12	   /* without finding any of it: some 10 s */

typedef struct LvOut {
	Spool *spool;
	bool ack;  /* the guest does not know yet what is kept here */
	bool over; /* nothing more will come */
} LvOut;

struct LvJob {
	LvVm *lv;
	ExecJob *job;
	Op *op;	   /* while it starts or is signalled */
	char *dir; /* in the guest; nobody can guess it */
	json_int_t pid;
	bool gone;    /* it runs, and does not wait for us any more */
	Spool *input; /* that the guest does not have yet */
	json_int_t writer;
	bool eof_due, end_due;
	char *end; /* how it ended; NULL: it has not */
	LvOut out[2];
	unsigned rest_looks;
	struct LvSignal *signal; /* under way */
	LvExecLook *look;	 /* under way */
	bool again;		 /* and another one is to follow at once */
	Timer *timer;
	uint64_t pause_ms;
};

static const char *const names[] = { "out", "err", "in" };

static void ask(void *arg);

static LvJob *run_of(const ExecJob *job)
{
	return job->run;
}

static LvOut *out_of(LvJob *j, ExecStream which)
{
	return &j->out[which == EXEC_STDERR];
}

static bool has_ended(const LvJob *j)
{
	return j->job->phase == EXEC_ENDED;
}

static bool is_starting(const LvJob *j)
{
	return j->op && op_kind(j->op) == OP_EXEC;
}

/* ---- the files here ---- */

static char *spool_path(const LvJob *j, unsigned i)
{
	return g_strdup_printf("%s/exec-%u.%s", vm_run_dir(j->lv->base.vm), j->job->number,
			       names[i]);
}

static Spool *open_spool(const LvJob *j, unsigned i, bool make, GError **err)
{
	g_autofree char *path = spool_path(j, i);

	if (make)
		(void)unlink(path);
	return spool_open(path, make, err);
}

static bool open_spools(LvJob *j, bool make, GError **err)
{
	Vm *vm = j->lv->base.vm;

	if (make && access(vm_run_dir(vm), F_OK) && !vm_make_run_dir(vm, err))
		return false;
	j->out[0].spool = open_spool(j, 0, make, err);
	if (j->out[0].spool)
		j->out[1].spool = open_spool(j, 1, make, err);
	if (j->out[1].spool)
		j->input = open_spool(j, 2, make, err);
	return j->input;
}

static void drop(ExecJob *job)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autofree char *path = spool_path(run_of(job), i);

		(void)unlink(path);
	}
	(void)rmdir(vm_run_dir(job->vm)); /* if that was the last */
}

/* ---- looking ---- */

static void ask_at(LvJob *j, uint64_t ms)
{
	timer_stop(&j->timer);
	j->timer = timer_start(ms, ask, j);
}

static void ask_soon(LvJob *j)
{
	if (has_ended(j))
		return;
	j->pause_ms = FIRST_PAUSE_MS;
	j->again = true;
	if (!j->look)
		ask_at(j, 0);
}

static void ask_later(LvJob *j)
{
	if (has_ended(j))
		return;
	if (j->again) {
		ask_soon(j);
		return;
	}
	ask_at(j, j->pause_ms);
	j->pause_ms = MIN(j->pause_ms * 2, MAX_PAUSE_MS);
}

static void looked(LvCall *c);

static LvExecLook *look_new(const LvJob *j)
{
	LvExecLook *l = g_new0(LvExecLook, 1);

	l->dir = g_strdup(j->dir);
	l->pid = j->pid;
	return l;
}

static bool send_look(LvJob *j, LvExecLook *l, GError **err)
{
	LvCall *c = lv_call_new(j->lv, lv_exec_work, looked, err);

	if (!c) {
		lv_exec_look_free(l);
		return false;
	}
	c->guest = true;
	c->arg = l;
	lv_call_send(c);
	return true;
}

/* The guest has nothing more of it that anybody wants. */
static void clean_guest(LvJob *j)
{
	LvExecLook *l = look_new(j);

	l->quit = true;
	(void)send_look(j, l, NULL);
}

static void ask(void *arg)
{
	LvJob *j = arg;
	LvExecLook *l;

	j->timer = NULL;
	/* It is looked at again when it runs. */
	if (has_ended(j) || j->look || j->lv->base.vm->pushed != VM_RUNNING)
		return;
	l = look_new(j);
	l->gone = j->gone;
	l->end = j->end_due;
	l->ended = j->end;
	l->writer = j->writer;
	if (!j->writer && spool_len(j->input))
		l->input = spool_peek(j->input);
	l->number = spool_last(j->input);
	l->eof = j->eof_due && (l->input || !spool_len(j->input));
	for (unsigned i = 0; i < G_N_ELEMENTS(j->out); i++) {
		const LvOut *out = &j->out[i];

		l->out[i].taken = spool_last(out->spool);
		l->out[i].ack = out->ack;
		l->out[i].wanted = !out->over && (j->end || !spool_len(out->spool));
	}
	l->job = j;
	j->look = l;
	j->again = false;
	if (!send_look(j, l, NULL))
		j->look = NULL; /* the host is away */
}

void lv_exec_look(LvVm *lv)
{
	Vm *vm = lv->base.vm;

	for (ExecJob *job = exec_after(vm, 0); job; job = exec_after(vm, job->number)) {
		LvJob *j = job->run;

		if (j && (j->pid || is_starting(j)) && !j->look && !j->timer)
			ask_soon(j);
	}
}

/* ---- what was found ---- */

static void begun(LvJob *j)
{
	Op *op = g_steal_pointer(&j->op);

	op_next(op);
}

/* It ends when all is here that it has printed. */
static void end_if_over(LvJob *j)
{
	if (!j->end || !j->out[0].over || !j->out[1].over)
		return;
	clean_guest(j);
	exec_ended(j->job, "%s", j->end);
}

/* What was printed after the end is somebody else's, who goes on. */
static size_t own_part(const LvJob *j, const LvLookOut *found, bool *over)
{
	const guint8 *mark =
		j->end ? memmem(found->bytes->data, found->bytes->len, j->dir, strlen(j->dir))
		       : NULL;

	*over = mark;
	return mark ? (size_t)(mark - found->bytes->data) : found->bytes->len;
}

static bool take_output(LvJob *j, unsigned i, const LvLookOut *found)
{
	LvOut *out = &j->out[i];
	g_autoptr(GError) e = NULL;
	bool over;

	out->ack = found->ack;
	if (!found->bytes)
		return false;
	if (!spool_add(out->spool, found->number, found->bytes->data, own_part(j, found, &over),
		       &e)) {
		vm_set_error(j->lv->base.vm, "exec", e);
		return false;
	}
	out->ack = true;
	out->over = over || (j->end && spool_len(out->spool) > MAX_REST);
	return true;
}

static void take_input(LvJob *j, const LvExecLook *l)
{
	const json_int_t before = j->writer;

	/* Who has it writes it, whatever becomes of us. */
	if (l->input && l->writer)
		spool_clear(j->input);
	j->writer = l->written ? 0 : l->writer;
	j->eof_due = j->eof_due && !l->eof_said;
	if (j->writer != before)
		backend_changed(&j->lv->base);
}

/* false: it could not be started, and j is no more. */
static bool take_status(LvJob *j, const LvExecLook *l)
{
	g_autofree char *why = NULL;

	if (!json_is_true(json_object_get(l->status, "exited")))
		return true;
	why = agentexec_complaint(l->status);
	if (is_starting(j) && (why || !j->gone)) {
		op_fail(j->op, err_new(EIO, "the guest cannot run it: %s",
				       why ? why : "its shell ends at once"));
		return false;
	}
	j->end = agentexec_end(l->status);
	if (!j->end)
		j->end = g_strdup("lost agent");
	j->end_due = true;
	backend_changed(&j->lv->base);
	return true;
}

static bool is_silence(int code)
{
	return code == ETIMEDOUT || code == EHOSTDOWN || code == EBUSY || code == ENOENT;
}

static void take_failure(LvJob *j, const GError *e)
{
	const bool silence = is_silence(err_code(e));

	exec_silent(j->job, silence);
	if (is_starting(j) && !j->pid) {
		op_fail(j->op, g_error_copy(e));
	} else if (silence || is_starting(j) || j->end) {
		end_if_over(j);
		ask_later(j);
	} else { /* it is another agent, which does not know of it */
		exec_ended(j->job, "lost agent");
	}
}

/* true: it has more, or will have soon. */
static bool take_found(LvJob *j, const LvExecLook *l)
{
	bool more = l->written || (l->input && l->writer);

	j->pid = l->pid;
	j->gone = l->gone;
	j->end_due = j->end_due && !l->end_said;
	take_input(j, l);
	for (unsigned i = 0; i < G_N_ELEMENTS(j->out); i++)
		more = take_output(j, i, &l->out[i]) || more;
	if (j->end && !j->end_due && !more && ++j->rest_looks == MAX_REST_LOOKS)
		j->out[0].over = j->out[1].over = true;
	if (more)
		exec_look_again(j->job);
	return more;
}

static void take_look(LvJob *j, const LvExecLook *l, bool more)
{
	exec_silent(j->job, false);
	if (is_starting(j) && j->gone)
		begun(j);
	if (!take_status(j, l))
		return;
	end_if_over(j);
	if (more || l->command || (j->end && !l->ended))
		ask_soon(j);
	else
		ask_later(j);
}

static void looked(LvCall *c)
{
	LvExecLook *l = c->arg;
	LvJob *j = l->job;

	if (j) {
		j->look = NULL;
		const bool more = take_found(j, l);
		if (c->error)
			take_failure(j, c->error);
		else
			take_look(j, l, more);
	}
	lv_exec_look_free(l);
}

/* ---- starting ---- */

static void free_run(LvJob *j)
{
	timer_stop(&j->timer);
	if (j->look)
		j->look->job = NULL;
	for (unsigned i = 0; i < G_N_ELEMENTS(j->out); i++)
		spool_close(j->out[i].spool);
	spool_close(j->input);
	j->job->run = NULL;
	g_free(j->dir);
	g_free(j->end);
	g_free(j);
}

static LvJob *new_run(LvVm *lv, ExecJob *job)
{
	LvJob *j = g_new0(LvJob, 1);

	j->lv = lv;
	j->job = job;
	j->pause_ms = FIRST_PAUSE_MS;
	job->run = j;
	return j;
}

static void guest_run(Op *op, void *ctx)
{
	LvJob *j = ctx;
	g_autofree char *id = g_uuid_string_random();
	GError *e = NULL;
	LvExecLook *l;

	j->dir = g_strconcat("vmfs-exec-", id, NULL);
	if (!open_spools(j, true, &e)) {
		op_fail(op, e);
		return;
	}
	l = look_new(j);
	l->command = g_strdup(j->job->command);
	l->job = j;
	j->look = l;
	if (!send_look(j, l, &e)) {
		j->look = NULL;
		op_fail(op, e);
	}
}

static void guest_cancel(Op *op, void *ctx)
{
	LvJob *j = ctx;

	(void)op;
	timer_stop(&j->timer);
	if (j->look)
		j->look->job = NULL;
	j->look = NULL;
}

static void guest_undo(Op *op, void *ctx)
{
	LvJob *j = ctx;

	clean_guest(j);
	drop(j->job);
	free_run(j);
	op_next(op);
}

static const Step steps[] = {
	{ "guest", guest_run, guest_cancel, guest_undo },
	{ 0 },
};

static bool check_agent(const LvVm *lv, GError **err)
{
	if (!lv_host_need(lv->host, err))
		return false;
	return lv->base.vm->agent ||
	       err_set(err, ENXIO,
		       "the guest's agent is not there: it has not started yet, or "
		       "qemu-guest-agent is not installed; wait/agent waits for it");
}

void lv_exec_start(BackendVm *bv, Op *op)
{
	GError *e = NULL;
	LvJob *j;

	if (!check_agent(lv_of(bv), &e)) {
		op_fail(op, e);
		return;
	}
	j = new_run(lv_of(bv), op_arg(op));
	j->op = op;
	op_steps(op, steps, j, NULL);
}

typedef struct LvSignal {
	LvJob *job;   /* NULL: nobody waits for it any more */
	json_t *args; /* NULL: taken */
} LvSignal;

static bool work_signal(LvCall *c, GError **err)
{
	LvSignal *s = c->arg;
	json_t *done = lv_agent_ask(c->dom, "guest-exec", g_steal_pointer(&s->args), err);
	const bool ok = done != NULL;

	json_decref(done);
	return ok;
}

static void signalled(LvCall *c)
{
	LvSignal *s = c->arg;
	LvJob *j = s->job;

	if (j) {
		Op *op = g_steal_pointer(&j->op);

		j->signal = NULL;
		if (c->error)
			op_fail(op, g_steal_pointer(&c->error));
		else
			op_ok(op);
		ask_soon(j);
	}
	json_decref(s->args);
	g_free(s);
}

static void signal_cancel(Op *op, void *ctx)
{
	LvJob *j = ctx;

	(void)op;
	if (j->signal)
		j->signal->job = NULL;
	j->signal = NULL;
	j->op = NULL;
}

void lv_exec_signal(BackendVm *bv, Op *op)
{
	LvVm *lv = lv_of(bv);
	LvJob *j = run_of(op_arg(op));
	GError *e = NULL;
	LvCall *c;

	if (!check_agent(lv, &e) || !(c = lv_call_new(lv, work_signal, signalled, &e))) {
		op_fail(op, e);
		return;
	}
	j->op = op;
	op_on_cancel(op, signal_cancel, j);
	j->signal = g_new0(LvSignal, 1);
	j->signal->job = j;
	j->signal->args = agentexec_signal(j->pid, j->job->signal);
	c->guest = true;
	c->arg = j->signal;
	lv_call_send(c);
}

/* ---- streams ---- */

static bool ready(ExecJob *job, ExecStream which)
{
	LvJob *j = run_of(job);

	return spool_len(out_of(j, which)->spool) || has_ended(j);
}

static ssize_t read_output(ExecJob *job, ExecStream which, char *buf, size_t size)
{
	LvJob *j = run_of(job);
	Spool *spool = out_of(j, which)->spool;
	const size_t n = spool_take(spool, buf, size);

	if (n && !spool_len(spool))
		ask_soon(j);
	if (n)
		return (ssize_t)n;
	return has_ended(j) ? 0 : -EAGAIN;
}

static size_t write_input(ExecJob *job, const char *data, size_t len)
{
	LvJob *j = run_of(job);
	const size_t n = spool_len(j->input) ? 0 : MIN(len, MAX_GIVEN);

	if (!n || !spool_add(j->input, spool_last(j->input) + 1, data, n, NULL))
		return 0;
	ask_soon(j);
	return n;
}

static void close_input(ExecJob *job)
{
	run_of(job)->eof_due = true;
	ask_soon(run_of(job));
}

/* ---- the rest of its life ---- */

static void forget(ExecJob *job)
{
	LvJob *j = run_of(job);

	if (j->op && !is_starting(j))
		signal_cancel(j->op, j);
	free_run(j);
}

static void save(const ExecJob *job, GKeyFile *run, const char *group)
{
	const LvJob *j = run_of(job);

	g_key_file_set_string(run, group, "dir", j->dir ? j->dir : "");
	g_key_file_set_int64(run, group, "pid", j->pid);
	g_key_file_set_int64(run, group, "writer", j->writer);
	if (j->end)
		g_key_file_set_string(run, group, "ended", j->end);
}

static bool adopt(BackendVm *bv, ExecJob *job, GKeyFile *run, const char *group)
{
	LvJob *j = new_run(lv_of(bv), job);

	j->dir = g_key_file_get_string(run, group, "dir", NULL);
	j->pid = g_key_file_get_int64(run, group, "pid", NULL);
	j->writer = g_key_file_get_int64(run, group, "writer", NULL);
	j->end = g_key_file_get_string(run, group, "ended", NULL);
	j->end_due = j->end;
	j->eof_due = job->input_closed;
	j->gone = true;
	if (!j->dir || j->pid < 2 || !open_spools(j, false, NULL)) {
		if (j->dir && *j->dir && !has_ended(j))
			clean_guest(j);
		free_run(j);
		return false;
	}
	for (unsigned i = 0; i < G_N_ELEMENTS(j->out); i++)
		j->out[i].ack = true;
	ask_soon(j);
	return true;
}

const ExecClass lv_exec = {
	.read = read_output,
	.ready = ready,
	.write = write_input,
	.close_input = close_input,
	.drop = drop,
	.forget = forget,
	.save = save,
	.adopt = adopt,
};
