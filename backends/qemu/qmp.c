/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QMP: JSON lines over a unix socket. QEMU runs with the rights of the VM's owner, who may put
 * anything at the other end: what is not JSON, not an object or too long ends the connection, what
 * is merely unknown is ignored. Callbacks may free the Qmp. Loop thread only.
 */
#include "backends/qemu/qmp.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/line.h"
#include "vmfs/loop.h"

struct QmpSlot {
	Qmp *qmp;
	json_int_t id;
	char *command;
	QmpFn fn;
	void *arg;
	Timer *timer;
};

struct Qmp {
	const QmpOps *ops;
	void *arg;
	Line *line;
	Timer *timer;  /* until the first answer; then, of a connection that ended, until we say so
			*/
	GError *ended; /* why the connection did */
	uint64_t timeout_ms;
	json_int_t last_id;
	GQueue slots; /* of QmpSlot, oldest first */
	bool greeted, over, freed;
	unsigned busy; /* callbacks under way */
	gint64 second; /* the one in which `heard` messages came */
	unsigned heard;
};

static void destroy(Qmp *q)
{
	line_free(q->line);
	g_clear_error(&q->ended);
	g_free(q);
}

static void leave(Qmp *q)
{
	if (--q->busy == 0 && q->freed)
		destroy(q);
}

static void slot_free(QmpSlot *s)
{
	timer_stop(&s->timer);
	g_free(s->command);
	g_free(s);
}

/* Take the slot out of the queue and answer it. */
static void slot_answer(QmpSlot *s, const json_t *result, const GError *err)
{
	g_queue_remove(&s->qmp->slots, s);
	if (s->fn)
		s->fn(s->arg, result, err);
	slot_free(s);
}

static void finish(Qmp *q, GError *take)
{
	g_autoptr(GError) err = take;

	if (q->over)
		return;
	q->over = true;
	q->busy++;
	timer_stop(&q->timer);
	line_free(g_steal_pointer(&q->line));
	/* Not those that the callbacks may add: their time-out answers them. */
	for (guint n = q->slots.length; n > 0 && !q->freed && q->slots.length; n--)
		slot_answer(g_queue_peek_head(&q->slots), NULL, err);
	if (!q->freed)
		q->ops->closed(q->arg, err);
	leave(q);
}

static GError *command_error(const QmpSlot *s, const json_t *error)
{
	static const struct {
		const char *name;
		int code;
	} classes[] = {
		{ "CommandNotFound", EOPNOTSUPP },
		{ "DeviceNotFound", ENOENT },
		{ "DeviceNotActive", EBUSY },
		{ "KVMMissingCap", EOPNOTSUPP },
	};
	const char *class = json_string_value(json_object_get(error, "class"));
	const char *desc = json_string_value(json_object_get(error, "desc"));
	int code = qemu_errno(desc);

	for (size_t i = 0; class && i < G_N_ELEMENTS(classes); i++) {
		if (!strcmp(class, classes[i].name))
			code = classes[i].code;
	}
	return err_new(code, "%s: %s", s->command, desc ? desc : "failed without a reason");
}

static void take_answer(Qmp *q, const json_t *msg)
{
	const json_t *id = json_object_get(msg, "id");
	const json_t *error = json_object_get(msg, "error");
	QmpSlot *s = NULL;

	for (GList *l = q->slots.head; l && !s; l = l->next) {
		QmpSlot *candidate = l->data;
		if (json_is_integer(id) && candidate->id == json_integer_value(id))
			s = candidate;
	}
	if (!s) /* cancelled, or too late */
		return;
	if (error) {
		g_autoptr(GError) err = command_error(s, error);
		slot_answer(s, NULL, err);
	} else {
		slot_answer(s, json_object_get(msg, "return"), NULL);
	}
}

static void take_message(Qmp *q, const json_t *msg)
{
	const char *event = json_string_value(json_object_get(msg, "event"));

	if (!q->greeted) {
		q->greeted = json_is_object(json_object_get(msg, "QMP"));
		if (!q->greeted)
			finish(q, err_new(EPROTO, "the monitor did not greet us"));
	} else if (event) {
		q->ops->event(q->arg, event, json_object_get(msg, "data"));
	} else if (json_object_get(msg, "return") || json_object_get(msg, "error")) {
		take_answer(q, msg);
	}
}

/* QEMU says little. A peer that floods us would keep the others waiting. */
static bool is_flood(Qmp *q)
{
	const gint64 second = g_get_monotonic_time() / G_USEC_PER_SEC;

	if (q->second != second)
		q->heard = 0;
	q->second = second;
	return ++q->heard > QMP_MAX_HEARD;
}

void qmp_feed(Qmp *q, char *line, size_t len)
{
	json_error_t where;

	if (q->over || !len)
		return;
	q->busy++;
	if (is_flood(q)) {
		finish(q, err_new(EPROTO, "the monitor says more than %d things a second",
				  QMP_MAX_HEARD));
		leave(q);
		return;
	}
	json_t *msg = json_loadb(line, len, 0, &where);
	if (json_is_object(msg))
		take_message(q, msg);
	else
		finish(q, err_new(EPROTO, "the monitor does not speak JSON: %s",
				  msg ? "not an object" : where.text));
	json_decref(msg);
	leave(q);
}

