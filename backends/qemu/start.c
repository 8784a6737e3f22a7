/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting a VM: a table of steps, undone in reverse when one fails or the start is cancelled.
 * QEMU runs with the rights of the VM's owner, so that the kernel judges every file it opens; what
 * the daemon itself makes in the owner's directories it makes as the owner too. Loop thread only.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/qemu/start.h"
#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/ssh.h"

#define MONITOR_TIMEOUT_MS 10000
#define DYING_MS	   1000 /* that a QEMU whose monitor broke off has for its exit */
#define LOG_TAIL	   4096
#define VMM_LOG		   "vmm.log"

struct Lookup {
	Start *start; /* NULL: cancelled */
	uid_t uid;
	gid_t gid;
	ProcUser user;
};

static const char *const socket_names[QEMU_N_SOCKETS] = {
	[QEMU_FD_QMP - 3] = QEMU_SOCKET_QMP,
	[QEMU_FD_AGENT - 3] = QEMU_SOCKET_AGENT,
};

/* Only this thread is changed; but all of the process loses the right to core dumps by it. */
int qemu_as_owner(const ProcUser *u)
{
	const int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);

	if (u->change) {
		setfsgid(u->gid);
		setfsuid(u->uid);
	}
	return dumpable;
}

void qemu_as_daemon(const ProcUser *u, int dumpable)
{
	const int code = errno;

	if (u->change) {
		setfsuid(geteuid());
		setfsgid(getegid());
		if (dumpable == 1)
			prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	}
	errno = code;
}

/* ---- prepare: the owner's groups, the run directory, the sockets ---- */

static void close_fds(Start *s)
{
	for (int i = 0; i < QEMU_N_SOCKETS; i++) {
		if (s->fds[i] >= 0)
			close(s->fds[i]);
		s->fds[i] = -1;
	}
}

bool qemu_listen_at(const char *path, int *ret, GError **err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return err_set(err, errno, "cannot make a socket: %s", g_strerror(errno));
	if (strlen(path) >= sizeof(addr.sun_path)) {
		close(fd);
		return err_set(err, ENAMETOOLONG, "the path of a socket is too long: %s", path);
	}
	strcpy(addr.sun_path, path);
	/* bind() gives the file the mode that the socket has. */
	if (fchmod(fd, 0600) || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 8)) {
		const int code = errno;
		close(fd);
		return err_set(err, code, "cannot listen at %s: %s", path, g_strerror(code));
	}
	*ret = fd;
	return true;
}

static bool make_sockets(Start *s, GError **err)
{
	Vm *vm = qemu_vm(s->q);
	bool ok = true;

	if (!vm_make_run_dir(vm, err))
		return false;
	const int before = qemu_as_owner(&s->q->user);
	for (int i = 0; ok && i < QEMU_N_SOCKETS; i++) {
		g_autofree char *path = g_build_filename(vm_run_dir(vm), socket_names[i], NULL);
		ok = qemu_listen_at(path, &s->fds[i], err);
	}
	ok = ok && console_prepare(vm_run_dir(vm), vm_data_dir(vm), err);
	qemu_as_daemon(&s->q->user, before);
	return ok;
}

static void lookup_work(void *job)
{
	Lookup *l = job;

	proc_user_lookup(&l->user, l->uid, l->gid);
}

static void lookup_done(void *job)
{
	Lookup *l = job;
	Start *s = l->start;
	g_autoptr(GError) err = NULL;

	if (!s) {
		proc_user_clear(&l->user);
		g_free(l);
		return;
	}
	s->lookup = NULL;
	s->q->user = l->user;
	g_free(l);
	if (make_sockets(s, &err))
		op_next(s->op);
	else
		op_fail(s->op, g_steal_pointer(&err));
}

void start_prepare_run(Op *op, void *ctx)
{
	Start *s = ctx;
	Lookup *l = g_new0(Lookup, 1);

	l->start = s;
	l->uid = vm_uid(qemu_vm(s->q));
	l->gid = vm_gid(qemu_vm(s->q));
	s->lookup = l;
	loop_work(lookup_work, lookup_done, l);
}

void start_prepare_cancel(Op *op, void *ctx)
{
	Start *s = ctx;

	if (s->lookup)
		s->lookup->start = NULL;
	s->lookup = NULL;
}

void start_prepare_undo(Op *op, void *ctx)
{
	Start *s = ctx;

	close_fds(s);
	proc_user_clear(&s->q->user);
	vm_remove_run_dir(qemu_vm(s->q));
	op_next(op);
}

