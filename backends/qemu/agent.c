/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The QEMU guest agent's protocol: JSON lines without ids, so one request at a time, and a sync
 * before the first and after every time-out tells answers from leftovers. Loop thread only.
 */
#include "backends/qemu/agent.h"

#include <errno.h>
#include <string.h>

#include "backends/qemu/qmp.h"
#include "vmfs/err.h"
#include "vmfs/line.h"
#include "vmfs/loop.h"

#define AGENT_MAX_LINE	(1u << 20)
#define MAX_UNASKED	(4u << 20) /* bytes since the last request */
#define SYNC_TIMEOUT_MS 5000

typedef struct Request {
	char *command; /* NULL: the sync is all */
	json_t *args;
	bool mute;
	uint64_t timeout_ms;
	AgentFn fn; /* NULL: cancelled */
	void *arg;
} Request;

typedef enum AgentPhase { AGENT_IDLE, AGENT_SYNC, AGENT_COMMAND } AgentPhase;

struct Agent {
	char *path;
	void (*changed)(void *arg, bool up);
	void *arg;
	Line *line;
	bool open, up, synced;
	AgentPhase phase;
	json_int_t sync_id;
	Timer *timer;
	GQueue requests; /* of Request; the head is under way unless idle */
	size_t unasked;
};

static void run_next(Agent *a);

static void request_free(Request *r)
{
	json_decref(r->args);
	g_free(r->command);
	g_free(r);
}

/* The last thing that a function does: what it calls may well make the next request. */
static void set_up(Agent *a, bool up)
{
	if (a->up == up)
		return;
	a->up = up;
	a->changed(a->arg, up);
}

static void send_text(Agent *a, const char *prefix, json_t *take)
{
	char *text = json_dumps(take, JSON_COMPACT);
	g_autofree char *line = g_strconcat(prefix, text ? text : "", "\n", NULL);

	free(text);
	json_decref(take);
	line_send(a->line, line, strlen(line));
}

/*
 * Answer the request that is under way, and go on with the next one. The callback may queue more,
 * but an Agent is never freed by one.
 */
static void answer(Agent *a, const json_t *result, const GError *err)
{
	Request *r = g_queue_pop_head(&a->requests);

	timer_stop(&a->timer);
	a->phase = AGENT_IDLE;
	if (r && r->fn)
		r->fn(r->arg, result, err);
	if (r)
		request_free(r);
	run_next(a);
}

static void answer_error(Agent *a, int code, const char *why)
{
	const Request *r = g_queue_peek_head(&a->requests);
	g_autoptr(GError) err = err_new(code, "guest agent: %s: %s",
					r && r->command ? r->command : "guest-sync", why);

	answer(a, NULL, err);
}

static void expired(void *arg)
{
	Agent *a = arg;
	const Request *r = g_queue_peek_head(&a->requests);

	a->timer = NULL;
	if (a->phase == AGENT_COMMAND && r && r->mute) {
		answer(a, NULL, NULL);
		return;
	}
	/* Whatever it says later belongs to nothing: begin afresh. */
	const bool silent = a->phase == AGENT_SYNC;
	a->synced = false;
	answer_error(a, ETIMEDOUT, "no answer in time");
	if (silent)
		set_up(a, false);
}

static void send_sync(Agent *a, uint64_t timeout_ms)
{
	json_t *args = json_object(), *msg = json_object();

	a->phase = AGENT_SYNC;
	a->sync_id = (json_int_t)g_random_int() + 1;
	json_object_set_new(args, "id", json_integer(a->sync_id));
	json_object_set_new(msg, "execute", json_string("guest-sync-delimited"));
	json_object_set_new(msg, "arguments", args);
	a->timer = timer_start(timeout_ms, expired, a);
	/* 0xff is not JSON: it makes the agent forget half a command that it may have got. */
	send_text(a, "\xff", msg);
}

static void send_command(Agent *a, const Request *r)
{
	json_t *msg = json_object();

	a->phase = AGENT_COMMAND;
	json_object_set_new(msg, "execute", json_string(r->command));
	if (r->args)
		json_object_set(msg, "arguments", r->args);
	a->timer = timer_start(r->timeout_ms, expired, a);
	send_text(a, "", msg);
}

static void on_line(void *arg, char *line, size_t len)
{
	agent_feed(arg, line, len);
}

static void on_closed(void *arg, const GError *err)
{
	Agent *a = arg;

	line_free(g_steal_pointer(&a->line));
	a->synced = false;
	if (a->phase != AGENT_IDLE)
		answer_error(a, ENOTCONN, "the connection is gone");
	set_up(a, false);
}

