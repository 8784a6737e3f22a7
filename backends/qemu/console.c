/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/qemu/console.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"

#define CHUNK	   (64u << 10)
#define MAX_BEHIND (4 * CHUNK) /* more than this at once is skipped: no reader is shown as much */
#define LOG_MAX	   (64u << 20) /* bytes; then the older half goes */

struct Console {
	const ConsoleOps *ops;
	void *arg;
	char *in_path;
	int in_fd;	 /* -1 until something is typed: QEMU opens its end when it starts */
	Watch *in_watch; /* while it is full */
	int log_fd;
	off_t pos;
	uv_fs_event_t event;
};

static char *pipe_path(const char *run_dir, const char *end)
{
	return g_strdup_printf("%s/" CONSOLE_NAME ".%s", run_dir, end);
}

static int open_log(const char *data_dir, int flags)
{
	g_autofree char *path = g_build_filename(data_dir, CONSOLE_LOG, NULL);
	int fd = open(path,
		      flags | O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
		      0600);
	struct stat st;

	if (fd >= 0 && (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_nlink != 1)) {
		close(fd);
		errno = EINVAL;
		return -1;
	}
	return fd;
}

bool console_prepare(const char *run_dir, const char *data_dir, GError **err)
{
	g_autofree char *in = pipe_path(run_dir, "in"), *out = pipe_path(run_dir, "out");
	int fd;

	/* QEMU opens both to read and write; its output is wanted in the log only. */
	if (mkfifo(in, 0600) || symlink("/dev/null", out))
		return err_set(err, errno, "cannot make %s: %s", in, g_strerror(errno));
	fd = open_log(data_dir, O_CREAT);
	if (fd < 0)
		return err_set(err, errno, "cannot write %s/" CONSOLE_LOG ": %s", data_dir,
			       g_strerror(errno));
	close(fd);
	return true;
}

/* COLLAPSE_RANGE keeps the newer half in place; where the file system has none, all of it goes. */
static void bound_log(Console *c, off_t size)
{
	if (size <= LOG_MAX)
		return;
	if (!fallocate(c->log_fd, FALLOC_FL_COLLAPSE_RANGE, 0, LOG_MAX / 2)) {
		c->pos = MAX(c->pos - (off_t)LOG_MAX / 2, 0);
		return;
	}
	if (ftruncate(c->log_fd, 0))
		log_warning("cannot shorten a console.log: %s", g_strerror(errno));
	else
		c->pos = 0;
}

void console_catch_up(Console *c)
{
	char buf[CHUNK];
	struct stat st;
	ssize_t n;

	if (fstat(c->log_fd, &st))
		return;
	if (st.st_size < c->pos)
		c->pos = 0;
	if (st.st_size - c->pos > MAX_BEHIND)
		c->pos = st.st_size - CHUNK;
	while (c->pos < st.st_size && (n = pread(c->log_fd, buf, sizeof buf, c->pos)) > 0) {
		c->pos += n;
		c->ops->data(c->arg, buf, (size_t)n);
	}
	bound_log(c, st.st_size);
	c->ops->at(c->arg, (uint64_t)c->pos);
}

static void on_log(uv_fs_event_t *event, const char *name, int events, int status)
{
	if (status == 0)
		console_catch_up(event->data);
}

Console *console_open(const char *run_dir, const char *data_dir, const ConsoleOps *ops, void *arg,
		      GError **err)
{
	int fd = open_log(data_dir, 0);
	g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
	Console *c;
	int code;

	if (fd < 0) {
		(void)err_set(err, errno, "cannot open %s/" CONSOLE_LOG ": %s", data_dir,
			      g_strerror(errno));
		return NULL;
	}
	c = g_new0(Console, 1);
	c->ops = ops;
	c->arg = arg;
	c->in_path = pipe_path(run_dir, "in");
	c->in_fd = -1;
	c->log_fd = fd;
	c->pos = MAX(lseek(fd, 0, SEEK_END), 0);
	c->event.data = c;
	(void)uv_fs_event_init(loop_get(), &c->event);
	/* By descriptor: what the path leads to is the owner's to change. */
	code = uv_fs_event_start(&c->event, on_log, path, 0);
	if (code) {
		(void)err_set(err, -code, "cannot watch %s/" CONSOLE_LOG ": %s", data_dir,
			      uv_strerror(code));
		console_free(c);
		return NULL;
	}
	return c;
}

void console_seek(Console *c, uint64_t offset)
{
	c->pos = (off_t)MIN(offset, INT64_MAX);
	console_catch_up(c);
}

void console_rewind(Console *c, size_t past)
{
	console_seek(c, (uint64_t)MAX(c->pos - (off_t)past, 0));
}

static void on_room(void *arg, int status, int events)
{
	Console *c = arg;

	watch_stop(&c->in_watch, false);
	c->ops->room(c->arg);
}

static void open_input(Console *c)
{
	struct stat st;

	c->in_fd = open(c->in_path, O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	if (c->in_fd >= 0 && (fstat(c->in_fd, &st) || !S_ISFIFO(st.st_mode))) {
		close(c->in_fd);
		c->in_fd = -1;
	}
}

size_t console_write(Console *c, const char *data, size_t len)
{
	ssize_t n;

	if (c->in_watch)
		return 0;
	if (c->in_fd < 0)
		open_input(c);
	/* Nobody is there to read: as on a line that is not plugged in. */
	if (c->in_fd < 0)
		return len;
	n = write(c->in_fd, data, len);
	if (n < 0 && errno != EAGAIN)
		return len;
	if (n < (ssize_t)len)
		c->in_watch = watch_start(c->in_fd, UV_WRITABLE, on_room, c);
	return n < 0 ? 0 : (size_t)n;
}

static void on_closed(uv_handle_t *handle)
{
	g_free(handle->data);
}

void console_free(Console *c)
{
	if (!c)
		return;
	watch_stop(&c->in_watch, false);
	if (c->in_fd >= 0)
		close(c->in_fd);
	close(c->log_fd);
	g_free(c->in_path);
	uv_close((uv_handle_t *)&c->event, on_closed);
}