/* ---- disks ---- */

static void prepared(void *arg, const GError *err)
{
	Start *s = arg;

	op_answered(s->op, err);
}

static void key_made(void *arg, const char *public_key, const GError *err)
{
	Start *s = arg;

	s->key = NULL;
	if (err)
		log_warning("%s: starts without a key for ssh: %s", vm_name(qemu_vm(s->q)),
			    err->message);
	g_free(s->q->ssh_key);
	s->q->ssh_key = g_strdup(public_key);
	qemu_disks_prepare(s->q, s->q->base.spec, NULL, prepared, s);
}

void start_disks_run(Op *op, void *ctx)
{
	Start *s = ctx;
	const SpecCloudInit *cloud_init = &s->q->base.spec->cloud_init;

	/* Without a key of the user's, nobody could log in. */
	if (cloud_init->given && !cloud_init->ssh_keys->len)
		s->key = ssh_key(qemu_vm(s->q), &s->q->user, key_made, s);
	else
		qemu_disks_prepare(s->q, s->q->base.spec, NULL, prepared, s);
}

void start_disks_cancel(Op *op, void *ctx)
{
	Start *s = ctx;

	ssh_key_cancel(g_steal_pointer(&s->key));
	prepare_cancel(&s->q->disks);
}

/* ---- shares ---- */

void start_shares_run(Op *op, void *ctx)
{
	Start *s = ctx;
	QemuArgs args;

	qemu_fill_args(s->q, NULL, NULL, &args);
	qemu_shares_start(s->q, &args, NULL, prepared, s);
}

void start_shares_cancel(Op *op, void *ctx)
{
	qemu_shares_cancel(((Start *)ctx)->q);
}

void start_shares_undo(Op *op, void *ctx)
{
	qemu_shares_forget(((Start *)ctx)->q, true);
	op_next(op);
}

/* ---- spawn ---- */

