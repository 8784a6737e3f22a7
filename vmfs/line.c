/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of a unix stream socket. The peer is not trusted: what it sends and what it leaves
 * unread are both bounded. A Line whose callback frees it lives on until the handler has returned.
 * Loop thread only.
 */
#include "vmfs/line.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/loop.h"

#define READ_CHUNK    (16u << 10)
#define READ_BUDGET   16 /* chunks a turn, so that one peer does not keep out the others */
#define MAX_OUT	      (4u << 20)
#define CONNECT_TRIES 10 /* while the backlog is full: 10, 20, 40... ms, some 10 s in all */

struct Line {
	const LineOps *ops;
	void *arg;
	char *path;
	size_t max_line;
	int fd; /* owned by watch */
	Watch *watch;
	Timer *timer; /* next try to connect, or the report of a failure */
	unsigned tries;
	GError *failure;
	GByteArray *in, *out;
	size_t scanned;	 /* bytes of in known to hold no line end */
	size_t out_done; /* bytes of out already sent */
	GQueue passed;	 /* of Passed, in the order of their bytes */
	unsigned busy;	 /* callbacks under way */
	bool over, freed;
};

/* A descriptor that goes with the byte at this place of `out`. */
typedef struct Passed {
	size_t at;
	int fd;
} Passed;

static void drop_passed(Line *l)
{
	Passed *p;

	while ((p = g_queue_pop_head(&l->passed))) {
		close(p->fd);
		g_free(p);
	}
}

static void clear_out(Line *l)
{
	g_byte_array_set_size(l->out, 0);
	l->out_done = 0;
	drop_passed(l);
}

static void destroy(Line *l)
{
	drop_passed(l);
	g_byte_array_unref(l->in);
	g_byte_array_unref(l->out);
	g_clear_error(&l->failure);
	g_free(l->path);
	g_free(l);
}

static void enter(Line *l)
{
	l->busy++;
}

/* False when the line was freed in the meantime. */
static bool leave(Line *l)
{
	const bool freed = l->freed;

	if (--l->busy == 0 && freed)
		destroy(l);
	return !freed;
}

/* Close, and tell the owner (within an enter/leave pair). */
static void finish(Line *l, GError *take)
{
	g_autoptr(GError) err = take;

	if (l->over)
		return;
	l->over = true;
	watch_stop(&l->watch, true);
	timer_stop(&l->timer);
	clear_out(l);
	if (!l->freed)
		l->ops->closed(l->arg, err);
}

/* False when the line is over. */
static bool deliver_lines(Line *l)
{
	size_t start = 0;

	while (!l->over) {
		char *data = (char *)l->in->data;
		char *end = memchr(data + l->scanned, '\n', l->in->len - l->scanned);
		if (!end)
			break;
		const size_t next = (size_t)(end - data) + 1;
		size_t len = next - 1 - start;
		if (len > l->max_line)
			break;
		if (len > 0 && end[-1] == '\r')
			len--;
		data[start + len] = '\0';
		l->ops->line(l->arg, data + start, len);
		start = l->scanned = next;
	}
	if (l->over || l->freed)
		return false;
	if (start)
		g_byte_array_remove_range(l->in, 0, (guint)start);
	l->scanned = l->in->len;
	if (l->in->len > l->max_line) {
		finish(l, err_new(EMSGSIZE, "a line of more than %zu bytes", l->max_line));
		return false;
	}
	return true;
}

static bool deliver(Line *l, const char *buf, size_t len)
{
	if (l->max_line) {
		g_byte_array_append(l->in, (const guint8 *)buf, (guint)len);
		return deliver_lines(l);
	}
	l->ops->data(l->arg, buf, len);
	return !l->over && !l->freed;
}

static void read_some(Line *l)
{
	char buf[READ_CHUNK];

	for (int budget = READ_BUDGET; budget > 0; budget--) {
		const ssize_t n = recv(l->fd, buf, sizeof(buf), MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			finish(l, err_new(errno, "%s", g_strerror(errno)));
			return;
		}
		if (n == 0) {
			finish(l, err_new(ECONNRESET, "connection closed"));
			return;
		}
		if (!deliver(l, buf, (size_t)n))
			return;
		if ((size_t)n < sizeof(buf))
			return;
	}
}

static void want(Line *l)
{
	if (l->watch)
		watch_events(l->watch, line_queued(l) ? UV_READABLE | UV_WRITABLE : UV_READABLE);
}

/* The bytes with which a descriptor goes, and those up to the next one's. */
static ssize_t send_passing(Line *l, const Passed *p, size_t len)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = l->out->data + l->out_done, .iov_len = len };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &p->fd, sizeof(int));
	return sendmsg(l->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* As send(2), of some of what is queued. */
static ssize_t send_some(Line *l)
{
	Passed *p = g_queue_peek_head(&l->passed);
	const Passed *next = g_queue_peek_nth(&l->passed, 1);
	ssize_t n;

	if (!p || p->at > l->out_done)
		n = send(l->fd, l->out->data + l->out_done, (p ? p->at : l->out->len) - l->out_done,
			 MSG_DONTWAIT | MSG_NOSIGNAL);
	else
		n = send_passing(l, p, (next ? next->at : l->out->len) - l->out_done);
	if (n <= 0)
		return n;
	if (p && p->at == l->out_done) {
		close(p->fd);
		g_free(g_queue_pop_head(&l->passed));
	}
	l->out_done += (size_t)n;
	return n;
}

static void write_some(Line *l)
{
	const bool was_full = line_queued(l) != 0;

	while (line_queued(l)) {
		const ssize_t n = send_some(l);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			/* What the peer said before it went is still to be read: that ends it. */
			clear_out(l);
			break;
		}
	}
	if (!line_queued(l))
		clear_out(l);
	want(l);
	if (was_full && !line_queued(l) && l->ops->drained)
		l->ops->drained(l->arg);
}

