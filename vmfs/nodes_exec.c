/* SPDX-License-Identifier: Apache-2.0 */
/* exec/: commands in the guest; their streams are in .io/exec/. */
#include <errno.h>

#include "vmfs/err.h"
#include "vmfs/exec.h"
#include "vmfs/node.h"

static ExecJob *job_of(const NodeRef *r)
{
	return exec_by_number(r->vm, r->sub);
}

static bool have_job(const NodeRef *r)
{
	return job_of(r) != NULL;
}

static uint32_t next_job(const NodeRef *dir, uint32_t after, char name[256])
{
	const ExecJob *job = exec_after(dir->vm, after);

	if (!job)
		return 0;
	g_strlcpy(name, job->name, 256);
	return job->number;
}

static uint32_t find_job(const NodeRef *dir, const char *name)
{
	const ExecJob *job = exec_find(dir->vm, name);

	return job ? job->number : 0;
}

static int make_job(const NodeRef *dir, const char *name, mode_t mode, const Caller *who,
		    NodeDone done, void *arg)
{
	g_autoptr(GError) e = NULL;

	(void)mode;
	(void)who;
	if (!exec_make(dir->vm, name, &e))
		return err_code(e);
	done(arg, 0);
	return 0;
}

static int drop_job(const NodeRef *r, const Caller *who, NodeDone done, void *arg)
{
	ExecJob *job = job_of(r);
	g_autoptr(GError) e = NULL;

	(void)who;
	if (!job)
		return ENOENT;
	if (!exec_remove(job, &e))
		return err_code(e);
	done(arg, 0);
	return 0;
}

static void show_cmd(const NodeRef *r, GString *out)
{
	const ExecJob *job = job_of(r);

	if (job && job->command)
		g_string_append_printf(out, "%s\n", job->command);
}

static bool store_cmd(const NodeRef *r, const char *data, size_t len, Op **op, GError **err)
{
	ExecJob *job = job_of(r);

	return job ? exec_run(job, data, len, op, err)
		   : err_set(err, ENOENT, "the job has been removed");
}

static void show_status(const NodeRef *r, GString *out)
{
	const ExecJob *job = job_of(r);

	if (job)
		g_string_append_printf(out, "%s\n", exec_status(job));
}

static bool store_status(const NodeRef *r, const char *data, size_t len, Op **op, GError **err)
{
	ExecJob *job = job_of(r);

	return job ? exec_order(job, data, len, op, err)
		   : err_set(err, ENOENT, "the job has been removed");
}

static const char *link_of(const NodeRef *r, ExecStream which)
{
	const ExecJob *job = job_of(r);

	return job ? job->links[which] : NULL;
}

static const char *link_stdin(const NodeRef *r)
{
	return link_of(r, EXEC_STDIN);
}

static const char *link_stdout(const NodeRef *r)
{
	return link_of(r, EXEC_STDOUT);
}

static const char *link_stderr(const NodeRef *r)
{
	return link_of(r, EXEC_STDERR);
}

/* ---- .io/exec/ ---- */

static GQueue *queue_of(const NodeRef *r)
{
	return exec_queue(r->vm);
}

static void open_output(const NodeRef *r, Reader *reader)
{
	(void)r;
	(void)reader;
}

static ssize_t read_stdout(const NodeRef *r, Reader *reader, char *buf, size_t size)
{
	(void)reader;
	return exec_read(job_of(r), EXEC_STDOUT, buf, size);
}

static ssize_t read_stderr(const NodeRef *r, Reader *reader, char *buf, size_t size)
{
	(void)reader;
	return exec_read(job_of(r), EXEC_STDERR, buf, size);
}

static bool stdout_ready(const NodeRef *r, const Reader *reader)
{
	(void)reader;
	return exec_ready(job_of(r), EXEC_STDOUT);
}

static bool stderr_ready(const NodeRef *r, const Reader *reader)
{
	(void)reader;
	return exec_ready(job_of(r), EXEC_STDERR);
}

static void open_stdin(const NodeRef *r, Reader *reader)
{
	if (reader->writes)
		exec_open_input(job_of(r));
}

static void close_stdin(const NodeRef *r, Reader *reader)
{
	if (reader->writes)
		exec_close_input(job_of(r));
}

static ssize_t read_stdin(const NodeRef *r, Reader *reader, char *buf, size_t size)
{
	(void)r;
	(void)reader;
	(void)buf;
	(void)size;
	return 0;
}

static bool stdin_ready(const NodeRef *r, const Reader *reader)
{
	(void)r;
	(void)reader;
	return true;
}

static ssize_t write_stdin(const NodeRef *r, Reader *reader, const char *data, size_t len)
{
	(void)reader;
	return exec_write(job_of(r), data, len);
}

static const StreamClass stdin_stream = {
	.open = open_stdin,
	.close = close_stdin,
	.read = read_stdin,
	.ready = stdin_ready,
	.write = write_stdin,
	.queue = queue_of,
	.write_queue = queue_of,
	.patient = true,
};

static const StreamClass stdout_stream = {
	.open = open_output,
	.read = read_stdout,
	.ready = stdout_ready,
	.queue = queue_of,
};

static const StreamClass stderr_stream = {
	.open = open_output,
	.read = read_stderr,
	.ready = stderr_ready,
	.queue = queue_of,
};

#define REG(mode) (S_IFREG | (mode))
#define DIR(mode) (S_IFDIR | (mode))
#define LNK	  (S_IFLNK | 0777)

// clang-format off
static const Node job_rows[] = {
	{ 112, "cmd", REG(0660), .show = show_cmd, .store = store_cmd,
	  .doc = "write the command line, in one write: the guest's /bin/sh -c runs it, once" },
	{ 113, "status", REG(0664), .show = show_status, .store = store_status, .events = EV_EXEC,
	  .doc = "new, running, 'exit N', 'signal N', or 'lost WHY' when its end is not known; write 'signal N' to it" },
	{ 114, "stdin", LNK, .link = link_stdin,
	  .doc = "stream: what the command reads; at its end when the last writer has closed it" },
	{ 115, "stdout", LNK, .link = link_stdout,
	  .doc = "stream: what it prints, each byte read once; at its end when the command has ended" },
	{ 116, "stderr", LNK, .link = link_stderr, .doc = "stream: likewise" },
	{ 0 },
};
static const Dir job_dir = { .rows = job_rows };
static const Node job_row = {
	111, "JOB", DIR(0755), .dir = &job_dir, .present = have_job,
	.doc = "a command: mkdir makes it, rmdir removes it once it has ended; gone when the VM starts again",
};

static const Node job_io_rows[] = {
	{ 119, "stdin", REG(0220), .stream = &stdin_stream, .doc = "what the command reads" },
	{ 120, "stdout", REG(0440), .stream = &stdout_stream, .doc = "what it prints" },
	{ 121, "stderr", REG(0440), .stream = &stderr_stream, .doc = "likewise" },
	{ 0 },
};
static const Dir job_io_dir = { .rows = job_io_rows };
static const Node job_io_row = {
	118, "JOB", DIR(0755), .dir = &job_io_dir, .present = have_job, .doc = "its streams",
};
// clang-format on

const Dir exec_dir = {
	.child = &job_row,
	.next = next_job,
	.find = find_job,
	.make = make_job,
	.drop = drop_job,
};

const Dir exec_io_dir = { .child = &job_io_row, .next = next_job, .find = find_job };
