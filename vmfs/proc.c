/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting, watching and killing processes. The child is cloned with our memory but without
 * stopping us (not vfork): between setresuid() and exec it can be sent SIGSTOP by the user it runs
 * as, and a daemon in vfork's uninterruptible wait would hang with it. The child reports through a
 * close-on-exec pipe instead, and is killed when it does not get to exec in time. posix_spawn(3)
 * cannot change user, and glibc's setuid family would signal all our threads: hence raw system
 * calls. A start may be made in the pool; all else is the loop thread's.
 */
#include "vmfs/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/loop.h"

#define EXEC_TIMEOUT_MS 2000
#define CHILD_STACK	(64u << 10)
#define RUN_MAX_OUT	(64u << 10)
#define MAX_GROUPS	65536
#define MAX_FDS		29 /* passed on as 3, 4... */

/* The child runs in our memory on a stack of its own, where sanitizers must not leave marks. */
#define NO_SANITIZE                                                                                \
	__attribute__((no_sanitize("address"), no_sanitize("undefined"), no_sanitize("thread"),    \
		       noinline))

/* TSan's own clone() takes the child for one of fork(2), and would rewrite our state from it. */
#ifdef __SANITIZE_THREAD__
int __clone(int (*fn)(void *arg), void *stack, int flags, void *arg, ...);
#define clone __clone
#endif

struct Proc {
	pid_t pid;
	int pidfd; /* -1 when gone; owned by watch before that */
	Watch *watch;
	ProcExitFn fn; /* NULL: nobody cares any more, only to be reaped */
	void *arg;
};

struct ProcRun {
	Proc *proc;
	char *name;
	Watch *pipe;
	int pipe_fd;
	GString *out;
	GError *err; /* could not be started */
	Timer *timer;
	uint64_t timeout_ms;
	ProcRunFn fn;
	void *arg;
};

typedef enum ChildStep {
	CHILD_SESSION,
	CHILD_FDS,
	CHILD_CHDIR,
	CHILD_GROUPS,
	CHILD_GID,
	CHILD_UID,
	CHILD_EXEC,
} ChildStep;

static const char *const child_steps[] = {
	[CHILD_SESSION] = "make a session",
	[CHILD_FDS] = "pass descriptors",
	[CHILD_CHDIR] = "enter /",
	[CHILD_GROUPS] = "set the groups",
	[CHILD_GID] = "set the group",
	[CHILD_UID] = "set the user",
	[CHILD_EXEC] = "run it",
};

/* All that the child needs, made beforehand: it cannot allocate. */
typedef struct Child {
	const char *path;
	char *const *argv, *const *envp;
	const ProcUser *user;
	const int *src; /* become 0, 1, 2... */
	unsigned n_src;
	int status_fd;
} Child;

typedef struct ChildReport {
	int step, err;
} ChildReport;

static NO_SANITIZE void child_fail(int fd, ChildStep step)
{
	ChildReport r;

	r.step = (int)step;
	r.err = errno;
	(void)syscall(SYS_write, fd, &r, sizeof(r));
	for (;;)
		(void)syscall(SYS_exit_group, 127);
}

/* Put src[i] at descriptor i and the report pipe, which is returned, after them; close the rest. */
static NO_SANITIZE int child_fds(const Child *c)
{
	const unsigned n = c->n_src;
	int status;
	long tmp[32];

	/* First out of the way: a source may sit where another one has to go. */
	status = (int)syscall(SYS_fcntl, c->status_fd, F_DUPFD_CLOEXEC, n + 1);
	if (status < 0)
		child_fail(c->status_fd, CHILD_FDS);
	for (unsigned i = 0; i < n; i++) {
		tmp[i] = syscall(SYS_fcntl, c->src[i], F_DUPFD_CLOEXEC, n + 1);
		if (tmp[i] < 0)
			child_fail(status, CHILD_FDS);
	}
	for (unsigned i = 0; i < n; i++) {
		if (syscall(SYS_dup3, tmp[i], i, 0) < 0)
			child_fail(status, CHILD_FDS);
	}
	if (syscall(SYS_dup3, status, n, O_CLOEXEC) < 0)
		child_fail(status, CHILD_FDS);
	/* Old kernels lack it; all that we open is close-on-exec anyway. */
	(void)syscall(SYS_close_range, n + 1, ~0u, 0);
	return (int)n;
}

