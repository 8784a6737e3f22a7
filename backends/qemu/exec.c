/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands in the guest. The agent starts one, and tells how it ended; its stdin, stdout and stderr
 * are virtio ports that are plugged in for it, and FIFOs on this side. So nothing passes through
 * the agent, a full FIFO makes the guest wait, and as QEMU holds both ends of each, what is in them
 * outlives the daemon. The agent is asked for the end at growing pauses, and at once when the
 * guest closes a port. Loop thread only.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/agentexec.h"
#include "backends/qemu/qemu.h"
#include "vmfs/err.h"
#include "vmfs/exec.h"

#define AGENT_TIMEOUT_MS 5000
#define FIRST_PAUSE_MS	 5
#define MAX_PAUSE_MS	 2000
#define RETRY_MS	 200
/*
 * After its end, what the guest had written may still be in QEMU, waiting for room in a FIFO that
 * was full. QEMU sees that there is room, and fills it, in its main loop's next turns; as often as
 * it answers us, it has had one.
 */
#define SETTLE_TURNS 5

typedef struct QemuJob {
	QemuVm *q;
	ExecJob *job;
	Op *op; /* while it starts or is signalled */
	json_int_t pid;
	int fds[EXEC_STREAMS];	      /* of the FIFOs; -1: closed */
	Watch *watches[EXEC_STREAMS]; /* while somebody waits */
	QmpSlot *slots[7];
	unsigned unanswered; /* of them */
	bool eof_due;	     /* the guest could not be told yet */
	bool opened;	     /* by the guest */
	Timer *timer;	     /* until the agent is asked again */
	uint64_t pause_ms;
	QmpSlot *turn;
	unsigned turns;
	Timer *retry; /* of a turn */
	bool settled; /* what is in the FIFOs now is the rest */
} QemuJob;

static const char *const stream_names[EXEC_STREAMS] = { "in", "out", "err" };

/* $1: the ports' names up to the last word, $2: the command line. */
static const char wrapper[] =
	"port() {\n"
	"	i=0\n"
	"	while [ $i -lt 50 ]; do\n"
	"		for p in /sys/class/virtio-ports/*; do\n"
	"			if read -r name <\"$p/name\" && [ \"$name\" = \"$1\" ]; then\n"
	"				echo \"/dev/${p##*/}\"\n"
	"				return\n"
	"			fi\n"
	"		done\n"
	"		i=$((i + 1))\n"
	"		sleep 0.1 || sleep 1\n"
	"	done 2>/dev/null\n"
	"	echo \"the guest sees no virtio port $1\" >&2\n"
	"	return 1\n"
	"}\n"
	"in=$(port \"$1.in\") && out=$(port \"$1.out\") && err=$(port \"$1.err\") || exit 125\n"
	"exec <\"$in\" || exit 125\n"
	/* At its end until the guest has heard that somebody is at the other side. */
	"i=0\n"
	"until read -r go; do\n"
	"	[ $i -lt 50 ] || { echo 'nothing came through the port' >&2; exit 125; }\n"
	"	i=$((i + 1))\n"
	"	sleep 0.1 || sleep 1\n"
	"done\n"
	"command -v setsid >/dev/null &&\n"
	"	exec setsid /bin/sh -c \"$2\" >\"$out\" 2>\"$err\"\n"
	"exec /bin/sh -c \"$2\" >\"$out\" 2>\"$err\"\n";

static QemuJob *run_of(const ExecJob *job)
{
	return job->run;
}

static bool has_ended(const QemuJob *j)
{
	return j->job->phase == EXEC_ENDED;
}

/* ---- FIFOs ---- */

/* What QEMU opens: the name itself, or with .in and .out. */
static char *fifo_base(const QemuVm *q, uint32_t number, ExecStream which)
{
	return g_strdup_printf("%s/exec-%u.%s", vm_run_dir(qemu_vm(q)), number,
			       stream_names[which]);
}

/* Called for each FIFO of the job; false ends it. */
typedef bool (*FifoFn)(const char *path);

static bool each_fifo(const QemuVm *q, uint32_t number, FifoFn fn)
{
	for (int i = 0; i < EXEC_STREAMS; i++) {
		g_autofree char *base = fifo_base(q, number, i);
		g_autofree char *in = g_strconcat(base, ".in", NULL);
		g_autofree char *out = g_strconcat(base, ".out", NULL);

		if (i == EXEC_STDIN ? !fn(base) : !(fn(in) && fn(out)))
			return false;
	}
	return true;
}

