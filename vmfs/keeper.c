/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper. One thread in poll(2): signals, the daemon's messages, and at most one deadline. It
 * must stay simpler than anything that it keeps: nothing it does may fail later.
 */
#include "vmfs/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmfs/daemon.h"
#include "vmfs/err.h"
#include "vmfs/fs.h"
#include "vmfs/keep.h"
#include "vmfs/log.h"
#include "vmfs/store.h"
#include "vmfs/supervisor.h"
#include "vmfs/takeover.h"
#include "vmfs/upgrade.h"

#define STOP_MS	     15000 /* for the daemon to end, then it is killed */
#define READY_MS     30000 /* for a new version to come up, then it is the old one's turn */
#define MAX_DELAY_MS 10000 /* before one is started that has crashed again and again */
#define FIRST_FREE   (KEEPER_FDS_END + 8)

/* What goes on beside serving. */
typedef enum Phase {
	KEEPING,
	STOPPING,  /* the mount goes */
	LEAVING,   /* the daemon makes room for a new version */
	UPGRADING, /* which has been started */
} Phase;

static struct {
	const Options *options;
	char **argv; /* the daemon's */
	KeepHead *head;
	int fuse, memory, locks[2], signals;
	int binary, other; /* what is run; in an upgrade the new one, and then the old one */
	char *path;	   /* of the binary */
	pid_t daemon;	   /* 0: none */
	int socket;	   /* -1: none */
	int listener;	   /* of upgrade.h */
	int asker;	   /* who waits for the end of an upgrade; -1: nobody */
	char *failure;	   /* of the upgrade; NULL: none */
	Phase phase;
	bool ready, was_ready;
	bool reloading;	  /* the supervisor waits for the end of it */
	unsigned crashes; /* in a row */
	int64_t due;	  /* g_get_monotonic_time() of the deadline; 0: none */
	bool over;
	int status; /* to exit with */
} k = { .socket = -1, .other = -1, .listener = -1, .asker = -1 };

static void set_due(unsigned ms)
{
	k.due = g_get_monotonic_time() + (int64_t)ms * 1000;
}

static void write_pid(const char *name, pid_t pid)
{
	g_autofree char *path = g_build_filename(k.options->runtime_dir, name, NULL);
	g_autofree char *text = g_strdup_printf("%d\n", (int)pid);
	g_autoptr(GError) e = NULL;

	if (!g_file_set_contents(path, text, -1, &e))
		log_warning("%s", e->message);
}

static void remove_pid(const char *name)
{
	g_autofree char *path = g_build_filename(k.options->runtime_dir, name, NULL);

	(void)unlink(path);
}

/* ---- the daemon ---- */

/* In the child. */
static G_GNUC_NORETURN void run_daemon(int socket)
{
	const int from[] = { k.fuse, k.memory, socket, k.locks[0], k.locks[1] };
	int high[G_N_ELEMENTS(from)];
	sigset_t none;

	for (unsigned i = 0; i < G_N_ELEMENTS(from); i++) {
		high[i] = fcntl(from[i], F_DUPFD_CLOEXEC, FIRST_FREE);
		if (high[i] < 0)
			_exit(EXIT_FAILURE);
	}
	k.binary = fcntl(k.binary, F_DUPFD_CLOEXEC, FIRST_FREE);
	for (unsigned i = 0; i < G_N_ELEMENTS(from); i++)
		if (dup2(high[i], KEEPER_FUSE + (int)i) < 0)
			_exit(EXIT_FAILURE);
	/* A terminal's Ctrl-C is for the keeper alone. */
	(void)setsid();
	(void)unsetenv("NOTIFY_SOCKET");
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)execveat(k.binary, "", k.argv, environ, AT_EMPTY_PATH);
	_exit(EXIT_FAILURE);
}

static bool start_daemon(void)
{
	int fds[2];
	pid_t pid;

	k.due = 0;
	k.ready = false;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds))
		return false;
	k.head->generation++;
	pid = fork();
	if (pid == 0)
		run_daemon(fds[1]);
	close(fds[1]);
	if (pid < 0) {
		close(fds[0]);
		return false;
	}
	k.daemon = pid;
	k.socket = fds[0];
	write_pid("daemon.pid", pid);
	if (k.phase == UPGRADING)
		set_due(READY_MS);
	return true;
}

