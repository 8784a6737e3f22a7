/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/sim/exec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/sim/sim.h"
#include "vmfs/err.h"
#include "vmfs/exec.h"
#include "vmfs/loop.h"

#define ROOM	    (64u << 10) /* bytes between the guest and a reader, as in a pipe */
#define MAX_SLEEP_S 86400.0

typedef enum Program { PROGRAM_NONE, PROGRAM_CAT, PROGRAM_YES } Program;

typedef struct SimJob {
	ExecJob *job;
	Op *op; /* while it starts */
	Program program;
	GString *out[EXEC_STREAMS];
	size_t yes; /* bytes it has printed */
	bool input_closed;
	Timer *timer; /* of its start, then of its end */
	Timer *wake;  /* to tell of what changed: never from within a call */
	char *end;    /* what it then ends with */
} SimJob;

static SimJob *run_of(const ExecJob *job)
{
	return job->run;
}

static void wake(void *arg)
{
	SimJob *j = arg;

	j->wake = NULL;
	if (j->program == PROGRAM_CAT && j->input_closed)
		exec_ended(j->job, "exit 0");
	exec_look_again(j->job);
}

static void wake_later(SimJob *j)
{
	if (!j->wake)
		j->wake = timer_start(0, wake, j);
}

static void ended(void *arg)
{
	SimJob *j = arg;

	j->timer = NULL;
	exec_ended(j->job, "%s", j->end);
}

static void end_after(SimJob *j, double seconds, char *end_take)
{
	g_free(j->end);
	j->end = end_take;
	timer_stop(&j->timer);
	j->timer = timer_start((uint64_t)(CLAMP(seconds, 0, MAX_SLEEP_S) * 1000), ended, j);
}

/* A line of a shell that knows few words: `WORD ARGUMENTS [>&2]`. */
static void run_command(SimJob *j)
{
	g_autofree char *text = g_strdup(j->job->command);
	const bool to_stderr = g_str_has_suffix(text, ">&2");
	GString *out = j->out[to_stderr ? EXEC_STDERR : EXEC_STDOUT];
	const char *args;
	char *space;

	if (to_stderr)
		text[strlen(text) - 3] = 0;
	g_strstrip(text);
	space = strchr(text, ' ');
	args = space ? space + 1 : "";
	if (space)
		*space = 0;
	if (!strcmp(text, "cat")) {
		j->program = PROGRAM_CAT;
	} else if (!strcmp(text, "yes")) {
		j->program = PROGRAM_YES;
	} else if (!strcmp(text, "sleep")) {
		end_after(j, g_ascii_strtod(args, NULL), g_strdup("exit 0"));
	} else if (!strcmp(text, "exit")) {
		end_after(j, 0, g_strdup_printf("exit %d", atoi(args) & 0xff));
	} else if (!strcmp(text, "echo") || !strcmp(text, "true")) {
		if (*text == 'e')
			g_string_append_printf(out, "%s\n", args);
		end_after(j, 0, g_strdup("exit 0"));
	} else if (!strcmp(text, "false")) {
		end_after(j, 0, g_strdup("exit 1"));
	} else {
		g_string_append_printf(j->out[EXEC_STDERR], "sh: %s: not found\n", text);
		end_after(j, 0, g_strdup("exit 127"));
	}
}

static void forget(ExecJob *job)
{
	SimJob *j = run_of(job);

	timer_stop(&j->timer);
	timer_stop(&j->wake);
	for (int i = 0; i < EXEC_STREAMS; i++)
		g_string_free(j->out[i], TRUE);
	g_free(j->end);
	g_free(j);
	job->run = NULL;
}

static void start(void *arg)
{
	SimJob *j = arg;
	Op *op = g_steal_pointer(&j->op);

	j->timer = NULL;
	run_command(j);
	op_ok(op);
	wake_later(j);
}