static void on_line(void *arg, char *line, size_t len)
{
	qmp_feed(arg, line, len);
}

static void grace_over(void *arg)
{
	Qmp *q = arg;

	q->timer = NULL;
	qmp_settle(q);
}

static void on_closed(void *arg, const GError *err)
{
	Qmp *q = arg;

	line_free(g_steal_pointer(&q->line));
	timer_stop(&q->timer);
	if (err_code(err) == ECONNRESET || err_code(err) == EPIPE)
		q->ended =
			err_new(EIO, "QEMU has closed its monitor: it has ended, or is about to");
	else
		q->ended = err_new(err_code(err), "the monitor: %s", err->message);
	if (q->greeted)
		q->timer = timer_start(QMP_GRACE_MS, grace_over, q);
	else
		qmp_settle(q);
}

void qmp_settle(Qmp *q)
{
	if (q->ended)
		finish(q, g_steal_pointer(&q->ended));
}

static const LineOps line_ops = { .line = on_line, .closed = on_closed };

static void no_greeting(void *arg)
{
	Qmp *q = arg;

	q->timer = NULL;
	finish(q, err_new(ETIMEDOUT, "the monitor did not answer within %.3g s",
			  (double)q->timeout_ms / 1000));
}

static void negotiated(void *arg, const json_t *result, const GError *err)
{
	Qmp *q = arg;

	if (q->over)
		return;
	timer_stop(&q->timer);
	if (err)
		finish(q, g_error_copy(err));
	else
		q->ops->ready(q->arg);
}

static Qmp *new_qmp(const char *path, uint64_t timeout_ms, const QmpOps *ops, void *arg)
{
	Qmp *q = g_new0(Qmp, 1);

	q->ops = ops;
	q->arg = arg;
	q->timeout_ms = timeout_ms;
	g_queue_init(&q->slots);
	if (path)
		q->line = line_connect(path, QMP_MAX_LINE, &line_ops, q);
	if (timeout_ms)
		q->timer = timer_start(timeout_ms, no_greeting, q);
	/* The connection's own timer, if it has one, stands for this command's. */
	QmpSlot *s = qmp_execute(q, "qmp_capabilities", NULL, negotiated, q);
	timer_stop(&s->timer);
	return q;
}

Qmp *qmp_new(const QmpOps *ops, void *arg)
{
	return new_qmp(NULL, 0, ops, arg);
}

Qmp *qmp_connect(const char *path, uint64_t timeout_ms, const QmpOps *ops, void *arg)
{
	return new_qmp(path, timeout_ms, ops, arg);
}

void qmp_free(Qmp *q)
{
	QmpSlot *s;

	if (!q)
		return;
	q->over = true;
	q->freed = true;
	timer_stop(&q->timer);
	line_free(g_steal_pointer(&q->line));
	while ((s = g_queue_pop_head(&q->slots)))
		slot_free(s);
	if (!q->busy)
		destroy(q);
}

bool qmp_is_alive(const Qmp *q)
{
	return q && !q->over;
}

static void slot_expired(void *arg)
{
	QmpSlot *s = arg;
	Qmp *q = s->qmp;
	g_autoptr(GError) err = NULL;

	if (q->over)
		err = err_new(ENOTCONN, "%s: the monitor is gone", s->command);
	else
		err = err_new(ETIMEDOUT, "%s: the monitor did not answer within %d s", s->command,
			      QMP_TIMEOUT_MS / 1000);
	s->timer = NULL;
	q->busy++;
	slot_answer(s, NULL, err);
	leave(q);
}

QmpSlot *qmp_execute_fd(Qmp *q, const char *command, json_t *args, int fd, QmpFn fn, void *arg)
{
	QmpSlot *s = g_new0(QmpSlot, 1);
	json_t *msg = json_object();

	s->qmp = q;
	s->id = ++q->last_id;
	s->command = g_strdup(command);
	s->fn = fn;
	s->arg = arg;
	s->timer = timer_start(q->over ? 0 : QMP_TIMEOUT_MS, slot_expired, s);
	g_queue_push_tail(&q->slots, s);
	json_object_set_new(msg, "execute", json_string(command));
	if (args)
		json_object_set_new(msg, "arguments", args);
	json_object_set_new(msg, "id", json_integer(s->id));
	char *text = json_dumps(msg, JSON_COMPACT);
	g_autofree char *line = g_strconcat(text ? text : "", "\n", NULL);
	free(text); /* jansson's allocator is malloc */
	json_decref(msg);
	if (q->line && fd >= 0)
		line_send_fd(q->line, line, strlen(line), fd);
	else if (q->line)
		line_send(q->line, line, strlen(line));
	else if (fd >= 0)
		close(fd);
	return s;
}

QmpSlot *qmp_execute(Qmp *q, const char *command, json_t *args, QmpFn fn, void *arg)
{
	return qmp_execute_fd(q, command, args, -1, fn, arg);
}

void qmp_cancel(QmpSlot **slot)
{
	QmpSlot *s = *slot;

	if (!s)
		return;
	*slot = NULL;
	g_queue_remove(&s->qmp->slots, s);
	slot_free(s);
}