static bool make_fifo(const char *path)
{
	return !mkfifo(path, 0600);
}

static bool remove_fifo(const char *path)
{
	(void)unlink(path);
	return true;
}

static int open_fifo(const QemuVm *q, uint32_t number, ExecStream which)
{
	g_autofree char *base = fifo_base(q, number, which);
	g_autofree char *path =
		which == EXEC_STDIN ? g_strdup(base) : g_strconcat(base, ".out", NULL);
	const int access = which == EXEC_STDIN ? O_RDWR : O_RDONLY;
	int fd = open(path, access | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd >= 0 && (fstat(fd, &st) || !S_ISFIFO(st.st_mode))) {
		close(fd);
		errno = EINVAL;
		fd = -1;
	}
	return fd;
}

ProcUser qemu_owner(const QemuVm *q)
{
	const Vm *vm = qemu_vm(q);

	return (ProcUser){ .uid = vm_uid(vm),
			   .gid = vm_gid(vm),
			   .change = vm_uid(vm) != geteuid() };
}

static bool open_fifos(QemuJob *j, bool input)
{
	const ProcUser user = qemu_owner(j->q);
	const int before = qemu_as_owner(&user);
	bool ok = true;

	for (int i = input ? EXEC_STDIN : EXEC_STDOUT; ok && i < EXEC_STREAMS; i++) {
		j->fds[i] = open_fifo(j->q, j->job->number, i);
		ok = j->fds[i] >= 0;
	}
	qemu_as_daemon(&user, before);
	return ok;
}

static bool make_fifos(QemuJob *j)
{
	const ProcUser user = qemu_owner(j->q);
	const int before = qemu_as_owner(&user);
	const bool ok = each_fifo(j->q, j->job->number, make_fifo);

	qemu_as_daemon(&user, before);
	return ok && open_fifos(j, true);
}

/* ---- ports ---- */

static char *port_id(uint32_t number, const char *end)
{
	return g_strdup_printf("exec-%u-%s", number, end);
}

static void remove_chardev(QemuVm *q, const char *id)
{
	qmp_execute(q->qmp, "chardev-remove", json_pack("{s:s}", "id", id), NULL, NULL);
}

void qemu_exec_unplugged(QemuVm *q, const char *device)
{
	if (g_str_has_prefix(device, "exec-") && q->qmp)
		remove_chardev(q, device);
}

static void take_away(QemuVm *q, uint32_t number)
{
	const ProcUser user = qemu_owner(q);
	int before;

	if (!q->qmp || q->exited)
		return;
	for (int i = 0; i < EXEC_STREAMS; i++) {
		g_autofree char *id = port_id(number, stream_names[i]);

		/* That of a port that is there is busy until DEVICE_DELETED. */
		qmp_execute(q->qmp, "device_del", json_pack("{s:s}", "id", id), NULL, NULL);
		remove_chardev(q, id);
	}
	g_autofree char *hold = port_id(number, "hold");
	remove_chardev(q, hold);
	before = qemu_as_owner(&user);
	(void)each_fifo(q, number, remove_fifo);
	qemu_as_daemon(&user, before);
}

static void stop_waiting(QemuJob *j)
{
	timer_stop(&j->timer);
	timer_stop(&j->retry);
	for (size_t i = 0; i < G_N_ELEMENTS(j->slots); i++)
		qmp_cancel(&j->slots[i]);
	qmp_cancel(&j->turn);
	for (int i = 0; i < EXEC_STREAMS; i++)
		watch_stop(&j->watches[i], false);
}

static void close_fd(QemuJob *j, ExecStream which)
{
	watch_stop(&j->watches[which], false);
	if (j->fds[which] >= 0)
		close(j->fds[which]);
	j->fds[which] = -1;
}

/* ---- its end ---- */

static void status_answered(void *arg, const json_t *result, const GError *err);
static void begun(QemuJob *j);

static void ask(void *arg)
{
	QemuJob *j = arg;
	QemuVm *q = j->q;

	j->timer = NULL;
	if (has_ended(j))
		return;
	if (j->eof_due)
		qemu_exec.close_input(j->job);
	if (q->agent && agent_is_open(q->agent) && !q->paused)
		agent_request(q->agent, "guest-exec-status", json_pack("{s:I}", "pid", j->pid),
			      false, AGENT_TIMEOUT_MS, status_answered, j);
	else if (q->paused)
		j->timer = timer_start(MAX_PAUSE_MS, ask, j);
	else if (j->op && op_kind(j->op) == OP_EXEC)
		op_fail(j->op, err_new(ENXIO, "the guest's agent has gone"));
	else
		exec_ended(j->job, "lost agent");
}