static void ready(void *arg, int status, int events)
{
	Line *l = arg;

	enter(l);
	if (status == 0 && (events & UV_WRITABLE))
		write_some(l);
	/* After an error there may still be something to read, and recv() knows what happened. */
	if (!l->over && !l->freed && (status < 0 || (events & UV_READABLE)))
		read_some(l);
	if (!l->over && !l->freed && status < 0)
		finish(l, err_new(ECONNRESET, "connection lost"));
	leave(l);
}

static void report_failure(void *arg)
{
	Line *l = arg;

	l->timer = NULL;
	enter(l);
	finish(l, g_steal_pointer(&l->failure));
	leave(l);
}

static void fail_later(Line *l, int code)
{
	l->failure = err_new(code, "%s", g_strerror(code));
	l->timer = timer_start(0, report_failure, l);
}

/*
 * The directory may belong to somebody who has less rights than we have: a link put there, or to
 * there, must not lead us to a socket that its owner could not connect to.
 */
static int find_socket(const char *path)
{
	g_autofree char *dir = g_path_get_dirname(path);
	const int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st, owner;

	if (fd < 0)
		return -1;
	if (!fstat(fd, &st) && !stat(dir, &owner) && S_ISSOCK(st.st_mode) &&
	    st.st_uid == owner.st_uid)
		return fd;
	close(fd);
	errno = EACCES;
	return -1;
}

/* 0 or an errno. */
static int connect_at(int fd, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const int at = find_socket(path);
	int code = 0;

	if (at < 0)
		return errno;
	g_snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d", at);
	if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)))
		code = errno;
	close(at);
	return code;
}

static void try_connect(void *arg)
{
	Line *l = arg;

	l->timer = NULL;
	const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		fail_later(l, errno);
		return;
	}
	const int code = connect_at(fd, l->path);
	if (!code) {
		l->fd = fd;
		l->watch = watch_start(fd, UV_READABLE, ready, l);
		enter(l);
		write_some(l);
		leave(l);
		return;
	}
	close(fd);
	/* A full backlog is the one thing that passes, and there is no event for it. */
	if (code == EAGAIN && l->tries < CONNECT_TRIES)
		l->timer = timer_start(10u << l->tries++, try_connect, l);
	else
		fail_later(l, code == EAGAIN ? ETIMEDOUT : code);
}

Line *line_connect(const char *path, size_t max_line, const LineOps *ops, void *arg)
{
	Line *l = g_new0(Line, 1);

	l->ops = ops;
	l->arg = arg;
	l->max_line = max_line;
	l->fd = -1;
	l->in = g_byte_array_new();
	l->out = g_byte_array_new();
	l->path = g_strdup(path);
	try_connect(l);
	return l;
}

static void overflow(void *arg)
{
	Line *l = arg;

	l->timer = NULL;
	enter(l);
	finish(l, err_new(ENOBUFS, "the peer does not read"));
	leave(l);
}

static void forget_sent(Line *l)
{
	for (GList *i = l->passed.head; i; i = i->next)
		((Passed *)i->data)->at -= l->out_done;
	g_byte_array_remove_range(l->out, 0, (guint)l->out_done);
	l->out_done = 0;
}

void line_send_fd(Line *l, const void *data, size_t len, int fd)
{
	Passed *p;

	if (l->over || l->freed || !len || line_queued(l) + len > MAX_OUT) {
		close(fd);
		line_send(l, data, len);
		return;
	}
	p = g_new(Passed, 1);
	*p = (Passed){ .at = l->out->len, .fd = fd };
	g_queue_push_tail(&l->passed, p);
	line_send(l, data, len);
}

void line_send(Line *l, const void *data, size_t len)
{
	if (l->over || l->freed || !len)
		return;
	const bool idle = !line_queued(l);
	if (line_queued(l) + len > MAX_OUT) {
		if (!l->timer)
			l->timer = timer_start(0, overflow, l);
		return;
	}
	if (l->out_done > l->out->len / 2)
		forget_sent(l);
	g_byte_array_append(l->out, data, (guint)len);
	if (!idle || !l->watch)
		return;
	/* Try at once; drained() is for those who were told that it did not all fit. */
	while (line_queued(l) && send_some(l) > 0)
		;
	if (!line_queued(l))
		clear_out(l);
	want(l);
}

size_t line_queued(const Line *l)
{
	return l->out->len - l->out_done;
}

void line_free(Line *l)
{
	if (!l)
		return;
	watch_stop(&l->watch, true);
	timer_stop(&l->timer);
	l->over = true;
	l->freed = true;
	if (!l->busy)
		destroy(l);
}
