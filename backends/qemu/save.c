/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory and devices of a VM as QEMU's migration stream: out to a file, for sleep and snapshots,
 * and in from one. An event tells when it is over; the questions asked in between are for
 * `progress`, and for when that event is lost with the monitor. Loop thread only.
 */
#include "backends/qemu/save.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/err.h"

#define ASK_MS	      250
#define ASK_AGAIN_MS  10
#define MAX_BANDWIDTH (1ll << 50) /* bytes a second: no limit; the default is 128 MiB */

struct QemuStream {
	QemuVm *q;
	Op *op; /* whose progress it is; or NULL */
	QemuStreamFn done;
	void *arg;
	QmpSlot *slot, *ask;
	Timer *timer;
	bool in, aborting;
};

static void ask(void *arg);

static void stream_free(QemuStream *s)
{
	if (s->q->stream == s)
		s->q->stream = NULL;
	qmp_cancel(&s->slot);
	qmp_cancel(&s->ask);
	timer_stop(&s->timer);
	g_free(s);
}

static void finish(QemuStream *s, const GError *err)
{
	QemuStreamFn done = s->done;
	void *arg = s->arg;

	stream_free(s);
	done(arg, err);
}

static void finish_failed(QemuStream *s, const char *desc)
{
	g_autoptr(GError) err = err_new(qemu_errno(desc), "QEMU could not %s: %s",
					s->in ? "load the memory" : "save the memory",
					desc ? desc : "it does not say why");

	finish(s, err);
}

static bool is_over(const char *status)
{
	return !strcmp(status, "completed") || !strcmp(status, "failed") ||
	       !strcmp(status, "cancelled") || !strcmp(status, "none");
}

static void show_progress(QemuStream *s, const json_t *result)
{
	const json_t *ram = json_object_get(result, "ram");
	const json_int_t left = json_integer_value(json_object_get(ram, "remaining"));
	const json_int_t total = json_integer_value(json_object_get(ram, "total"));

	if (s->op && total > 0 && left >= 0 && left <= total)
		op_progress(s->op, (unsigned)((total - left) * 100 / total));
}

static void settle_again(void *arg);

static void settled(void *arg, const json_t *result, const GError *err)
{
	QemuStream *s = arg;
	const char *status = json_string_value(json_object_get(result, "status"));

	s->ask = NULL;
	if (!err && !g_strcmp0(status, "finish-migrate"))
		s->timer = timer_start(ASK_AGAIN_MS, settle_again, s);
	else
		finish(s, err);
}

/* QEMU says that it has completed some time before it takes `cont` again, and no word of that. */
static void settle(QemuStream *s)
{
	timer_stop(&s->timer);
	qmp_cancel(&s->ask);
	if (s->q->qmp)
		s->ask = qmp_execute(s->q->qmp, "query-status", NULL, settled, s);
}

static void settle_again(void *arg)
{
	QemuStream *s = arg;

	s->timer = NULL;
	settle(s);
}

static void asked(void *arg, const json_t *result, const GError *err)
{
	QemuStream *s = arg;
	const char *status = json_string_value(json_object_get(result, "status"));

	s->ask = NULL;
	if (err) {
		finish(s, err);
	} else if (status && !strcmp(status, "completed")) {
		settle(s);
	} else if (status && is_over(status) && (s->aborting || strcmp(status, "none"))) {
		finish_failed(s, json_string_value(json_object_get(result, "error-desc")));
	} else {
		show_progress(s, result);
		timer_stop(&s->timer);
		s->timer = timer_start(s->aborting ? ASK_AGAIN_MS : ASK_MS, ask, s);
	}
}

static void ask(void *arg)
{
	QemuStream *s = arg;

	s->timer = NULL;
	if (!s->ask && s->q->qmp)
		s->ask = qmp_execute(s->q->qmp, "query-migrate", NULL, asked, s);
}

void qemu_stream_event(QemuVm *q, const char *status)
{
	QemuStream *s = q->stream;

	if (!s || !is_over(status))
		return;
	timer_stop(&s->timer);
	if (!strcmp(status, "completed"))
		settle(s);
	else
		ask(s); /* why */
}