static NO_SANITIZE void child_user(const ProcUser *u, int status)
{
	if (syscall(SYS_setgroups, u->n_groups, u->groups) < 0)
		child_fail(status, CHILD_GROUPS);
	if (syscall(SYS_setresgid, u->gid, u->gid, u->gid) < 0)
		child_fail(status, CHILD_GID);
	if (syscall(SYS_setresuid, u->uid, u->uid, u->uid) < 0)
		child_fail(status, CHILD_UID);
}

static NO_SANITIZE int child_main(void *arg)
{
	const Child *c = arg;
	const unsigned long zero[8] = { 0 }; /* SIG_DFL, and an empty set */
	int status;

	/* Our handlers must not run here. The kernel's sigset_t has 8 bytes. */
	for (int sig = 1; sig <= 64; sig++)
		(void)syscall(SYS_rt_sigaction, sig, zero, NULL, 8);
	status = child_fds(c);
	if (syscall(SYS_setsid) < 0)
		child_fail(status, CHILD_SESSION);
	if (syscall(SYS_chdir, "/") < 0)
		child_fail(status, CHILD_CHDIR);
	(void)syscall(SYS_umask, 077);
	(void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, zero, NULL, 8);
	if (c->user && c->user->change)
		child_user(c->user, status);
	(void)syscall(SYS_execve, c->path, c->argv, c->envp);
	child_fail(status, CHILD_EXEC);
	return 127;
}