static void cancelled(Op *op, void *ctx)
{
	const SimJob *j = ctx;

	(void)op;
	forget(j->job);
}

static void start_job(Op *op, uint64_t delay_ms)
{
	ExecJob *job = op_arg(op);
	SimJob *j = g_new0(SimJob, 1);

	for (int i = 0; i < EXEC_STREAMS; i++)
		j->out[i] = g_string_new(NULL);
	j->job = job;
	j->op = op;
	job->run = j;
	op_on_cancel(op, cancelled, j);
	if (delay_ms)
		j->timer = timer_start(delay_ms, start, j);
	else
		start(j);
}

static void signal_job(Op *op)
{
	SimJob *j = run_of(op_arg(op));

	end_after(j, 0, g_strdup_printf("signal %d", j->job->signal));
	op_ok(op);
}

void sim_exec_op(BackendVm *bv, Op *op)
{
	SimVm *s = sim_from(bv);
	const Fault f = s->faults[op_kind(op)];

	if (f.kind == FAULT_FAIL) {
		s->faults[op_kind(op)].kind = FAULT_NONE;
		op_fail(op, err_new(f.code, "the simulated guest says: %s", g_strerror(f.code)));
	} else if (!s->agent) {
		op_fail(op, err_new(ENXIO, "the guest's agent is not there"));
	} else if (f.kind != FAULT_HANG && op_kind(op) == OP_EXEC) {
		start_job(op, f.kind == FAULT_SLOW ? f.ms : 0);
	} else if (f.kind != FAULT_HANG) {
		signal_job(op);
	}
}

static bool is_running(const SimJob *j)
{
	return j->job->phase != EXEC_ENDED;
}

static bool says_yes(const SimJob *j, ExecStream which)
{
	return j->program == PROGRAM_YES && which == EXEC_STDOUT && is_running(j);
}

static bool ready(ExecJob *job, ExecStream which)
{
	const SimJob *j = run_of(job);

	return j->out[which]->len || says_yes(j, which) || !is_running(j);
}

static ssize_t read_output(ExecJob *job, ExecStream which, char *buf, size_t size)
{
	SimJob *j = run_of(job);
	const size_t n = MIN(size, j->out[which]->len);

	if (n) {
		memcpy(buf, j->out[which]->str, n);
		g_string_erase(j->out[which], 0, (gssize)n);
		wake_later(j);
		return (ssize_t)n;
	}
	if (says_yes(j, which)) {
		for (size_t i = 0; i < size; i++)
			buf[i] = j->yes++ % 2 ? '\n' : 'y';
		return (ssize_t)size;
	}
	return is_running(j) ? -EAGAIN : 0;
}

/* Only cat reads: what others are given stays in the pipe. */
static size_t write_input(ExecJob *job, const char *data, size_t len)
{
	SimJob *j = run_of(job);
	GString *to = j->out[j->program == PROGRAM_CAT ? EXEC_STDOUT : EXEC_STDIN];
	const size_t n = MIN(len, ROOM - MIN(to->len, ROOM));

	g_string_append_len(to, data, (gssize)n);
	if (n)
		wake_later(j);
	return n;
}

static void close_input(ExecJob *job)
{
	SimJob *j = run_of(job);

	j->input_closed = true;
	wake_later(j);
}

static void drop(ExecJob *job)
{
	(void)job;
}

static void save(const ExecJob *job, GKeyFile *run, const char *group)
{
	(void)job;
	(void)run;
	(void)group;
}

/* The simulated guest lives in the daemon, and its commands end with it. */
static bool adopt(BackendVm *bv, ExecJob *job, GKeyFile *run, const char *group)
{
	(void)bv;
	(void)job;
	(void)run;
	(void)group;
	return false;
}

const ExecClass sim_exec = {
	.read = read_output,
	.ready = ready,
	.write = write_input,
	.close_input = close_input,
	.drop = drop,
	.forget = forget,
	.save = save,
	.adopt = adopt,
};