static const LineOps line_ops = { .line = on_line, .closed = on_closed };

static void not_open(void *arg)
{
	Agent *a = arg;

	a->timer = NULL;
	answer_error(a, ENOTCONN, "it does not run");
}

static void run_next(Agent *a)
{
	Request *r = g_queue_peek_head(&a->requests);

	if (!r || a->phase != AGENT_IDLE || a->timer)
		return;
	a->unasked = 0;
	if (!a->open) {
		a->timer = timer_start(0, not_open, a);
		return;
	}
	if (!a->line)
		a->line = line_connect(a->path, AGENT_MAX_LINE, &line_ops, a);
	if (!a->synced)
		send_sync(a, r->timeout_ms);
	else if (r->command)
		send_command(a, r);
	else
		answer(a, NULL, NULL);
}

static void take_sync(Agent *a, const json_t *msg)
{
	const json_t *id = json_object_get(msg, "return");
	const Request *r = g_queue_peek_head(&a->requests);

	if (!json_is_integer(id) || json_integer_value(id) != a->sync_id)
		return;
	timer_stop(&a->timer);
	a->synced = true;
	if (r && r->command && r->fn)
		send_command(a, r);
	else
		answer(a, NULL, NULL);
	set_up(a, true);
}

static void take_answer(Agent *a, const json_t *msg)
{
	const json_t *result = json_object_get(msg, "return");
	const json_t *error = json_object_get(msg, "error");

	if (error) {
		const char *desc = json_string_value(json_object_get(error, "desc"));
		answer_error(a, qemu_errno(desc), desc ? desc : "failed without a reason");
	} else if (result) {
		answer(a, result, NULL);
	}
}

void agent_feed(Agent *a, char *line, size_t len)
{
	const char *mark = memrchr(line, 0xff, len);

	a->unasked += len + 1;
	if (a->unasked > MAX_UNASKED && a->line) {
		g_autoptr(GError) err = err_new(EPROTO, "it talks without being asked");
		on_closed(a, err);
		return;
	}
	if (a->phase == AGENT_IDLE)
		return;
	/* Only what follows the mark answers the sync. */
	if (mark) {
		len -= (size_t)(mark + 1 - line);
		line = (char *)mark + 1;
	}
	json_t *msg = json_loadb(line, len, 0, NULL);
	if (json_is_object(msg) && a->phase == AGENT_SYNC)
		take_sync(a, msg);
	else if (json_is_object(msg))
		take_answer(a, msg);
	json_decref(msg);
}

Agent *agent_new(const char *path, void (*changed)(void *arg, bool up), void *arg)
{
	Agent *a = g_new0(Agent, 1);

	a->path = g_strdup(path);
	a->changed = changed;
	a->arg = arg;
	g_queue_init(&a->requests);
	return a;
}

void agent_free(Agent *a)
{
	Request *r;

	if (!a)
		return;
	timer_stop(&a->timer);
	line_free(a->line);
	while ((r = g_queue_pop_head(&a->requests)))
		request_free(r);
	g_free(a->path);
	g_free(a);
}

void agent_port(Agent *a, bool open)
{
	if (a->open == open)
		return;
	a->open = open;
	a->synced = false;
	if (open) {
		agent_request(a, NULL, NULL, false, SYNC_TIMEOUT_MS, NULL, NULL);
		return;
	}
	const Request *r = g_queue_peek_head(&a->requests);
	if (a->phase == AGENT_COMMAND && r && r->mute)
		answer(a, NULL, NULL);
	else if (a->phase != AGENT_IDLE)
		answer_error(a, ENOTCONN, "it has gone");
	set_up(a, false);
}

bool agent_is_open(const Agent *a)
{
	return a->open;
}

bool agent_is_up(const Agent *a)
{
	return a->up;
}

void agent_request(Agent *a, const char *command, json_t *args, bool mute, uint64_t timeout_ms,
		   AgentFn fn, void *arg)
{
	Request *r = g_new0(Request, 1);

	r->command = g_strdup(command);
	r->args = args;
	r->mute = mute;
	r->timeout_ms = timeout_ms;
	r->fn = fn;
	r->arg = arg;
	g_queue_push_tail(&a->requests, r);
	run_next(a);
}

void agent_cancel(Agent *a, AgentFn fn, void *arg)
{
	for (GList *l = a->requests.head; l; l = l->next) {
		Request *r = l->data;
		if (r->fn == fn && r->arg == arg)
			r->fn = NULL;
	}
}