int qemu_open_log(QemuVm *q, const char *name, int flags)
{
	g_autofree char *path = g_build_filename(vm_data_dir(qemu_vm(q)), name, NULL);
	struct stat st;

	const int before = qemu_as_owner(&q->user);
	int fd = open(path, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
	qemu_as_daemon(&q->user, before);
	if (fd >= 0 && (fstat(fd, &st) || !S_ISREG(st.st_mode))) {
		close(fd);
		errno = EINVAL;
		fd = -1;
	}
	return fd;
}

static void spawned(void *arg, Proc *p, const GError *err)
{
	Start *s = arg;
	QemuVm *q = s->q;

	s->spawning = NULL;
	if (!p) {
		q->died = NULL;
		op_fail(s->op, g_error_copy(err));
		return;
	}
	q->proc = p;
	q->start_time = proc_start_time(proc_pid(p));
	backend_pid(&q->base, proc_pid(p));
	backend_changed(&q->base);
	op_next(s->op);
}

static bool spawn(Start *s, GError **err)
{
	QemuVm *q = s->q;
	g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
	QemuArgs args;
	const int log = qemu_open_log(q, VMM_LOG, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);

	if (log < 0)
		return err_set(err, errno, "cannot write %s/" VMM_LOG ": %s",
			       vm_data_dir(qemu_vm(q)), g_strerror(errno));
	q->accel = qemu_accel(q->base.spec);
	g_clear_pointer(&q->slots, g_hash_table_unref);
	q->slots = qemu_slots_parse(s->wake ? qemu_wake_slots(s->wake) : NULL, &q->bridges);
	qemu_fill_args(q, q->accel, q->slots, &args);
	if (s->wake)
		qemu_wake_args(s->wake, &args);
	qemu_slots_fill(&args);
	q->bridges = MAX(q->bridges, qemu_bridges(q->slots));
	args.bridges = q->bridges;
	q->shares_memory = qemu_shares_memory(&args);
	qemu_argv(&args, argv);
	g_ptr_array_add(argv, NULL);
	const ProcSpec spec = {
		.argv = (char *const *)argv->pdata,
		.user = &q->user,
		.out_fd = log,
		.err_fd = log,
		.fds = s->fds,
		.n_fds = QEMU_N_SOCKETS,
	};
	s->spawning = proc_start(&spec, spawned, s, qemu_exited, q);
	close(log);
	close_fds(s); /* from now on only QEMU, which has copies, holds them */
	return true;
}

/* The last line that says what is wrong; what it says is not trusted to be text. */
static char *log_sentence(QemuVm *q, const char *name)
{
	char text[LOG_TAIL + 1];
	struct stat st;
	const int fd = qemu_open_log(q, name, O_RDONLY);

	if (fd < 0)
		return NULL;
	const off_t from = fstat(fd, &st) || st.st_size < LOG_TAIL ? 0 : st.st_size - LOG_TAIL;
	const ssize_t n = pread(fd, text, LOG_TAIL, from);
	close(fd);
	text[MAX(n, 0)] = '\0';
	return qemu_sentence(text);
}

/* QEMU does not say why it could not listen. */
static int port_errno(const QemuVm *q, const char *sentence, int code)
{
	unsigned port;
	const char *rule = strstr(sentence, "rule '");

	if (code == EADDRINUSE && q->user.change && rule &&
	    sscanf(rule, "rule '%*[a-z]:%*[0-9.]:%u-", &port) == 1 && port && port < 1024)
		return EACCES;
	return code;
}

static GError *death_error(QemuVm *q)
{
	g_autofree char *sentence = log_sentence(q, VMM_LOG);
	g_autofree char *server = sentence && strstr(sentence, "vhost-user-fs")
					  ? log_sentence(q, QEMU_VIRTIOFSD_LOG)
					  : NULL;
	const int status = q->exit_status;

	if (server)
		return err_new(EIO, "virtiofsd could not serve a share: %s", server);

	if (status > 0 && WIFSIGNALED(status))
		return err_new(EIO, "QEMU was killed by signal %d%s%s", WTERMSIG(status),
			       sentence ? "; it said: " : "", sentence ? sentence : "");
	if (sentence)
		return err_new(port_errno(q, sentence, qemu_errno(sentence)), "%s", sentence);
	return err_new(EIO, "QEMU ended without a word, with exit status %d",
		       status < 0 ? -1 : WEXITSTATUS(status));
}

static void died_in_start(QemuVm *q)
{
	Start *s = q->start;

	if (s->wake)
		qemu_wake_fail(s, death_error(q));
	else
		op_fail(s->op, death_error(q));
}

void start_spawn_run(Op *op, void *ctx)
{
	Start *s = ctx;
	GError *err = NULL;

	s->q->died = died_in_start;
	if (spawn(s, &err))
		return;
	s->q->died = NULL;
	op_fail(op, err);
}

void start_spawn_cancel(Op *op, void *ctx)
{
	Start *s = ctx;

	if (s->spawning)
		proc_start_abandon(s->spawning);
	s->spawning = NULL;
}

static void spawn_undone(QemuVm *q)
{
	const Start *s = q->start;
	Op *op = s->op;
	const int status = q->exit_status;
	const QemuEnd end = s->wake ? qemu_wake_end(s) : (QemuEnd){ VM_STOPPED, "start-failed" };

	qemu_forget(q);
	backend_gone(&q->base, end.state, end.reason, status);
	op_next(op);
}

void start_spawn_undo(Op *op, void *ctx)
{
	Start *s = ctx;
	QemuVm *q = s->q;

	if (!q->proc) {
		op_next(op);
	} else if (q->exited) {
		spawn_undone(q);
	} else {
		q->died = spawn_undone;
		proc_kill(q->proc, SIGKILL);
	}
}

/* ---- monitor ---- */

static void dying_expired(void *arg)
{
	Start *s = arg;

	s->dying = NULL;
	op_fail(s->op, g_steal_pointer(&s->lost));
}

/* A QEMU that ends tells why in its log: its exit makes the better error. */
static void lost_in_start(QemuVm *q, const GError *err)
{
	Start *s = q->start;

	if (s->lost)
		return;
	s->lost = g_error_copy(err);
	if (err_code(err) == ETIMEDOUT)
		op_fail(s->op, g_steal_pointer(&s->lost));
	else
		s->dying = timer_start(DYING_MS, dying_expired, s);
}

static void kvm_answered(void *arg, const json_t *result, const GError *err)
{
	Start *s = arg;

	s->kvm = NULL;
	if (!err)
		qemu_report_accel(s->q, result);
}

static void ports_answered(void *arg, const json_t *result, const GError *err)
{
	Start *s = arg;

	s->ports = NULL;
	if (json_is_string(result))
		qemu_report_ports(s->q, s->q->base.spec, json_string_value(result));
}

static void running(Start *s)
{
	QemuVm *q = s->q;

	q->died = NULL;
	q->lost = NULL;
	backend_state(&q->base, VM_RUNNING, NULL);
	qemu_report_shares(q);
	qemu_ip_start(q);
	if (s->wake)
		qemu_wake_running(s);
	op_next(s->op);
}

static void cont_answered(void *arg, const json_t *result, const GError *err)
{
	Start *s = arg;

	s->cont = NULL;
	if (!err)
		running(s);
	else if (qmp_is_alive(s->q->qmp)) /* else lost_in_start() is told next */
		op_fail(s->op, g_error_copy(err));
}

/* The event comes before the answer, by milliseconds when the new vCPUs keep QEMU busy. */
void qemu_start_resumed(QemuVm *q)
{
	Start *s = q->start;

	if (!s || !s->cont)
		return;
	qmp_cancel(&s->cont);
	running(s);
}

void start_connect_monitor(Start *s)
{
	s->q->lost = lost_in_start;
	qemu_connect(s->q, MONITOR_TIMEOUT_MS);
}

/* All at once, and before QEMU is up: it answers in order, and the start waits for one answer only.
 */
void start_connect(Start *s)
{
	QemuVm *q = s->q;

	start_connect_monitor(s);
	s->kvm = qmp_execute(q->qmp, "query-kvm", NULL, kvm_answered, s);
	if (usernet_has_ports(q->base.spec)) {
		json_t *args = json_object();
		json_object_set_new(args, "command-line", json_string(USERNET_INFO));
		s->ports = qmp_execute(q->qmp, "human-monitor-command", args, ports_answered, s);
	}
	qemu_report_vnc(q);
	qemu_balloon_start(q);
	qemu_connect_guest(q, 0);
}

void start_cont(Start *s)
{
	s->cont = qmp_execute(s->q->qmp, "cont", NULL, cont_answered, s);
}

void start_monitor_run(Op *op, void *ctx)
{
	start_connect(ctx);
	start_cont(ctx);
}

void start_drop(Start *s)
{
	qmp_cancel(&s->kvm);
	qmp_cancel(&s->ports);
	qmp_cancel(&s->cont);
	timer_stop(&s->dying);
	g_clear_error(&s->lost);
	if (s->wake)
		qemu_wake_drop(s->wake);
}

void start_monitor_cancel(Op *op, void *ctx)
{
	start_drop(ctx);
}

void start_monitor_undo(Op *op, void *ctx)
{
	Start *s = ctx;

	start_drop(s);
	qemu_disconnect(s->q);
	op_next(op);
}

static const Step steps[] = {
	{ "prepare", start_prepare_run, start_prepare_cancel, start_prepare_undo },
	{ "disks", start_disks_run, start_disks_cancel, NULL },
	{ "shares", start_shares_run, start_shares_cancel, start_shares_undo },
	{ "spawn", start_spawn_run, start_spawn_cancel, start_spawn_undo },
	{ "monitor", start_monitor_run, start_monitor_cancel, start_monitor_undo },
	{ 0 },
};

static void start_free(void *ctx)
{
	Start *s = ctx;

	close_fds(s);
	if (s->wake)
		qemu_wake_free(s->wake);
	if (s->q)
		s->q->start = NULL;
	g_free(s);
}

void qemu_start_abandon(QemuVm *q)
{
	Start *s = q->start;

	if (!s)
		return;
	start_prepare_cancel(s->op, s);
	qemu_clone_abandon(q);
	start_disks_cancel(s->op, s);
	start_shares_cancel(s->op, s);
	start_spawn_cancel(s->op, s);
	start_drop(s);
	s->q = NULL;
}

void start_begin(BackendVm *bv, Op *op, const Step *table, QemuWake *wake)
{
	Start *s;
	if (qemu_of(bv)->proc && op_kind(op) != OP_RESTORE) {
		if (wake)
			qemu_wake_free(wake);
		op_fail(op, err_new(EBUSY,
				    "the QEMU of a start before, process %d, was killed and "
				    "has not ended: storage that it uses does not answer",
				    (int)proc_pid(qemu_of(bv)->proc)));
		return;
	}
	s = g_new0(Start, 1);
	s->q = qemu_of(bv);
	s->op = op;
	for (int i = 0; i < QEMU_N_SOCKETS; i++)
		s->fds[i] = -1;
	s->wake = wake;
	s->q->start = s;
	op_steps(op, table, s, start_free);
}

void qemu_start(BackendVm *bv, Op *op)
{
	if (vm_clone_is_pending(bv->vm))
		qemu_clone(bv, op);
	else
		start_begin(bv, op, steps, NULL);
}