static void ask_soon(QemuJob *j)
{
	j->pause_ms = FIRST_PAUSE_MS;
	if (!j->timer)
		return; /* being asked already */
	timer_stop(&j->timer);
	j->timer = timer_start(0, ask, j);
}

static void ask_later(QemuJob *j)
{
	if (has_ended(j))
		return;
	j->timer = timer_start(j->pause_ms, ask, j);
	j->pause_ms = MIN(j->pause_ms * 2, MAX_PAUSE_MS);
}

/* Whether the command itself was ever run, the wrapper's complaints tell. */
static void take_end(QemuJob *j, const json_t *result)
{
	g_autofree char *end = agentexec_end(result);
	g_autofree char *why = agentexec_complaint(result);

	if (j->op && op_kind(j->op) == OP_EXEC && why) {
		op_fail(j->op, err_new(EIO, "the guest cannot run it: %s", why));
		return;
	}
	begun(j);
	exec_ended(j->job, "%s", end ? end : "lost agent");
}

static void status_answered(void *arg, const json_t *result, const GError *err)
{
	QemuJob *j = arg;
	const bool late = err && (err_code(err) == ETIMEDOUT || err_code(err) == ENOTCONN);

	exec_silent(j->job, late);
	if (json_is_true(json_object_get(result, "exited")))
		take_end(j, result);
	else if (result || late || j->op)
		ask_later(j);
	else /* it is another agent, which does not know of it */
		exec_ended(j->job, "lost agent");
}

static void turned(void *arg, const json_t *result, const GError *err);

static void settle(QemuJob *j)
{
	if (j->settled || j->turn || j->retry)
		return;
	j->turns = 0;
	if (j->q->qmp)
		j->turn = qmp_execute(j->q->qmp, "query-status", NULL, turned, j);
	else
		j->settled = true;
}

static void settle_again(void *arg)
{
	QemuJob *j = arg;

	j->retry = NULL;
	exec_look_again(j->job);
}

static void turned(void *arg, const json_t *result, const GError *err)
{
	QemuJob *j = arg;

	j->turn = NULL;
	if (err && j->q->proc && !j->q->exited) {
		j->retry = timer_start(RETRY_MS, settle_again, j);
		return;
	}
	if (!err && ++j->turns < SETTLE_TURNS) {
		j->turn = qmp_execute(j->q->qmp, "query-status", NULL, turned, j);
		return;
	}
	j->settled = true;
	exec_look_again(j->job);
}

void qemu_exec_port(QemuVm *q, const char *id, bool open)
{
	unsigned number;
	char end[4];
	ExecJob *job;

	if (sscanf(id, "exec-%u-%3s", &number, end) != 2)
		return;
	job = exec_by_number(qemu_vm(q), number);
	if (!job || !job->run || has_ended(job->run))
		return;
	if (!open)
		ask_soon(job->run);
	else if (!strcmp(end, "err")) /* the last of them */
		begun(job->run);
}

/* ---- starting ---- */

static void free_run(QemuJob *j)
{
	stop_waiting(j);
	if (j->q->agent)
		agent_cancel(j->q->agent, status_answered, j);
	for (int i = 0; i < EXEC_STREAMS; i++)
		close_fd(j, i);
	j->job->run = NULL;
	g_free(j);
}

static QemuJob *new_run(QemuVm *q, ExecJob *job)
{
	QemuJob *j = g_new0(QemuJob, 1);

	j->q = q;
	j->job = job;
	j->pause_ms = FIRST_PAUSE_MS;
	for (int i = 0; i < EXEC_STREAMS; i++)
		j->fds[i] = -1;
	job->run = j;
	return j;
}

static void port_answered(void *arg, const json_t *result, const GError *err)
{
	QemuJob *j = arg;

	/* They are answered in the order in which they were asked. */
	j->slots[G_N_ELEMENTS(j->slots) - j->unanswered--] = NULL;
	if (err)
		op_fail(j->op, g_error_copy(err));
	else if (!j->unanswered)
		op_next(j->op);
}

static void order(QemuJob *j, const char *command, json_t *args)
{
	j->slots[j->unanswered++] = qmp_execute(j->q->qmp, command, args, port_answered, j);
}

static void add_chardev(QemuJob *j, const char *end, const char *type, json_t *data)
{
	g_autofree char *id = port_id(j->job->number, end);

	order(j, "chardev-add",
	      json_pack("{s:s,s:{s:s,s:o}}", "id", id, "backend", "type", type, "data", data));
}

