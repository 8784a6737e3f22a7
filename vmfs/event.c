/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The events of VMs as text. A stream exists only once somebody has read it, so that nobody
 * watching costs nothing.
 */
#include "vmfs/event.h"
#include "vmfs/snapshot.h"

#include <string.h>
#include <time.h>

#include "vmfs/keep.h"

#define ALL_KEEP (4 * VM_EVENTS_KEEP)

static Stream *all;

static void value_state(const Vm *vm, GString *out)
{
	g_string_append(out, vm_state_name(vm->state));
}

static void value_reason(const Vm *vm, GString *out)
{
	g_string_append(out, vm->reason ? vm->reason : "-");
}

static void value_pid(const Vm *vm, GString *out)
{
	if (vm->pid)
		g_string_append_printf(out, "%d", (int)vm->pid);
	else
		g_string_append_c(out, '-');
}

static void value_ip(const Vm *vm, GString *out)
{
	g_autofree char *ips = vm->ips ? g_strjoinv(" ", vm->ips) : NULL;

	g_string_append(out, ips ? ips : "-");
}

static void value_agent(const Vm *vm, GString *out)
{
	g_string_append(out, vm->agent ? "up" : "down");
}

static void value_pending(const Vm *vm, GString *out)
{
	g_autoptr(GPtrArray) keys = vm_pending(vm);

	for (unsigned i = 0; i < keys->len; i++)
		g_string_append_printf(out, "%s%s", i ? " " : "", (char *)keys->pdata[i]);
	if (!keys->len)
		g_string_append_c(out, '-');
}

static void value_error(const Vm *vm, GString *out)
{
	g_string_append(out, vm->error ? vm->error : "-");
}

static void value_operation(const Vm *vm, GString *out)
{
	const char *step = vm->op ? op_step_name(vm->op) : NULL;

	g_string_append(out, vm->op ? op_verb(vm->op)->name : "-");
	if (step)
		g_string_append_printf(out, " %s", step);
}

static void value_rejected(const Vm *vm, GString *out)
{
	g_string_append(out, vm->rejected ? "yes" : "no");
}

static void value_snapshots(const Vm *vm, GString *out)
{
	snapshot_list(vm, out);
}

static void value_host(const Vm *vm, GString *out)
{
	g_string_append(out, vm_host(vm));
}

static void value_spec(const Vm *vm, GString *out)
{
	(void)vm;
	g_string_append(out, "changed");
}

static const struct {
	unsigned change;
	const char *key;
	void (*value)(const Vm *vm, GString *out);
	bool present; /* told to a new reader */
} keys[] = {
	{ EV_SPEC, "spec", value_spec, false },
	{ EV_REJECTED, "rejected", value_rejected, false },
	{ EV_PENDING, "pending", value_pending, false },
	{ EV_OPERATION, "operation", value_operation, false },
	{ EV_HOST, "host", value_host, false },
	{ EV_REASON, "reason", value_reason, true },
	{ EV_STATE, "state", value_state, true },
	{ EV_SNAPSHOT, "snapshots", value_snapshots, true },
	{ EV_PID, "pid", value_pid, true },
	{ EV_AGENT, "agent", value_agent, true },
	{ EV_IP, "ip", value_ip, true },
	{ EV_ERROR, "error", value_error, true },
};

void events_time(GString *out, int64_t us)
{
	time_t seconds = (time_t)(us / G_USEC_PER_SEC);
	struct tm tm;
	char text[32];

	gmtime_r(&seconds, &tm);
	strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
	g_string_append_printf(out, "%s.%06dZ", text, (int)(us % G_USEC_PER_SEC));
}

static void line_begin(const Vm *vm, const char *key, GString *out)
{
	events_time(out, vm_now());
	g_string_append_printf(out, " %s %s ", vm->name, key);
}

/* What is kept of a stream is the position of its first byte, and its bytes. */
static void keep_whole(uint32_t serial, const Stream *s)
{
	uint64_t pos = stream_start(s);
	const size_t len = (size_t)(stream_end(s) - pos);
	g_autofree char *text = g_malloc(len + 1);

	keep_set(KEEP_EVENTS, serial, &pos, sizeof pos);
	(void)stream_read(s, &pos, text, len);
	keep_append(KEEP_EVENTS, serial, text, len);
}

static void append(uint32_t serial, Stream *s, const GString *text, size_t limit)
{
	if (!s)
		return;
	keep_append(KEEP_EVENTS, serial, text->str, text->len);
	stream_append(s, text->str, text->len);
	if (keep_len(KEEP_EVENTS, serial) > 2 * limit)
		keep_whole(serial, s);
}

static void post(Vm *vm, const GString *text)
{
	append(vm->serial, vm->events, text, VM_EVENTS_KEEP);
	append(0, all, text, ALL_KEEP);
}

void events_emit(Vm *vm, unsigned changes)
{
	g_autoptr(GString) text = NULL;

	if (!vm->events && !all)
		return;
	text = g_string_new(NULL);
	for (unsigned i = 0; i < G_N_ELEMENTS(keys); i++) {
		if (!(changes & keys[i].change))
			continue;
		line_begin(vm, keys[i].key, text);
		keys[i].value(vm, text);
		g_string_append_c(text, '\n');
	}
	post(vm, text);
}

void events_emit_word(Vm *vm, const char *word, const char *value)
{
	g_autoptr(GString) text = NULL;

	if (!vm->events && !all)
		return;
	text = g_string_new(NULL);
	line_begin(vm, word, text);
	g_string_append_printf(text, "%s\n", value);
	post(vm, text);
}

void events_present(Vm *vm, GString *out)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(keys); i++) {
		if (!keys[i].present)
			continue;
		line_begin(vm, keys[i].key, out);
		keys[i].value(vm, out);
		g_string_append_c(out, '\n');
	}
}

Stream *events_all(void)
{
	if (!all) {
		all = stream_new(ALL_KEEP);
		keep_whole(0, all);
	}
	return all;
}

Stream *vm_events(Vm *vm)
{
	if (!vm->events) {
		vm->events = stream_new(VM_EVENTS_KEEP);
		keep_whole(vm->serial, vm->events);
	}
	return vm->events;
}

static Stream *restore(uint32_t serial, size_t limit)
{
	g_autoptr(GBytes) kept = keep_get(KEEP_EVENTS, serial);
	gsize len;
	const char *data = kept ? g_bytes_get_data(kept, &len) : NULL;
	uint64_t pos;
	Stream *s;

	if (!data || len < sizeof pos)
		return NULL;
	memcpy(&pos, data, sizeof pos);
	s = stream_new(limit);
	stream_begin(s, pos);
	stream_append(s, data + sizeof pos, len - sizeof pos);
	return s;
}

void events_restore(Vm *vm)
{
	if (vm)
		vm->events = restore(vm->serial, VM_EVENTS_KEEP);
	else
		all = restore(0, ALL_KEEP);
}