static void begun(void *arg, const json_t *result, const GError *err)
{
	QemuStream *s = arg;

	s->slot = NULL;
	if (err)
		finish(s, err);
}

static json_t *capability(const char *name, bool on)
{
	json_t *c = json_object();

	json_object_set_new(c, "capability", json_string(name));
	json_object_set_new(c, "state", json_boolean(on));
	return c;
}

static json_t *capabilities(bool ignore_shared)
{
	json_t *args = json_object(), *list = json_array();

	json_array_append_new(list, capability("events", true));
	json_array_append_new(list, capability("x-ignore-shared", ignore_shared));
	json_object_set_new(args, "capabilities", list);
	return args;
}

static json_t *string_args(const char *key, const char *value)
{
	json_t *args = json_object();

	json_object_set_new(args, key, json_string(value));
	return args;
}

static QemuStream *stream_new(QemuVm *q, Op *op, QemuStreamFn done, void *arg)
{
	QemuStream *s = g_new0(QemuStream, 1);

	s->q = q;
	s->op = op;
	s->done = done;
	s->arg = arg;
	s->timer = timer_start(ASK_MS, ask, s);
	q->stream = s;
	return s;
}

QmpSlot *qemu_stream_prepare(QemuVm *q, bool ignore_shared, QmpFn fn, void *arg)
{
	json_t *args = json_object();

	json_object_set_new(args, "max-bandwidth", json_integer(MAX_BANDWIDTH));
	qmp_execute(q->qmp, "migrate-set-parameters", args, NULL, NULL);
	return qmp_execute(q->qmp, "migrate-set-capabilities", capabilities(ignore_shared), fn,
			   arg);
}

QemuStream *qemu_stream_out(QemuVm *q, Op *op, int fd, QemuStreamFn done, void *arg)
{
	QemuStream *s = stream_new(q, op, done, arg);

	qmp_execute_fd(q->qmp, "getfd", string_args("fdname", "out"), fd, NULL, NULL);
	s->slot = qmp_execute(q->qmp, "migrate", string_args("uri", "fd:out"), begun, s);
	return s;
}

QemuStream *qemu_stream_in(QemuVm *q, Op *op, int fd, QemuStreamFn done, void *arg)
{
	QemuStream *s = stream_new(q, op, done, arg);

	s->in = true;
	qmp_execute_fd(q->qmp, "getfd", string_args("fdname", "in"), fd, NULL, NULL);
	s->slot = qmp_execute(q->qmp, "migrate-incoming", string_args("uri", "fd:in"), begun, s);
	return s;
}

QmpSlot *qemu_ask_machine(QemuVm *q, QmpFn fn, void *arg)
{
	json_t *args = string_args("path", "/machine");

	json_object_set_new(args, "property", json_string("type"));
	return qmp_execute(q->qmp, "qom-get", args, fn, arg);
}

void qemu_add_slots_fact(GPtrArray *facts, const QemuVm *q)
{
	g_autofree char *slots = qemu_slots_text(q->slots, q->bridges);

	g_ptr_array_add(facts, g_strconcat("slots ", slots, NULL));
}

void qemu_add_machine_fact(GPtrArray *facts, const json_t *result)
{
	const char *type = json_string_value(result);

	if (type && g_str_has_suffix(type, "-machine") && strlen(type) < 64)
		g_ptr_array_add(facts,
				g_strdup_printf("machine %.*s",
						(int)(strlen(type) - strlen("-machine")), type));
}

void qemu_stream_forget(QemuStream **s)
{
	if (*s)
		stream_free(*s);
	*s = NULL;
}

void qemu_stream_abort(QemuVm *q, QemuStreamFn done, void *arg)
{
	QemuStream *s = stream_new(q, NULL, done, arg);

	s->aborting = true;
	timer_stop(&s->timer);
	qmp_execute(q->qmp, "migrate_cancel", NULL, NULL, NULL);
	ask(s);
}
