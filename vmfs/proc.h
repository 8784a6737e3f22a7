/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes: started so that they outlive the daemon (own session, no pipes to us), watched by
 * pidfd, which works alike for our own children and for those adopted from a former daemon.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct Proc Proc;

typedef struct ProcUser {
	uid_t uid;
	gid_t gid;
	gid_t *groups; /* supplementary, NULL with n_groups 0 */
	int n_groups;
	bool change; /* false: run with the daemon's own rights; the rest is ignored */
} ProcUser;

typedef struct ProcSpec {
	char *const *argv;    /* NULL-terminated; argv[0] is looked up in PATH */
	const ProcUser *user; /* NULL: the daemon's own rights */
	int out_fd, err_fd;   /* -1: /dev/null. stdin is always /dev/null */
	const int *fds;	      /* become 3, 4, 5... in the child; everything else is closed */
	unsigned n_fds;
} ProcSpec;

/*
 * Called once, on the loop, when the process is gone. status is as from waitpid(2), or -1 when it
 * is not known because the process was not our child.
 */
typedef void (*ProcExitFn)(void *arg, int status);

/* For small programs of our own. NULL and err when it could not be started: the errno of the
 * failing step, exec's included. */
Proc *proc_spawn(const ProcSpec *spec, ProcExitFn fn, void *arg, GError **err);

/*
 * The same, without waiting for it: the program's start takes milliseconds, and longer if its user
 * means harm. started() is called once, on the loop, with the process or an error (borrowed),
 * unless abandoned: then what was started is killed.
 */
typedef struct ProcStart ProcStart;
typedef void (*ProcStartedFn)(void *arg, Proc *p, const GError *err);
ProcStart *proc_start(const ProcSpec *spec, ProcStartedFn started, void *started_arg, ProcExitFn fn,
		      void *arg);
void proc_start_abandon(ProcStart *s);

/*
 * Watch a process that a former daemon started; start_time (proc_start_time()) guards against a
 * reused pid. ESRCH when it is gone.
 */
Proc *proc_adopt(pid_t pid, uint64_t start_time, ProcExitFn fn, void *arg, GError **err);

pid_t proc_pid(const Proc *p);
/* Send a signal by pidfd: never to another process. */
void proc_kill(Proc *p, int sig);
/* Stop watching; the process goes on. Accepts NULL. A Proc whose exit was reported is freed by this
 * too. */
void proc_free(Proc *p);

/* Clock ticks after boot at which pid started (field 22 of /proc/PID/stat), 0 when there is none.
 */
uint64_t proc_start_time(pid_t pid);

/*
 * Run a helper program to its end and collect what it prints (stdout and stderr together, at most
 * 64 KiB). fn is called once on the loop: err is set (ETIMEDOUT, or EIO with the program's last
 * line when it exits non-zero), else out holds the output. Both are borrowed. The returned Proc may
 * be given to proc_run_cancel(), after which fn is not called.
 */
typedef struct ProcRun ProcRun;
typedef void (*ProcRunFn)(void *arg, const GString *out, const GError *err);
ProcRun *proc_run(char *const *argv, const ProcUser *user, uint64_t timeout_ms, ProcRunFn fn,
		  void *arg);
void proc_run_cancel(ProcRun *r);

/*
 * Fill in the groups of uid (gid only when it has no account) and set `change` when uid is not the
 * daemon's own. Blocks on the name service: pool only.
 */
void proc_user_lookup(ProcUser *user, uid_t uid, gid_t gid);
void proc_user_clear(ProcUser *user);
