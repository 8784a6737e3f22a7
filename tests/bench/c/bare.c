/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts a QEMU with nothing around it, as the daemon would: with listening sockets passed on as
 * descriptors 3 and up, of which the first is its monitor.
 *
 *   bare DIR SOCKETS LOG WORD COMMAND...
 *
 * Prints the nanoseconds from before the exec to QMP's first answer, to the answer to `cont`, and
 * to WORD in the console's LOG ('': do not wait for it), and from SIGKILL, after a second for the
 * guest to settle, to the reaped child.
 */
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/inotify.h>
#include <sys/wait.h>

#include "bench.h"

#define MAX_SOCKETS    4
#define SETTLE_SECONDS 1
#define FIRST_FD       3

extern char **environ;

static Qmp qmp;

/* Out of the way of the numbers that QEMU is to find them under. */
static int listen_at(const char *path)
{
	struct sockaddr_un a;
	const int low = socket(AF_UNIX, SOCK_STREAM, 0);
	const int fd = fcntl(low, F_DUPFD_CLOEXEC, FIRST_FD + MAX_SOCKETS);

	unix_address(path, &a);
	(void)unlink(path);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&a, sizeof a) || listen(fd, 1))
		err(1, "%s", path);
	close(low);
	return fd;
}

static pid_t spawn(char *argv[], const int fds[], int n_fds)
{
	posix_spawn_file_actions_t acts;
	pid_t pid;

	posix_spawn_file_actions_init(&acts);
	posix_spawn_file_actions_addopen(&acts, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&acts, STDERR_FILENO, STDOUT_FILENO);
	for (int i = 0; i < n_fds; i++)
		posix_spawn_file_actions_adddup2(&acts, fds[i], FIRST_FD + i);
	errno = posix_spawnp(&pid, argv[0], &acts, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&acts);
	if (errno)
		err(1, "%s", argv[0]);
	return pid;
}

static int watch_log(const char *path)
{
	const int fd = inotify_init1(IN_CLOEXEC);

	if (inotify_add_watch(fd, path, IN_MODIFY) < 0)
		err(1, "%s", path);
	return fd;
}

static void wait_word(int watch, const char *path, const char *word)
{
	static char text[1 << 20];
	char events[4096];
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	if (fd < 0)
		err(1, "%s", path);
	while ((len = pread(fd, text, sizeof text, 0)) >= 0 &&
	       !memmem(text, (size_t)len, word, strlen(word)))
		if (read(watch, events, sizeof events) < 0)
			err(1, "%s", path);
	close(fd);
}

int main(int argc, char *argv[])
{
	char paths[MAX_SOCKETS][sizeof((struct sockaddr_un *)0)->sun_path];
	int fds[MAX_SOCKETS];
	int64_t start, answered, running, up, kill_start, killed;

	if (argc < 6 || atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_SOCKETS)
		errx(2, "usage: bare DIR SOCKETS LOG WORD COMMAND...");
	const int n_fds = atoi(argv[2]), watch = watch_log(argv[3]);
	const char *word = argv[4];
	for (int i = 0; i < n_fds; i++) {
		(void)snprintf(paths[i], sizeof paths[i], "%s/socket%d", argv[1], i);
		fds[i] = listen_at(paths[i]);
	}
	start = now_ns();
	const pid_t pid = spawn(argv + 5, fds, n_fds);
	for (int i = 0; i < n_fds; i++)
		close(fds[i]); /* so that a QEMU that ends breaks the connections */
	qmp_connect(&qmp, paths[0]);
	answered = now_ns();
	qmp_execute(&qmp, "cont");
	running = now_ns();
	wait_word(watch, argv[3], word);
	up = now_ns();
	if (*word)
		sleep(SETTLE_SECONDS);
	kill_start = now_ns();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	killed = now_ns();
	for (int i = 0; i < n_fds; i++)
		(void)unlink(paths[i]);
	printf("%lld %lld %lld %lld\n", (long long)(answered - start), (long long)(running - start),
	       (long long)(up - start), (long long)(killed - kill_start));
	return 0;
}
