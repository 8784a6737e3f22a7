/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as what comes from QEMU's monitor, from the guest's agent, and as QEMU's last words.
 * Every command must get one answer at most, and nothing may come after the end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/agentexec.h"
#include "backends/qemu/qemu.h"

#define COMMANDS 4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Run {
	bool closed;
	int answers[COMMANDS];
	int *current;
} Run;

static void on_ready(void *arg)
{
	const Run *r = arg;

	if (r->closed)
		abort();
}

static void on_event(void *arg, const char *name, const json_t *data)
{
	const Run *r = arg;

	if (r->closed || !name)
		abort();
}

static void on_closed(void *arg, const GError *err)
{
	Run *r = arg;

	if (r->closed || !err)
		abort();
	r->closed = true;
}

static void on_answer(void *arg, const json_t *result, const GError *err)
{
	int *answers = arg;

	if (++*answers > 1 || !result == !err)
		abort();
}

static void feed_qmp(const char *text, size_t size)
{
	static const QmpOps ops = { .ready = on_ready, .event = on_event, .closed = on_closed };
	Run r = { 0 };
	Qmp *q = qmp_new(&ops, &r);

	for (int i = 0; i < COMMANDS; i++)
		qmp_execute(q, "query-status", NULL, on_answer, &r.answers[i]);
	while (size) {
		const char *end = memchr(text, '\n', size);
		const size_t len = end ? (size_t)(end - text) : size;
		g_autofree char *line = g_strndup(text, len);
		qmp_feed(q, line, len);
		text += len + !!end;
		size -= len + !!end;
	}
	qmp_free(q);
}

static void check_ips(GPtrArray *take)
{
	g_autoptr(GPtrArray) ips = take;

	for (guint i = 0; i < ips->len; i++) {
		const char *ip = ips->pdata[i];
		if (!*ip || strspn(ip, "0123456789abcdefABCDEF.:") != strlen(ip))
			abort();
	}
}

static void check_exec(const json_t *result)
{
	g_autofree char *end = agentexec_end(result), *why = agentexec_complaint(result);
	char word[8];
	int n;

	if (end && (sscanf(end, "%7s %d", word, &n) != 2 || n < 0 || n > 255))
		abort();
	if (why && !g_utf8_validate(why, -1, NULL))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static Spec *spec;
	static const char yaml[] = "nics: {eth0: {ports: ['0:22']}, eth1: {}}";
	g_autofree char *text = g_strndup((const char *)data, size);

	loop_init();
	if (!spec)
		spec = spec_parse(yaml, strlen(yaml), NULL);
	feed_qmp((const char *)data, size);
	uv_run(loop_get(), UV_RUN_NOWAIT); /* closes the timers */
	g_autofree char *sentence = qemu_sentence(text);
	if (sentence && !g_utf8_validate(sentence, -1, NULL))
		abort();
	g_autoptr(GPtrArray) rows = qemu_usernet(text);
	check_ips(usernet_ips(rows));
	json_t *json = json_loadb(text, strlen(text), JSON_DECODE_ANY, NULL);
	check_ips(qemu_agent_ips(json, spec, 7));
	check_exec(json);
	json_decref(json);
	return 0;
}
