/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a command and takes the part of init for all that descends from it: reaps orphans at once,
 * and when asked to end, or when its parent ends, ends the command and whatever it left.
 *
 *   reaper COMMAND...
 */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "bench.h"

static volatile sig_atomic_t ending;
static pid_t command;

static void on_term(int sig)
{
	(void)sig;
	ending = 1;
	kill(command, SIGTERM);
}

static void kill_children(void)
{
	char path[64];
	long pid;

	(void)snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
	FILE *f = fopen(path, "re");
	while (f && fscanf(f, "%ld", &pid) == 1)
		kill((pid_t)pid, SIGKILL);
	if (f)
		fclose(f);
}

int main(int argc, char *argv[])
{
	struct sigaction act = { .sa_handler = on_term };
	sigset_t term;
	pid_t pid;

	if (argc < 2)
		errx(2, "usage: reaper COMMAND...");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, NULL);
	sigaction(SIGTERM, &act, NULL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	command = fork();
	if (command < 0)
		err(1, "fork");
	if (command == 0) {
		signal(SIGTERM, SIG_DFL);
		sigprocmask(SIG_UNBLOCK, &term, NULL);
		execvp(argv[1], argv + 1);
		err(127, "%s", argv[1]);
	}
	sigprocmask(SIG_UNBLOCK, &term, NULL);
	while ((pid = wait(NULL)) > 0 || errno == EINTR)
		if (pid == command)
			break;
	do
		kill_children();
	while (wait(NULL) > 0 || errno == EINTR);
	return ending ? 0 : 1;
}