static unsigned delay_ms(void)
{
	return k.crashes < 2 ? 0 : MIN(MAX_DELAY_MS, 50u << MIN(k.crashes, 16));
}

static void start_or_retry(void)
{
	if (!start_daemon()) {
		log_error("cannot start a daemon: %s", g_strerror(errno));
		set_due(MAX_DELAY_MS);
	}
}

static void say(KeeperMessage message)
{
	const char byte = (char)message;

	if (k.socket >= 0 && send(k.socket, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_warning("cannot speak to the daemon: %s", g_strerror(errno));
	set_due(STOP_MS);
}

static void end(int status)
{
	k.over = true;
	k.status = status;
}

/* Somebody else has unmounted it. */
static bool is_unmounted(void)
{
	struct pollfd p = { .fd = k.fuse };

	return poll(&p, 1, 0) == 1 && p.revents & POLLERR;
}

static char *describe(int status)
{
	if (WIFSIGNALED(status))
		return g_strdup_printf("was killed by signal %d", WTERMSIG(status));
	return g_strdup_printf("ended with status %d", WEXITSTATUS(status));
}

/* It ended by itself, and may do it again. */
static bool is_crash(int status)
{
	if (WIFSIGNALED(status))
		return WTERMSIG(status) != SIGKILL && WTERMSIG(status) != SIGTERM;
	return WEXITSTATUS(status) && k.ready;
}

static void swap_binaries(void)
{
	const int binary = k.binary;

	k.binary = k.other;
	k.other = binary;
}

static void keep_going(int status)
{
	g_autofree char *how = describe(status);

	k.head->crashed = is_crash(status);
	if (k.phase == LEAVING) {
		k.phase = UPGRADING;
		k.crashes = 0;
		swap_binaries();
	} else if (k.phase == UPGRADING) {
		log_error("the new version %s before it served; the old one goes on", how);
		k.failure = g_strdup_printf("the new version %s before it served; the old one "
					    "serves %s",
					    how, k.options->mountpoint);
		k.phase = KEEPING;
		swap_binaries();
		close(k.other);
		k.other = -1;
	} else {
		const bool innocent =
			!status || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

		k.crashes = innocent ? 0 : k.crashes + 1;
		log_warning("the daemon %s; another one takes over", how);
	}
	if (delay_ms())
		set_due(delay_ms());
	else
		start_or_retry();
}

static void on_exit_of_daemon(int status)
{
	k.daemon = 0;
	k.due = 0;
	close(k.socket);
	k.socket = -1;
	if (k.phase == STOPPING || is_unmounted())
		end(EXIT_SUCCESS);
	else if (!k.was_ready && k.head->generation == 1)
		end(EXIT_FAILURE);
	else
		keep_going(status);
}

static void tell_asker(void)
{
	g_autofree char *success =
		g_strdup_printf("the new version serves %s", k.options->mountpoint);

	upgrade_answer(&k.asker, k.failure ? EXIT_FAILURE : EXIT_SUCCESS,
		       k.failure ? k.failure : success);
	g_clear_pointer(&k.failure, g_free);
}

static void on_message(void)
{
	char byte = 0;

	if (recv(k.socket, &byte, 1, MSG_DONTWAIT) != 1) {
		/* It is ending, which a signal will tell. */
		close(k.socket);
		k.socket = -1;
		return;
	}
	if (byte != KEEPER_READY)
		return;
	k.ready = true;
	if (k.phase == UPGRADING) {
		k.phase = KEEPING;
		k.due = 0;
		close(k.other);
		k.other = -1;
		log_info("a new version serves");
	}
	if (k.reloading)
		tell_asker();
	/* Of a successor nobody hears. */
	if (!k.was_ready || k.reloading) {
		supervisor_ready();
		daemon_ready();
	}
	k.was_ready = true;
	k.reloading = false;
}

/* ---- orders ---- */

static void stop(void)
{
	if (k.phase == STOPPING)
		return;
	k.phase = STOPPING;
	supervisor_stopping();
	if (k.daemon)
		say(KEEPER_STOP);
	else
		end(EXIT_SUCCESS);
}

static void upgrade(void)
{
	if (k.phase != KEEPING || !k.daemon || !k.ready) {
		upgrade_answer(&k.asker, EXIT_FAILURE,
			       "vmfs is not up yet, or ends; nothing was changed");
		return;
	}
	k.other = open(k.path, O_PATH | O_CLOEXEC);
	if (k.other < 0) {
		g_autofree char *why =
			g_strdup_printf("cannot start %s anew: %s", k.path, g_strerror(errno));

		log_error("%s", why);
		upgrade_answer(&k.asker, EXIT_FAILURE, why);
		return;
	}
	k.phase = LEAVING;
	k.reloading = true;
	supervisor_reloading();
	say(KEEPER_HAND_OVER);
}

static void on_asker(void)
{
	if (k.phase != KEEPING) {
		/* It is told of the end of the upgrade that is under way, or has gone. */
		char byte;

		if (recv(k.asker, &byte, 1, 0) == 0) {
			close(k.asker);
			k.asker = -1;
		}
	} else if (upgrade_read(k.asker, k.options->mountpoint)) {
		upgrade();
	} else {
		upgrade_answer(&k.asker, EXIT_FAILURE, "this vmfs is mounted somewhere else");
	}
}

static void on_signal(void)
{
	struct signalfd_siginfo si;
	int status;

	if (read(k.signals, &si, sizeof si) != sizeof si)
		return;
	switch (si.ssi_signo) {
	case SIGCHLD:
		if (k.daemon && waitpid(k.daemon, &status, WNOHANG) == k.daemon)
			on_exit_of_daemon(status);
		break;
	case SIGHUP:
		/* Of a terminal that is gone, it means the end. */
		if (isatty(STDIN_FILENO))
			stop();
		else
			upgrade();
		break;
	case SIGUSR1:
		/* To be started again, as after a crash of the keeper. */
		log_info("the keeper leaves; the daemon serves on");
		exit(EXIT_SUCCESS);
	default:
		log_info("signal %u: unmounting; the VMs go on", si.ssi_signo);
		stop();
	}
}

static void on_due(void)
{
	k.due = 0;
	if (!k.daemon) {
		start_or_retry();
		return;
	}
	log_error("the daemon did not %s in time; it is killed",
		  k.phase == UPGRADING ? "come up" : "end");
	(void)kill(k.daemon, SIGKILL);
}

static int timeout_ms(void)
{
	const int64_t left = k.due - g_get_monotonic_time();

	return !k.due ? -1 : left <= 0 ? 0 : (int)(left / 1000) + 1;
}

static void loop(void)
{
	while (!k.over) {
		struct pollfd p[] = { { .fd = k.signals, .events = POLLIN },
				      { .fd = k.socket, .events = POLLIN },
				      { .fd = k.asker, .events = POLLIN },
				      /* One after the other. */
				      { .fd = k.asker < 0 ? k.listener : -1, .events = POLLIN } };

		if (poll(p, G_N_ELEMENTS(p), timeout_ms()) < 0)
			continue;
		if (p[1].revents)
			on_message();
		if (p[0].revents)
			on_signal();
		if (p[2].revents && k.asker >= 0)
			on_asker();
		if (p[3].revents)
			k.asker = upgrade_accept(k.listener);
		if (k.due && !timeout_ms())
			on_due();
	}
}

/* ---- beginning and end ---- */

static char **daemon_argv(char **argv)
{
	GPtrArray *a = g_ptr_array_new();

	g_ptr_array_add(a, argv[0]);
	g_ptr_array_add(a, (char *)"--served");
	for (char **p = argv + 1; *p; p++)
		g_ptr_array_add(a, *p);
	g_ptr_array_add(a, NULL);
	return (char **)g_ptr_array_free(a, FALSE);
}

static bool keep(const int fds[TAKEOVER_FDS])
{
	k.fuse = fds[0];
	k.memory = fds[1];
	k.locks[0] = fds[2];
	k.locks[1] = fds[3];
	if (!k.head)
		k.head = keep_open(k.memory);
	if (!k.head)
		return false;
	k.head->keeper_pid = getpid();
	k.head->crashed = false;
	return true;
}

/* From a daemon whose keeper has died. */
static bool take_over(Options *o, const char *mountpoint)
{
	int fds[TAKEOVER_FDS];

	if (!takeover_ask(o->runtime_dir, mountpoint, fds) || !keep(fds))
		return false;
	g_free(o->mountpoint);
	o->mountpoint = g_strdup(mountpoint);
	return true;
}

static void close_all(const int fds[TAKEOVER_FDS])
{
	for (unsigned i = 0; i < TAKEOVER_FDS; i++)
		close(fds[i]);
}

/*
 * With what the supervisor held for us. Nothing here looks at the mountpoint, which nobody may be
 * serving. False without err: there is nothing to go on with.
 */
static bool resume(Options *o, GError **err)
{
	int held[TAKEOVER_FDS];

	if (!supervisor_take(held))
		return false;
	if (!keep(held) || is_unmounted()) {
		close_all(held);
		k.head = NULL;
		supervisor_forget(true);
		return false;
	}
	/* A daemon that has outlived its keeper looks at keeper_pid after it says that it serves.
	 */
	if (!keep_is_served(k.memory)) {
		g_free(o->mountpoint);
		o->mountpoint = g_strdup(k.head->mountpoint);
		return true;
	}
	if (!take_over(o, k.head->mountpoint))
		return err_set(err, EBUSY, "the daemon that serves %s does not make room",
			       k.head->mountpoint);
	close_all(held);
	return true;
}

static bool mount_anew(Options *o, GError **err)
{
	char *mountpoint = daemon_mountpoint(o->mountpoint, err);

	if (!mountpoint)
		return false;
	g_free(o->mountpoint);
	o->mountpoint = mountpoint;
	k.memory = keep_create(&k.head);
	if (k.binary < 0 || k.memory < 0)
		return err_set(err, errno, "cannot make the memory file: %s", g_strerror(errno));
	if (g_strlcpy(k.head->mountpoint, o->mountpoint, PATH_MAX) >= PATH_MAX ||
	    g_strlcpy(k.head->state_dir, o->state_dir, PATH_MAX) >= PATH_MAX ||
	    g_strlcpy(k.head->runtime_dir, o->runtime_dir, PATH_MAX) >= PATH_MAX)
		return err_set(err, ENAMETOOLONG, "a directory's path is too long");
	k.head->keeper_pid = getpid();
	k.fuse = fs_mount(o->mountpoint, o->fuse, err);
	return k.fuse >= 0;
}

static bool prepare(Options *o, GError **err)
{
	g_autoptr(GError) e = NULL;

	k.path = g_file_read_link("/proc/self/exe", err);
	k.binary = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	if (!k.path)
		return false;
	if (resume(o, &e))
		return true;
	/* Its locks tell of a living vmfs before its mount is looked at. */
	if (!e && !store_lock(o->state_dir, o->runtime_dir, k.locks, &e) && e->code == EBUSY) {
		char *mountpoint = realpath(o->mountpoint, NULL);
		const bool taken = mountpoint && take_over(o, mountpoint);

		free(mountpoint);
		if (taken)
			return true;
	}
	if (e) {
		g_propagate_error(err, g_steal_pointer(&e));
		return false;
	}
	return mount_anew(o, err);
}

static void block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	(void)sigprocmask(SIG_BLOCK, &set, NULL);
	k.signals = signalfd(-1, &set, SFD_CLOEXEC);
}

int keeper_run(Options *options, char **argv)
{
	g_autoptr(GError) e = NULL;

	k.options = options;
	k.argv = daemon_argv(argv);
	if ((!options->foreground && !daemon_background(&e)) || !prepare(options, &e)) {
		log_error("%s", e->message);
		return EXIT_FAILURE;
	}
	block_signals();
	write_pid("keeper.pid", getpid());
	supervisor_hold((const int[]){ k.fuse, k.memory, k.locks[0], k.locks[1] });
	k.listener = upgrade_listen(options->runtime_dir);
	start_or_retry();
	loop();
	/* Whoever waits in the mount is freed by this. */
	supervisor_forget(false);
	close(k.fuse);
	daemon_unmount(options->mountpoint);
	upgrade_answer(&k.asker, EXIT_FAILURE, "vmfs has ended");
	upgrade_unlisten(options->runtime_dir, k.listener);
	remove_pid("daemon.pid");
	remove_pid("keeper.pid");
	return k.status;
}