static void ports_run(Op *op, void *ctx)
{
	QemuJob *j = ctx;
	const uint32_t number = j->job->number;
	g_autofree char *in = fifo_base(j->q, number, EXEC_STDIN);
	g_autofree char *out = fifo_base(j->q, number, EXEC_STDOUT);
	g_autofree char *err = fifo_base(j->q, number, EXEC_STDERR);

	if (!make_fifos(j)) {
		op_fail(op, err_new(errno, "cannot make %s: %s", in, g_strerror(errno)));
		return;
	}
	/* Held open to both sides, its end comes when this is removed. Opened before the next,
	 * which QEMU would else wait in. */
	add_chardev(j, "hold", "pipe", json_pack("{s:s}", "device", in));
	add_chardev(j, "in", "file", json_pack("{s:s,s:s}", "in", in, "out", "/dev/null"));
	add_chardev(j, "out", "pipe", json_pack("{s:s}", "device", out));
	add_chardev(j, "err", "pipe", json_pack("{s:s}", "device", err));
	for (int i = 0; i < EXEC_STREAMS; i++) {
		g_autofree char *id = port_id(number, stream_names[i]);
		g_autofree char *name =
			g_strdup_printf("org.vmfs.exec.%u.%s", number, stream_names[i]);

		order(j, "device_add",
		      json_pack("{s:s,s:s,s:s,s:s,s:s}", "driver", "virtserialport", "bus",
				"serial0.0", "chardev", id, "id", id, "name", name));
	}
}

static void ports_cancel(Op *op, void *ctx)
{
	stop_waiting(ctx);
}

static void ports_undo(Op *op, void *ctx)
{
	QemuJob *j = ctx;

	take_away(j->q, j->job->number);
	free_run(j);
	op_next(op);
}

static void exec_answered(void *arg, const json_t *result, const GError *err)
{
	QemuJob *j = arg;

	if (err) {
		const int code = err_code(err);

		op_fail(j->op, err_new(code == ENOTCONN ? ENXIO : code, "%s", err->message));
	} else if (!agentexec_pid(result, &j->pid)) {
		op_fail(j->op, err_new(EPROTO, "the guest's agent did not tell a process id"));
	} else {
		ask_later(j);
		if (j->opened)
			begun(j);
	}
}

static void guest_run(Op *op, void *ctx)
{
	QemuJob *j = ctx;
	g_autofree char *ports = g_strdup_printf("org.vmfs.exec.%u", j->job->number);

	if (write(j->fds[EXEC_STDIN], "\n", 1) != 1) {
		op_fail(op, err_new(errno, "cannot write to the port: %s", g_strerror(errno)));
		return;
	}
	agent_request(j->q->agent, "guest-exec",
		      json_pack("{s:s,s:[s,s,s,s,s],s:b}", "path", "/bin/sh", "arg", "-c", wrapper,
				"vmfs", ports, j->job->command, "capture-output", true),
		      false, AGENT_TIMEOUT_MS, exec_answered, j);
}

static void guest_cancel(Op *op, void *ctx)
{
	QemuJob *j = ctx;

	if (j->q->agent) {
		agent_cancel(j->q->agent, exec_answered, j);
		agent_cancel(j->q->agent, status_answered, j);
	}
	stop_waiting(j);
}

static const Step steps[] = {
	{ "ports", ports_run, ports_cancel, ports_undo },
	{ "guest", guest_run, guest_cancel, NULL },
	{ 0 },
};

static void begun(QemuJob *j)
{
	Op *op = j->op;

	j->opened = true;
	if (!op || op_kind(op) != OP_EXEC || !j->pid)
		return;
	j->op = NULL;
	op_next(op);
}

static bool check_agent(const QemuVm *q, GError **err)
{
	if (!q->qmp || q->exited)
		return err_set(err, EHOSTDOWN, "QEMU does not answer");
	if (!q->agent || !agent_is_open(q->agent))
		return err_set(err, ENXIO,
			       "the guest's agent is not there: it has not started yet, or "
			       "qemu-guest-agent is not installed; wait/agent waits for it");
	return true;
}

void qemu_exec_start(BackendVm *bv, Op *op)
{
	GError *e = NULL;
	QemuJob *j;

	if (!check_agent(qemu_of(bv), &e)) {
		op_fail(op, e);
		return;
	}
	j = new_run(qemu_of(bv), op_arg(op));
	j->op = op;
	op_steps(op, steps, j, NULL);
}

