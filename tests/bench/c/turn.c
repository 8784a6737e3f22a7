/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timed turns of system calls on files, and of whole commands.
 *
 *   turn orc FILE           open, one read, close
 *   turn slurp FILE         open, read to the end, close
 *   turn pread FILE         pread of one open descriptor
 *   turn write FILE TEXT... open, write, close: one text after the other, then again
 *   turn mkrm PATH          mkdir and rmdir
 *   turn spawn COMMAND...   run it to its end, its output into /dev/null
 */
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "bench.h"

extern char **environ;

typedef struct Args {
	char **words;
	int n_words, turn, fd;
} Args;

static char buf[1 << 20];

static void turn_orc(void *arg)
{
	const Args *a = arg;
	const int fd = open(a->words[0], O_RDONLY);

	if (fd < 0 || read(fd, buf, 4096) <= 0)
		err(1, "%s", a->words[0]);
	close(fd);
}

static void turn_slurp(void *arg)
{
	const Args *a = arg;
	const int fd = open(a->words[0], O_RDONLY);
	ssize_t n = -1;

	if (fd >= 0)
		while ((n = read(fd, buf, sizeof buf)) > 0)
			;
	if (n < 0)
		err(1, "%s", a->words[0]);
	close(fd);
}

static void turn_pread(void *arg)
{
	const Args *a = arg;

	if (pread(a->fd, buf, 4096, 0) <= 0)
		err(1, "%s", a->words[0]);
}

static void turn_write(void *arg)
{
	Args *a = arg;
	const char *text = a->words[1 + a->turn++ % (a->n_words - 1)];
	const int fd = open(a->words[0], O_WRONLY | O_TRUNC);
	const ssize_t len = (ssize_t)strlen(text);

	if (fd < 0 || write(fd, text, (size_t)len) != len || close(fd))
		err(1, "%s: %s", a->words[0], text);
}

static void turn_mkrm(void *arg)
{
	const Args *a = arg;

	if (mkdir(a->words[0], 0755) || rmdir(a->words[0]))
		err(1, "%s", a->words[0]);
}

static void turn_spawn(void *arg)
{
	const Args *a = arg;
	posix_spawn_file_actions_t acts;
	int status;
	pid_t pid;

	posix_spawn_file_actions_init(&acts);
	posix_spawn_file_actions_addopen(&acts, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&acts, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	errno = posix_spawnp(&pid, a->words[0], &acts, NULL, a->words, environ);
	posix_spawn_file_actions_destroy(&acts);
	if (errno || waitpid(pid, &status, 0) != pid)
		err(1, "%s", a->words[0]);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		errx(1, "%s failed: %#x", a->words[0], (unsigned)status);
}

static const struct {
	const char *name;
	int n_words;
	Turn turn;
} kinds[] = {
	{ "orc", 1, turn_orc },	    { "slurp", 1, turn_slurp }, { "pread", 1, turn_pread },
	{ "write", 2, turn_write }, { "mkrm", 1, turn_mkrm },	{ "spawn", 1, turn_spawn },
};

int main(int argc, char *argv[])
{
	Args a = { argv + 2, argc - 2, 0, -1 };

	for (unsigned i = 0; argc > 2 && i < sizeof kinds / sizeof kinds[0]; i++) {
		if (strcmp(argv[1], kinds[i].name) || argc - 2 < kinds[i].n_words)
			continue;
		if (kinds[i].turn == turn_pread && (a.fd = open(argv[2], O_RDONLY)) < 0)
			err(1, "%s", argv[2]);
		serve_turns(kinds[i].turn, &a);
		return 0;
	}
	errx(2, "usage: turn orc|slurp|pread|write|mkrm|spawn ...");
}