static int pidfd_open_raw(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* The daemon's own environment is nobody else's business. */
static char **child_env(const ProcUser *user)
{
	static const char *const keep[] = {
		"PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
	};
	if (!user || !user->change)
		return g_get_environ();

	GPtrArray *env = g_ptr_array_new();
	for (size_t i = 0; i < G_N_ELEMENTS(keep); i++) {
		const char *v = g_getenv(keep[i]);
		if (v)
			g_ptr_array_add(env, g_strdup_printf("%s=%s", keep[i], v));
	}
	g_ptr_array_add(env, NULL);
	return (char **)g_ptr_array_free(env, FALSE);
}

/*
 * Wait until the child has got to exec, or say why not. All signals are blocked, so poll() is not
 * interrupted, and nothing but the child changes the errno that it shares with us.
 */
static bool await_exec(int pipe_fd, int pidfd, const char *name, GError **err)
{
	struct pollfd p = { .fd = pipe_fd, .events = POLLIN };
	ChildReport r;

	if (poll(&p, 1, EXEC_TIMEOUT_MS) <= 0) {
		(void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
		return err_set(err, ETIMEDOUT, "%s could not be started within %d s", name,
			       EXEC_TIMEOUT_MS / 1000);
	}
	/* Closed by exec; or by a kill, which the exit status will tell. */
	const ssize_t n = read(pipe_fd, &r, sizeof(r));
	if (n == 0)
		return true;
	if (n != sizeof(r) || r.step < 0 || r.step > CHILD_EXEC)
		return err_set(err, EIO, "cannot start %s", name);
	if (r.step == CHILD_EXEC)
		return err_set(err, r.err, "cannot run %s: %s", name, g_strerror(r.err));
	return err_set(err, r.err, "cannot start %s: cannot %s: %s", name, child_steps[r.step],
		       g_strerror(r.err));
}

/* Reap a child that did not get to exec; false if it clings to our memory even now. */
static bool bury(int pidfd)
{
	struct pollfd dead = { .fd = pidfd, .events = POLLIN };
	const bool gone = poll(&dead, 1, EXEC_TIMEOUT_MS) > 0;

	if (gone)
		(void)waitid(P_PIDFD, (id_t)pidfd, &(siginfo_t){ 0 }, WEXITED | WNOHANG);
	close(pidfd);
	return gone;
}

static bool clone_child(Child *c, int pipe_fds[2], pid_t *ret_pid, int *ret_pidfd, GError **err)
{
	int pidfd = -1;
	char *stack = mmap(NULL, CHILD_STACK, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);

	if (stack == MAP_FAILED)
		g_error("out of memory");
	c->status_fd = pipe_fds[1];
	const pid_t pid =
		clone(child_main, stack + CHILD_STACK, CLONE_VM | CLONE_PIDFD | SIGCHLD, c, &pidfd);
	if (pid < 0)
		err_set(err, errno, "cannot start %s: %s", c->path, g_strerror(errno));
	close(pipe_fds[1]);
	const bool ok = pid > 0 && await_exec(pipe_fds[0], pidfd, c->path, err);
	if (ok || pid < 0 || bury(pidfd))
		munmap(stack, CHILD_STACK);
	*ret_pid = pid;
	*ret_pidfd = pidfd;
	return ok;
}

static bool spawn_child(Child *c, pid_t *ret_pid, int *ret_pidfd, GError **err)
{
	int pipe_fds[2];
	sigset_t all, old;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return err_set(err, errno, "cannot start %s: %s", c->path, g_strerror(errno));
	/* A child that changes its user in our memory takes away our right to core dumps. */
	const int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	const bool ok = clone_child(c, pipe_fds, ret_pid, ret_pidfd, err);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (dumpable == 1)
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	close(pipe_fds[0]);
	return ok;
}

/* A status as from waitpid(2); -1 when it was not our child. */
static int reap(int pidfd)
{
	siginfo_t si = { 0 };

	if (waitid(P_PIDFD, (id_t)pidfd, &si, WEXITED | WNOHANG) < 0 || si.si_pid == 0)
		return -1;
	if (si.si_code == CLD_EXITED)
		return (si.si_status & 0xff) << 8;
	return si.si_status | (si.si_code == CLD_DUMPED ? 0x80 : 0);
}

static void proc_exited(void *arg, int status, int events)
{
	Proc *p = arg;
	const int code = reap(p->pidfd);

	watch_stop(&p->watch, true);
	p->pidfd = -1;
	if (p->fn)
		p->fn(p->arg, code);
	else
		g_free(p);
}

static Proc *proc_new(pid_t pid, int pidfd, ProcExitFn fn, void *arg)
{
	Proc *p = g_new0(Proc, 1);

	p->pid = pid;
	p->pidfd = pidfd;
	p->fn = fn;
	p->arg = arg;
	p->watch = watch_start(pidfd, UV_READABLE, proc_exited, p);
	return p;
}

static bool launch(const ProcSpec *spec, pid_t *ret_pid, int *ret_pidfd, GError **err)
{
	int src[3 + MAX_FDS];
	const int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null_fd < 0)
		return err_set(err, errno, "cannot open /dev/null: %s", g_strerror(errno));
	src[0] = null_fd;
	src[1] = spec->out_fd >= 0 ? spec->out_fd : null_fd;
	src[2] = spec->err_fd >= 0 ? spec->err_fd : null_fd;
	for (unsigned i = 0; i < spec->n_fds; i++)
		src[3 + i] = spec->fds[i];
	g_autofree char *path = g_find_program_in_path(spec->argv[0]);
	g_auto(GStrv) env = child_env(spec->user);
	Child c = {
		.path = path,
		.argv = spec->argv,
		.envp = env,
		.user = spec->user,
		.src = src,
		.n_src = 3 + spec->n_fds,
	};
	bool ok;
	if (path)
		ok = spawn_child(&c, ret_pid, ret_pidfd, err);
	else if (strchr(spec->argv[0], '/') && access(spec->argv[0], F_OK) == 0)
		ok = err_set(err, EACCES, "cannot run %s: it is not a program", spec->argv[0]);
	else
		ok = err_set(err, ENOENT, "cannot run %s: there is no such program", spec->argv[0]);
	close(null_fd);
	return ok;
}

Proc *proc_spawn(const ProcSpec *spec, ProcExitFn fn, void *arg, GError **err)
{
	int pidfd = -1;
	pid_t pid = -1;

	g_assert(spec->n_fds <= MAX_FDS);
	return launch(spec, &pid, &pidfd, err) ? proc_new(pid, pidfd, fn, arg) : NULL;
}

struct ProcStart {
	ProcSpec spec; /* of copies */
	ProcUser user;
	int fds[MAX_FDS];
	ProcStartedFn started; /* NULL: abandoned */
	void *started_arg;
	ProcExitFn fn;
	void *arg;
	pid_t pid;
	int pidfd;
	GError *err;
};

static void start_work(void *job)
{
	ProcStart *s = job;

	(void)launch(&s->spec, &s->pid, &s->pidfd, &s->err);
}

static void close_copy(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void start_done(void *job)
{
	ProcStart *s = job;
	Proc *p = s->err ? NULL : proc_new(s->pid, s->pidfd, s->fn, s->arg);

	if (s->started) {
		s->started(s->started_arg, p, s->err);
	} else if (p) {
		proc_kill(p, SIGKILL);
		proc_free(p);
	}
	for (unsigned i = 0; i < s->spec.n_fds; i++)
		close_copy(s->fds[i]);
	close_copy(s->spec.out_fd);
	close_copy(s->spec.err_fd);
	g_strfreev((char **)s->spec.argv);
	g_free(s->user.groups);
	g_clear_error(&s->err);
	g_free(s);
}

static int copy_fd(int fd)
{
	return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

ProcStart *proc_start(const ProcSpec *spec, ProcStartedFn started, void *started_arg, ProcExitFn fn,
		      void *arg)
{
	ProcStart *s = g_new0(ProcStart, 1);

	g_assert(spec->n_fds <= MAX_FDS);
	s->spec = *spec;
	s->spec.argv = g_strdupv((char **)spec->argv);
	if (spec->user) {
		s->user = *spec->user;
		s->user.groups =
			g_memdup2(spec->user->groups, (gsize)spec->user->n_groups * sizeof(gid_t));
		s->spec.user = &s->user;
	}
	for (unsigned i = 0; i < spec->n_fds; i++)
		s->fds[i] = copy_fd(spec->fds[i]);
	s->spec.fds = s->fds;
	s->spec.out_fd = copy_fd(spec->out_fd);
	s->spec.err_fd = copy_fd(spec->err_fd);
	s->started = started;
	s->started_arg = started_arg;
	s->fn = fn;
	s->arg = arg;
	loop_work(start_work, start_done, s);
	return s;
}

void proc_start_abandon(ProcStart *s)
{
	s->started = NULL;
	s->fn = NULL;
}

Proc *proc_adopt(pid_t pid, uint64_t start_time, ProcExitFn fn, void *arg, GError **err)
{
	const int fd = pid > 0 ? pidfd_open_raw(pid) : -1;

	if (fd < 0) {
		const int code = pid > 0 ? errno : ESRCH;
		err_set(err, code, "process %d: %s", (int)pid, g_strerror(code));
		return NULL;
	}
	/*
	 * Only now: the pidfd pins the process that the start time is read from. One that has ended
	 * and waits to be reaped is as good as gone.
	 */
	struct pollfd dead = { .fd = fd, .events = POLLIN };
	if ((start_time && proc_start_time(pid) != start_time) || poll(&dead, 1, 0) > 0) {
		(void)reap(fd);
		close(fd);
		err_set(err, ESRCH, "process %d has ended", (int)pid);
		return NULL;
	}
	return proc_new(pid, fd, fn, arg);
}

pid_t proc_pid(const Proc *p)
{
	return p->pid;
}

void proc_kill(Proc *p, int sig)
{
	if (p->pidfd >= 0)
		(void)syscall(SYS_pidfd_send_signal, p->pidfd, sig, NULL, 0);
}

/* One that still runs stays watched in silence, so that it is reaped. */
void proc_free(Proc *p)
{
	if (!p)
		return;
	p->fn = NULL;
	if (p->pidfd < 0)
		g_free(p);
}

uint64_t proc_start_time(pid_t pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
	g_autofree char *text = NULL;

	if (!g_file_get_contents(path, &text, NULL, NULL))
		return 0;
	/* The program's name, in parentheses, may hold anything: count from its end. */
	const char *s = strrchr(text, ')');
	for (int field = 2; s && field < 22; field++) {
		s = strchr(s, ' ');
		if (s)
			s++;
	}
	return s ? g_ascii_strtoull(s, NULL, 10) : 0;
}

static void run_free(ProcRun *r)
{
	proc_free(r->proc);
	watch_stop(&r->pipe, true);
	timer_stop(&r->timer);
	g_string_free(r->out, TRUE);
	g_clear_error(&r->err);
	g_free(r->name);
	g_free(r);
}

static void run_finish(ProcRun *r, const GError *err)
{
	r->fn(r->arg, r->out, err);
	run_free(r);
}

/* What is over the limit is read and dropped, so that the program is not held up by us. */
static void run_read(void *arg, int status, int events)
{
	ProcRun *r = arg;
	char buf[4096];
	ssize_t n;

	for (int budget = 32; budget > 0; budget--) {
		n = read(r->pipe_fd, buf, sizeof(buf));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			watch_events(r->pipe, 0);
			return;
		}
		g_string_append_len(r->out, buf, MIN((gsize)n, RUN_MAX_OUT - r->out->len));
	}
}

static char *last_line(const char *text)
{
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

	for (int i = (int)g_strv_length(lines) - 1; i >= 0; i--) {
		if (*g_strstrip(lines[i]))
			return g_utf8_make_valid(lines[i], -1);
	}
	return NULL;
}

static void run_exited(void *arg, int status)
{
	ProcRun *r = arg;
	g_autoptr(GError) err = NULL;

	/* A grandchild may keep the pipe open: what is in it now is all that counts. */
	run_read(r, 0, UV_READABLE);
	if (status != 0) {
		g_autofree char *last = last_line(r->out->str);
		if (status > 0 && WIFSIGNALED(status))
			err = err_new(EIO, "%s was killed by signal %d", r->name, WTERMSIG(status));
		else if (last)
			err = err_new(EIO, "%s", last);
		else
			err = err_new(EIO, "%s failed with exit status %d", r->name,
				      status < 0 ? -1 : WEXITSTATUS(status));
	}
	run_finish(r, err);
}

static void run_timeout(void *arg)
{
	ProcRun *r = arg;
	g_autoptr(GError) err = NULL;

	r->timer = NULL;
	if (r->err) {
		run_finish(r, r->err);
		return;
	}
	proc_kill(r->proc, SIGKILL);
	err = err_new(ETIMEDOUT, "%s did not finish within %.3g s", r->name,
		      (double)r->timeout_ms / 1000);
	run_finish(r, err);
}

ProcRun *proc_run(char *const *argv, const ProcUser *user, uint64_t timeout_ms, ProcRunFn fn,
		  void *arg)
{
	ProcRun *r = g_new0(ProcRun, 1);
	int fds[2] = { -1, -1 };

	r->fn = fn;
	r->arg = arg;
	r->timeout_ms = timeout_ms;
	r->name = g_path_get_basename(argv[0]);
	r->out = g_string_new(NULL);
	if (pipe2(fds, O_CLOEXEC) < 0) {
		err_set(&r->err, errno, "cannot run %s: %s", r->name, g_strerror(errno));
	} else {
		const ProcSpec spec = {
			.argv = argv,
			.user = user,
			.out_fd = fds[1],
			.err_fd = fds[1],
		};
		r->proc = proc_spawn(&spec, run_exited, r, &r->err);
		close(fds[1]);
	}
	if (r->proc) {
		(void)fcntl(fds[0], F_SETFL, O_NONBLOCK);
		r->pipe_fd = fds[0];
		r->pipe = watch_start(fds[0], UV_READABLE, run_read, r);
	} else if (fds[0] >= 0) {
		close(fds[0]);
	}
	/* A failure to start is told from the loop, like all others. */
	r->timer = timer_start(r->proc ? timeout_ms : 0, run_timeout, r);
	return r;
}

void proc_run_cancel(ProcRun *r)
{
	if (!r)
		return;
	if (r->proc)
		proc_kill(r->proc, SIGKILL);
	run_free(r);
}

void proc_user_lookup(ProcUser *user, uid_t uid, gid_t gid)
{
	struct passwd pw, *found = NULL;
	g_autofree char *buf = g_malloc(64 << 10);
	int n = 64;

	*user = (ProcUser){ .uid = uid, .gid = gid, .change = uid != geteuid() };
	if (!user->change)
		return;
	if (getpwuid_r(uid, &pw, buf, 64 << 10, &found) != 0 || !found)
		return;
	/* Not that of the VM: a directory's set-group-ID bit or chgrp(1) is no membership. */
	user->gid = gid = found->pw_gid;
	user->groups = g_new(gid_t, n);
	/* It stores the number needed, which can have grown by the next call. */
	while (getgrouplist(found->pw_name, gid, user->groups, &n) < 0 && n <= MAX_GROUPS)
		user->groups = g_renew(gid_t, user->groups, (gsize)n);
	user->n_groups = n <= MAX_GROUPS ? n : 0;
}

void proc_user_clear(ProcUser *user)
{
	g_clear_pointer(&user->groups, g_free);
	user->n_groups = 0;
}
