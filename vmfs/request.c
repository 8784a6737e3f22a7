/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/request.h"

#include <errno.h>
#include <linux/fuse.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/keep.h"
#include "vmfs/log.h"

#define MAX_DEATHS 2 /* of daemons, before what they died of is refused */

static struct {
	struct fuse_session *session;
	int fd;
	const struct fuse_in_header *in; /* being handled; NULL: none */
	uint64_t changes;		 /* keep_changes() before it */
	bool kept;			 /* it has waited, in a former daemon */
	bool answered;
	bool mute;
} current;

static const char *const names[] = {
	[FUSE_LOOKUP] = "lookup",     [FUSE_GETATTR] = "getattr",     [FUSE_SETATTR] = "setattr",
	[FUSE_READLINK] = "readlink", [FUSE_SYMLINK] = "symlink",     [FUSE_MKDIR] = "mkdir",
	[FUSE_UNLINK] = "unlink",     [FUSE_RMDIR] = "rmdir",	      [FUSE_RENAME] = "rename",
	[FUSE_OPEN] = "open",	      [FUSE_READ] = "read",	      [FUSE_WRITE] = "write",
	[FUSE_RELEASE] = "release",   [FUSE_FSYNC] = "fsync",	      [FUSE_FLUSH] = "flush",
	[FUSE_OPENDIR] = "opendir",   [FUSE_READDIR] = "readdir",     [FUSE_CREATE] = "create",
	[FUSE_POLL] = "poll",	      [FUSE_READDIRPLUS] = "readdir", [FUSE_RENAME2] = "rename",
};

static const char *name_of(uint32_t opcode)
{
	return opcode < G_N_ELEMENTS(names) && names[opcode] ? names[opcode] : "request";
}

