/* SPDX-License-Identifier: Apache-2.0 */
/* The streams of a VM, in its unlisted directory .io/. */
#include <errno.h>
#include <string.h>

#include "vmfs/event.h"
#include "vmfs/monitor.h"
#include "vmfs/node.h"
#include "vmfs/registry.h"
#include "vmfs/snapshot.h"
#include "vmfs/ssh.h"

/* What is told before all else, in pieces as small as the reader wants them. */
static size_t read_first(Reader *reader, char *buf, size_t size)
{
	size_t n = MIN(size, reader->first->len);

	memcpy(buf, reader->first->str, n);
	g_string_erase(reader->first, 0, (gssize)n);
	return n;
}

/* ---- console ---- */

static void console_open(const NodeRef *r, Reader *reader)
{
	BackendVm *bv = r->vm->bv;

	reader->pos = stream_start(vm_console(r->vm));
	if (bv && bv->be->cls->want_console)
		bv->be->cls->want_console(bv);
}

static ssize_t read_stream(const Stream *s, bool ended, Reader *reader, char *buf, size_t size)
{
	size_t n = stream_read(s, &reader->pos, buf, size);

	if (n)
		return (ssize_t)n;
	return ended ? 0 : -EAGAIN;
}

static ssize_t console_read(const NodeRef *r, Reader *reader, char *buf, size_t size)
{
	return read_stream(vm_console(r->vm), r->vm->removed, reader, buf, size);
}

static bool console_ready(const NodeRef *r, const Reader *reader)
{
	return r->vm->removed || reader->pos != stream_end(vm_console(r->vm));
}

static ssize_t console_write(const NodeRef *r, Reader *reader, const char *data, size_t len)
{
	(void)reader;
	return r->vm->removed ? -ENOENT : vm_type(r->vm, data, len);
}

static GQueue *console_queue(const NodeRef *r)
{
	return stream_queue(vm_console(r->vm));
}

static GQueue *console_write_queue(const NodeRef *r)
{
	return &r->vm->console_writers;
}

static const StreamClass console_stream = {
	.open = console_open,
	.read = console_read,
	.ready = console_ready,
	.write = console_write,
	.queue = console_queue,
	.write_queue = console_write_queue,
};

/* ---- events ---- */

static Stream *events_of(const NodeRef *r)
{
	return r->vm ? vm_events(r->vm) : events_all();
}

#define ALL_TOLD UINT32_MAX /* Reader.after: no more VMs whose present values are to be told */

static void events_open(const NodeRef *r, Reader *reader)
{
	reader->pos = stream_end(events_of(r));
	if (!reader->first)
		reader->first = g_string_new(NULL);
	reader->after = r->vm ? ALL_TOLD : 0;
	if (r->vm)
		events_present(r->vm, reader->first);
}

/*
 * Of one VM after the other, as the reader gets to it: all at once would be much for thousands.
 * What happened since the open is told before, so that nothing old comes after the values that hold
 * now.
 */
static void events_next(const Stream *s, Reader *reader)
{
	Vm *vm = registry_after(reader->after);
	size_t told = reader->first->len, since = stream_end(s) - reader->pos;

	g_string_set_size(reader->first, told + since);
	(void)stream_read(s, &reader->pos, reader->first->str + told, since);
	reader->after = vm ? vm->serial : ALL_TOLD;
	if (vm)
		events_present(vm, reader->first);
}

static ssize_t events_read(const NodeRef *r, Reader *reader, char *buf, size_t size)
{
	Stream *s = events_of(r);

	/* Too slow: what was lost is made up for by the values that hold now. */
	if ((!reader->first->len || reader->after != ALL_TOLD) && reader->pos < stream_start(s))
		events_open(r, reader);
	while (reader->after != ALL_TOLD && reader->first->len < size)
		events_next(s, reader);
	if (reader->first->len)
		return (ssize_t)read_first(reader, buf, size);
	return read_stream(s, r->vm && r->vm->removed, reader, buf, size);
}

static bool events_ready(const NodeRef *r, const Reader *reader)
{
	return reader->first->len || reader->after != ALL_TOLD || (r->vm && r->vm->removed) ||
	       reader->pos != stream_end(events_of(r));
}

static GQueue *events_queue(const NodeRef *r)
{
	return stream_queue(events_of(r));
}

static const StreamClass events_stream = {
	.open = events_open,
	.read = events_read,
	.ready = events_ready,
	.queue = events_queue,
};

const StreamClass events_all_stream = {
	.open = events_open,
	.read = events_read,
	.ready = events_ready,
	.queue = events_queue,
};

/* ---- wait/ ---- */

/* What each file of wait/ waits for is the name of its row. */
static bool is_true(const NodeRef *r)
{
	const Vm *vm = r->vm;

	if (!strcmp(r->node->name, "ip"))
		return vm->ips != NULL;
	if (!strcmp(r->node->name, "agent"))
		return vm->agent;
	if (!strcmp(r->node->name, "cloud-init"))
		return vm->cloud_init != NULL;
	if (!strcmp(r->node->name, "snapshots"))
		return !snapshot_any_unsettled(vm);
	if (!strcmp(r->node->name, "ssh"))
		return ssh_answers_at(vm) != NULL;
	return !strcmp(r->node->name, vm_state_name(vm->state));
}