static void signalled(void *arg, const json_t *result, const GError *err)
{
	QemuJob *j = arg;
	Op *op = g_steal_pointer(&j->op);

	if (err)
		op_fail(op, g_error_copy(err));
	else
		op_ok(op);
	ask_soon(j);
}

static void signal_cancel(Op *op, void *ctx)
{
	QemuJob *j = ctx;

	j->op = NULL;
	if (j->q->agent)
		agent_cancel(j->q->agent, signalled, j);
}

void qemu_exec_signal(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);
	QemuJob *j = run_of(op_arg(op));
	GError *e = NULL;

	if (!check_agent(q, &e)) {
		op_fail(op, e);
		return;
	}
	j->op = op;
	op_on_cancel(op, signal_cancel, j);
	agent_request(q->agent, "guest-exec", agentexec_signal(j->pid, j->job->signal), false,
		      AGENT_TIMEOUT_MS, signalled, j);
}

/* ---- streams ---- */

static void on_fd(void *arg, int status, int events)
{
	QemuJob *j = arg;

	for (int i = 0; i < EXEC_STREAMS; i++)
		watch_stop(&j->watches[i], false);
	exec_look_again(j->job);
}

static void wait_for(QemuJob *j, ExecStream which)
{
	if (!j->watches[which] && j->fds[which] >= 0)
		j->watches[which] = watch_start(
			j->fds[which], which == EXEC_STDIN ? UV_WRITABLE : UV_READABLE, on_fd, j);
}

/* QEMU, which holds both ends of it, has let go: somebody took the port away. */
static bool is_cut_off(const QemuJob *j, ExecStream which)
{
	struct pollfd p = { .fd = j->fds[which] };

	return poll(&p, 1, 0) == 1 && p.revents & POLLHUP;
}

/* When there is nothing to read. */
static bool is_over(QemuJob *j, ExecStream which)
{
	if (j->fds[which] < 0 || is_cut_off(j, which))
		return true;
	if (has_ended(j))
		settle(j);
	else
		wait_for(j, which);
	return has_ended(j) && j->settled;
}

static bool ready(ExecJob *job, ExecStream which)
{
	QemuJob *j = run_of(job);
	int n = 0;

	return (!ioctl(j->fds[which], FIONREAD, &n) && n > 0) || is_over(j, which);
}

static ssize_t read_output(ExecJob *job, ExecStream which, char *buf, size_t size)
{
	QemuJob *j = run_of(job);
	const ssize_t n = read(j->fds[which], buf, size);

	if (n > 0) {
		j->settled = false; /* there is room for more */
		return n;
	}
	return is_over(j, which) ? 0 : -EAGAIN;
}

static size_t write_input(ExecJob *job, const char *data, size_t len)
{
	QemuJob *j = run_of(job);
	const ssize_t n = write(j->fds[EXEC_STDIN], data, len);

	if (n <= 0)
		wait_for(j, EXEC_STDIN);
	return n > 0 ? (size_t)n : 0;
}

static void close_input(ExecJob *job)
{
	QemuJob *j = run_of(job);
	g_autofree char *hold = port_id(job->number, "hold");

	j->eof_due = !j->q->qmp;
	if (j->eof_due)
		return;
	close_fd(j, EXEC_STDIN);
	remove_chardev(j->q, hold);
}

/* ---- the rest of its life ---- */

static void drop(ExecJob *job)
{
	take_away(run_of(job)->q, job->number);
}

static void forget(ExecJob *job)
{
	QemuJob *j = run_of(job);

	if (j->op)
		guest_cancel(j->op, j);
	if (j->q->agent)
		agent_cancel(j->q->agent, signalled, j);
	free_run(j);
}

static void save(const ExecJob *job, GKeyFile *run, const char *group)
{
	g_key_file_set_int64(run, group, "pid", run_of(job)->pid);
}

static bool adopt(BackendVm *bv, ExecJob *job, GKeyFile *run, const char *group)
{
	const gint64 pid = g_key_file_get_int64(run, group, "pid", NULL);
	QemuJob *j = new_run(qemu_of(bv), job);

	j->pid = pid;
	if (pid < 2 || !open_fifos(j, !job->input_closed)) {
		take_away(j->q, job->number);
		free_run(j);
		return false;
	}
	if (job->input_closed)
		close_input(job);
	if (!has_ended(j))
		j->timer = timer_start(0, ask, j);
	return true;
}

const ExecClass qemu_exec = {
	.read = read_output,
	.ready = ready,
	.write = write_input,
	.close_input = close_input,
	.drop = drop,
	.forget = forget,
	.save = save,
	.adopt = adopt,
};
