/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Conversations with a VMM's monitor. A conversation belongs to an open file and is gone with it.
 * What a writer may have outstanding is bounded, and so is what a reader leaves unread: nothing
 * more is asked then.
 */
#include "vmfs/monitor.h"

#include <errno.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/waitq.h"

#define MAX_LINE   4096 /* bytes */
#define MAX_LINES  64	/* waiting to be asked */
#define MAX_UNREAD (1u << 20)

typedef struct Talk {
	Vm *vm;		   /* the open file holds a reference */
	GString *part;	   /* a line that is not finished */
	GQueue lines;	   /* of char *: to be asked */
	AskWaiter *waiter; /* the one that is being asked */
	GString *unread;
	int err; /* to be told after what is unread */
} Talk;

static void ask_next(Talk *t);

static bool is_busy(const Talk *t)
{
	return t->waiter || t->lines.length;
}

static void answered(void *arg, GBytes *answer, const GError *e)
{
	Talk *t = arg;

	if (e) {
		t->err = err_code(e);
		/* What was to follow it makes no sense any more. */
		g_queue_clear_full(&t->lines, g_free);
		vm_set_error(t->vm, "monitor", e);
	} else {
		g_string_append_len(t->unread, g_bytes_get_data(answer, NULL),
				    (gssize)g_bytes_get_size(answer));
	}
	ask_next(t);
	waitq_wake(&t->vm->waiters);
}

/* A backend may answer at once: then this has called itself by way of answered(). */
static void ask_next(Talk *t)
{
	g_autofree char *line = NULL;

	if (t->waiter || t->unread->len >= MAX_UNREAD)
		return;
	line = g_queue_pop_head(&t->lines);
	if (line)
		ask_backend(t->vm, ASK_MONITOR, line, answered, t, &t->waiter);
}

static void monitor_open(const NodeRef *r, Reader *reader)
{
	Talk *t = g_new0(Talk, 1);

	t->vm = r->vm;
	t->part = g_string_new(NULL);
	t->unread = g_string_new(NULL);
	reader->own = t;
}

static void monitor_close(const NodeRef *r, Reader *reader)
{
	Talk *t = reader->own;

	(void)r;
	ask_leave(&t->waiter);
	g_queue_clear_full(&t->lines, g_free);
	g_string_free(t->part, TRUE);
	g_string_free(t->unread, TRUE);
	g_free(t);
}

static bool is_plain(const char *line)
{
	for (const char *c = line; *c; c++)
		if ((unsigned char)*c < ' ' && *c != '\t')
			return false;
	return g_utf8_validate(line, -1, NULL);
}

/* 0 or an errno; the line is taken over in any case. */
static int take_line(Talk *t)
{
	g_autofree char *line = g_strndup(t->part->str, t->part->len);
	const bool whole = strlen(line) == t->part->len;

	g_string_truncate(t->part, 0);
	g_strchomp(line);
	if (!whole || !is_plain(line))
		return EINVAL;
	if (*line)
		g_queue_push_tail(&t->lines, g_steal_pointer(&line));
	return 0;
}

static int refusal(const Vm *vm)
{
	if (vm->removed)
		return ENODEV;
	if (vm->pushed == VM_UNKNOWN)
		return EHOSTDOWN;
	return vm->pushed == VM_RUNNING || vm->pushed == VM_PAUSED ? 0 : ESRCH;
}

/* Up to the end of a line, or of the text. Bytes taken or -errno. */
static ssize_t take_piece(Talk *t, const char *data, size_t len)
{
	const char *newline = memchr(data, '\n', len);
	const size_t n = newline ? (size_t)(newline - data) : len;
	int err;

	if (t->part->len + n > MAX_LINE) {
		g_string_truncate(t->part, 0);
		return -EINVAL;
	}
	g_string_append_len(t->part, data, (gssize)n);
	err = newline ? take_line(t) : 0;
	return err ? -err : (ssize_t)(n + (newline != NULL));
}

static ssize_t monitor_write(const NodeRef *r, Reader *reader, const char *data, size_t len)
{
	Talk *t = reader->own;
	const int err = refusal(r->vm);
	size_t taken = 0;

	if (err)
		return -err;
	while (taken < len && t->lines.length < MAX_LINES) {
		const ssize_t n = take_piece(t, data + taken, len - taken);

		/* An error is told by the write that begins with the bad line. */
		if (n < 0 && !taken)
			return n;
		if (n < 0)
			break;
		taken += (size_t)n;
		ask_next(t);
	}
	return taken || !len ? (ssize_t)taken : -EAGAIN;
}

static ssize_t monitor_read(const NodeRef *r, Reader *reader, char *buf, size_t size)
{
	Talk *t = reader->own;
	const size_t n = MIN(size, t->unread->len);
	const int err = t->err;

	(void)r;
	if (n) {
		memcpy(buf, t->unread->str, n);
		g_string_erase(t->unread, 0, (gssize)n);
		ask_next(t);
		return (ssize_t)n;
	}
	if (is_busy(t))
		return -EAGAIN;
	t->err = 0;
	return -err;
}

static bool monitor_ready(const NodeRef *r, const Reader *reader)
{
	const Talk *t = reader->own;

	(void)r;
	return t->unread->len || !is_busy(t);
}

static GQueue *monitor_queue(const NodeRef *r)
{
	return &r->vm->waiters;
}

const StreamClass monitor_stream = {
	.open = monitor_open,
	.close = monitor_close,
	.read = monitor_read,
	.ready = monitor_ready,
	.write = monitor_write,
	.queue = monitor_queue,
	.write_queue = monitor_queue,
};