/* Nobody tells of it unasked: whoever has to wait asks, each time that there is news. */
static bool is_true_by_now(const NodeRef *r)
{
	BackendVm *bv = r->vm->bv;

	if (is_true(r))
		return true;
	if (!strcmp(r->node->name, "cloud-init") && vm_is_live(r->vm) && bv &&
	    bv->be->cls->want_cloud_init)
		bv->be->cls->want_cloud_init(bv);
	return false;
}

static void wait_open(const NodeRef *r, Reader *reader)
{
	BackendVm *bv = r->vm->bv;

	(void)reader;
	if (bv && !is_true(r) && !strcmp(r->node->name, "ip") && bv->be->cls->want_ip)
		bv->be->cls->want_ip(bv);
}

static ssize_t wait_read(const NodeRef *r, Reader *reader, char *buf, size_t size)
{
	g_autofree char *text = NULL;

	if (reader->told)
		return (ssize_t)read_first(reader, buf, size);
	if (r->vm->removed)
		return -ENOENT;
	if (!is_true_by_now(r))
		return -EAGAIN;
	reader->told = true;
	if (!strcmp(r->node->name, "ip"))
		text = g_strjoinv("\n", r->vm->ips);
	else if (!strcmp(r->node->name, "cloud-init"))
		text = g_strdup(r->vm->cloud_init);
	else if (!strcmp(r->node->name, "ssh"))
		text = g_strdup(ssh_answers_at(r->vm));
	reader->first = g_string_new(text ? text : r->node->name);
	g_string_append_c(reader->first, '\n');
	return (ssize_t)read_first(reader, buf, size);
}

static bool wait_ready(const NodeRef *r, const Reader *reader)
{
	return reader->told || r->vm->removed || is_true_by_now(r);
}

static GQueue *wait_queue(const NodeRef *r)
{
	return &r->vm->waiters;
}

static const StreamClass wait_stream = {
	.open = wait_open,
	.read = wait_read,
	.ready = wait_ready,
	.queue = wait_queue,
};

static void wait_ssh_open(const NodeRef *r, Reader *reader)
{
	(void)reader;
	ssh_wait(r->vm);
}

static void wait_ssh_close(const NodeRef *r, Reader *reader)
{
	(void)reader;
	ssh_unwait(r->vm);
}

static const StreamClass wait_ssh_stream = {
	.open = wait_ssh_open,
	.close = wait_ssh_close,
	.read = wait_read,
	.ready = wait_ready,
	.queue = wait_queue,
};

#define STREAM(mode) (S_IFREG | (mode))

// clang-format off
static const Node wait_rows[] = {
	{ 30, "running", STREAM(0444), .stream = &wait_stream, .doc = "answers when it runs" },
	{ 31, "stopped", STREAM(0444), .stream = &wait_stream, .doc = "answers when it is stopped" },
	{ 32, "paused", STREAM(0444), .stream = &wait_stream, .doc = "answers when it is paused" },
	{ 33, "crashed", STREAM(0444), .stream = &wait_stream, .doc = "answers when it has crashed" },
	{ 165, "snapshots", STREAM(0444), .stream = &wait_stream, .doc = "answers when no snapshot is being taken, or an imported one verified" },
	{ 160, "asleep", STREAM(0444), .stream = &wait_stream, .doc = "answers when it is asleep" },
	{ 34, "ip", STREAM(0444), .stream = &wait_stream, .doc = "answers with the addresses when one is known" },
	{ 37, "ssh", STREAM(0444), .stream = &wait_ssh_stream, .doc = "answers with address and port when the guest's ssh server does" },
	{ 35, "agent", STREAM(0444), .stream = &wait_stream, .doc = "answers when the guest agent is there" },
	{ 36, "cloud-init", STREAM(0444), .stream = &wait_stream,
	  .doc = "answers 'done' or 'error' when cloud-init has ended in the guest, as its agent tells" },
	{ 0 },
};

static const Dir wait_dir = { .rows = wait_rows };

static const Node io_rows[] = {
	{ 27, "console", STREAM(0660), .stream = &console_stream, .doc = "the serial console" },
	{ 28, "events", STREAM(0444), .stream = &events_stream, .doc = "what changes" },
	{ 134, "monitor", STREAM(0600), .stream = &monitor_stream, .doc = "the VMM's own monitor" },
	{ 117, "exec", S_IFDIR | 0755, .dir = &exec_io_dir, .doc = "the streams of the jobs in exec/" },
	{ 29, "wait", S_IFDIR | 0755, .dir = &wait_dir, .doc = "one answer each: timeout 60 cat wait/ip" },
	{ 0 },
};
// clang-format on

const Dir io_dir = { .rows = io_rows };