static bool wants_answer(uint32_t opcode)
{
	return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

/* Made again it gives the same, and changes nothing that a user could tell. */
static bool is_repeatable(uint32_t opcode)
{
	switch (opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_READLINK:
	case FUSE_OPENDIR:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_STATFS:
	case FUSE_POLL:
	case FUSE_INIT:
		return true;
	default:
		return false;
	}
}

/* All that these change is what is kept of an open file. */
static bool is_of_handle(uint32_t opcode)
{
	return opcode == FUSE_OPEN || opcode == FUSE_READ || opcode == FUSE_RELEASE;
}

/* What was done for it must not be done again. */
static bool has_changed_something(uint32_t opcode)
{
	return is_of_handle(opcode) ? keep_changes() != current.changes : !is_repeatable(opcode);
}

/* ---- answering ---- */

static void keep_reply(const struct fuse_out_header *out, const struct iovec *iov, int count)
{
	if (!keep_head())
		return;
	keep_set(KEEP_REPLY, 0, NULL, 0);
	for (int i = 0; i < count; i++)
		keep_append(KEEP_REPLY, 0, iov[i].iov_base, iov[i].iov_len);
	keep_unset(KEEP_REQUEST, out->unique);
	keep_unset(KEEP_BEGUN, out->unique);
}

static ssize_t write_answer(int fd, struct iovec *iov, int count, void *arg)
{
	const struct fuse_out_header *out = iov[0].iov_base;
	const bool is_current = current.in && out->unique == current.in->unique;
	const bool waited =
		out->unique && (is_current ? current.kept : keep_has(KEEP_REQUEST, out->unique));

	(void)arg;
	if (current.mute && out->unique)
		return (ssize_t)out->len;
	current.answered |= is_current;
	if (waited || (is_current && has_changed_something(current.in->opcode)))
		keep_reply(out, iov, count);
	/* What is told is kept: nobody can know more than a successor will. */
	keep_commit();
	return writev(fd, iov, count);
}

static ssize_t read_request(int fd, void *buf, size_t len, void *arg)
{
	(void)arg;
	return read(fd, buf, len);
}

const struct fuse_custom_io request_io = { .writev = write_answer, .read = read_request };

/* ---- handling ---- */

static void process(const char *raw)
{
	const struct fuse_in_header *in = (const void *)raw;
	const struct fuse_buf buf = { .mem = (void *)(uintptr_t)raw, .size = in->len };

	fuse_session_process_buf(current.session, &buf);
}

static void refuse(const struct fuse_in_header *in)
{
	struct fuse_out_header out = { .len = sizeof out, .error = -EIO, .unique = in->unique };
	struct iovec iov = { &out, sizeof out };

	log_error("a %s of inode %" G_GUINT64_FORMAT " by process %u has killed vmfs %u times: "
		  "it is answered with EIO",
		  name_of(in->opcode), (uint64_t)in->nodeid, in->pid, MAX_DEATHS);
	if (wants_answer(in->opcode))
		(void)write_answer(current.fd, &iov, 1, NULL);
}

static void handle(const char *raw, bool kept)
{
	const struct fuse_in_header *in = (const void *)raw;
	KeepHead *head = keep_head();

	current.in = in;
	current.kept = kept;
	current.changes = keep_changes();
	current.answered = !wants_answer(in->opcode);
	head->current = in->unique;
	if (in->unique == head->suspect && head->deaths >= MAX_DEATHS)
		refuse(in);
	else
		process(raw);
	if (in->opcode == FUSE_INIT && !head->init_len && in->len <= sizeof head->init) {
		memcpy(head->init, raw, in->len);
		head->init_len = in->len;
	}
	if (!current.answered && !kept)
		keep_set(KEEP_REQUEST, in->unique, raw, in->len);
	keep_commit();
	head->current = 0;
	current.in = NULL;
}

void request_handle(void)
{
	struct fuse_in_header *in = (void *)keep_slot();

	handle(keep_slot(), false);
	in->len = 0;
}

uint64_t request_unique(void)
{
	return current.in ? current.in->unique : 0;
}

const void *request_body(void)
{
	return current.in + 1;
}

void request_begin(uint64_t op)
{
	keep_set(KEEP_BEGUN, request_unique(), &op, sizeof op);
	keep_commit();
}

bool request_begun(uint64_t *op)
{
	g_autoptr(GBytes) value = keep_get(KEEP_BEGUN, request_unique());

	if (value && op)
		keep_copy(op, sizeof *op, value);
	return value != NULL;
}

/* ---- after another daemon ---- */

/* One that was being handled when the daemon died is under suspicion. */
static void suspect(KeepHead *head)
{
	if (head->current && head->crashed) {
		head->deaths = head->current == head->suspect ? head->deaths + 1 : 1;
		head->suspect = head->current;
	}
	head->current = 0;
}

void request_init(struct fuse_session *session, int fd)
{
	KeepHead *head = keep_head();

	current.session = session;
	current.fd = fd;
	suspect(head);
	if (!head->init_len)
		return;
	/* libfuse is told what the kernel said; the kernel has had its answer. */
	current.mute = true;
	process(head->init);
	current.mute = false;
}

static void answer_again(void)
{
	g_autoptr(GBytes) reply = keep_get(KEEP_REPLY, 0);
	gsize len;
	const char *data = reply ? g_bytes_get_data(reply, &len) : NULL;

	/* ENOENT: it has been given already. */
	if (data && len && write(current.fd, data, len) < 0 && errno != ENOENT)
		log_warning("cannot answer a request: %s", g_strerror(errno));
}

static uint64_t answered_last(void)
{
	g_autoptr(GBytes) reply = keep_get(KEEP_REPLY, 0);
	struct fuse_out_header out;

	if (!reply)
		return 0;
	keep_copy(&out, sizeof out, reply);
	return out.unique;
}

static void resume(uint64_t unique, GBytes *raw)
{
	gsize len;
	const char *data = g_bytes_get_data(raw, &len);

	if (len >= sizeof(struct fuse_in_header) &&
	    ((const struct fuse_in_header *)(const void *)data)->len == len)
		handle(data, true);
}

void request_resume(void)
{
	const struct fuse_in_header *in = (const void *)keep_slot();
	const bool half_done =
		in->len && in->unique != answered_last() && !keep_has(KEEP_REQUEST, in->unique);

	answer_again();
	keep_each(KEEP_REQUEST, resume);
	if (half_done && in->len <= KEEP_SLOT)
		request_handle();
}

void request_mute(void)
{
	current.mute = true;
}
