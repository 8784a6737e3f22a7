/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/loop.h"
#include "vmfs/qemutext.h"
#include "vmfs/rights.h"

#define PROGRAM_TIMEOUT_MS 50000 /* within a start's deadline */
#define MAX_COPY	   (16 << 20)

static void work(void *job);
static void worked(void *job);

Prepare *prepare_new(void)
{
	Prepare *p = g_new0(Prepare, 1);

	p->files = g_ptr_array_new_with_free_func((GDestroyNotify)diskfile_free);
	p->nodes = g_ptr_array_new_with_free_func(g_free);
	p->reads = g_ptr_array_new_with_free_func(g_free);
	return p;
}

static void prepare_free(Prepare *p)
{
	if (p->slot)
		*p->slot = p->then;
	if (p->then)
		loop_work(work, worked, p->then);
	proc_user_clear(&p->user);
	g_ptr_array_unref(p->files);
	g_ptr_array_unref(p->nodes);
	g_ptr_array_unref(p->reads);
	seed_free(p->seed);
	g_free(p->seed_path);
	g_free(p->copy_from);
	g_free(p->copy_to);
	g_free(p->img);
	g_clear_error(&p->error);
	g_free(p);
}

/* ---- in the pool ---- */

static bool fill_copy(int fd, const void *arg, GError **err)
{
	const char *from = arg;
	g_autofree char *bytes = NULL;
	g_autoptr(GError) e = NULL;
	gsize len;

	if (!g_file_get_contents(from, &bytes, &len, &e))
		return err_set(err, EIO, "%s", e->message);
	if (len > MAX_COPY)
		return err_set(err, EFBIG, "%s is too large", from);
	for (gsize at = 0; at < len;) {
		const ssize_t n = write(fd, bytes + at, len - at);

		if (n < 0 && errno != EINTR)
			return err_set(err, errno, "%s", g_strerror(errno));
		at += (gsize)MAX(n, 0);
	}
	return true;
}

/* QEMU would not say that it could not, and look again and again. */
static bool open_node(const char *key, const char *path, uid_t uid, GError **err)
{
	const int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	const int code = errno;

	if (fd >= 0) {
		close(fd);
		return true;
	}
	return err_set(err, code,
		       "%s: user %u, who owns the VM, cannot open %s: %s; a udev rule can give the "
		       "right to",
		       key, uid, path, g_strerror(code));
}

static bool check_readable(const char *key, const char *path, GError **err)
{
	const int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return err_set(err, errno, "%s: the VM's owner cannot open %s: %s", key, path,
			       g_strerror(errno));
	close(fd);
	return true;
}

static bool work_files(Prepare *p, GError **err)
{
	for (guint i = 0; i < p->reads->len; i += 2)
		if (!check_readable(p->reads->pdata[i], p->reads->pdata[i + 1], err))
			return false;
	for (guint i = 0; i < p->nodes->len; i += 2)
		if (!open_node(p->nodes->pdata[i], p->nodes->pdata[i + 1],
			       p->user.change ? p->user.uid : geteuid(), err))
			return false;
	for (guint i = 0; i < p->files->len; i++)
		if (g_atomic_int_get(&p->cancelled) || !diskfile_prepare(p->files->pdata[i], err))
			return false;
	if (p->copy_to && faccessat(AT_FDCWD, p->copy_to, F_OK, AT_SYMLINK_NOFOLLOW) &&
	    !diskfile_make(p->copy_to, "firmware", fill_copy, p->copy_from, err))
		return false;
	if (p->seed)
		return diskfile_make(p->seed_path, "cloud_init", seed_fill, p->seed, err);
	/* One of a former start, with what may be secrets. */
	if (p->seed_path && unlink(p->seed_path) && errno != ENOENT)
		return err_set(err, errno, "cloud_init: cannot remove %s: %s", p->seed_path,
			       g_strerror(errno));
	return true;
}

static void work(void *job)
{
	Prepare *p = job;
	int before;

	if (p->error)
		return;
	if (p->lookup)
		proc_user_lookup(&p->user, p->user.uid, p->user.gid);
	if (rights_take(&p->user, &before))
		(void)work_files(p, &p->error);
	else
		(void)err_set(&p->error, EPERM, "vmfs cannot act with the rights of user %u",
			      p->user.uid);
	rights_drop(&p->user, before);
}

/* ---- on the loop ---- */

static void resize_next(Prepare *p);

/* The last thing: done() may begin anew. */
static void finish(Prepare *p, GError *take)
{
	const PrepareFn done = p->done;
	void *arg = p->arg;

	prepare_free(p);
	if (done)
		done(arg, take);
	g_clear_error(&take);
}

static void resized(void *arg, const GString *out, const GError *err)
{
	Prepare *p = arg;
	const DiskFile *f = p->files->pdata[p->next];
	g_autofree char *sentence = err ? qemu_sentence(err->message) : NULL;
	const char *what = sentence ? sentence : err ? err->message : NULL;

	p->run = NULL;
	if (err) {
		finish(p, err_new(err_code(err) == EIO ? qemu_errno(what) : err_code(err),
				  "%s.size: %s", f->key, what));
		return;
	}
	p->next++;
	resize_next(p);
}

static void resize_next(Prepare *p)
{
	const DiskFile *f = NULL;
	g_autofree char *size = NULL;

	while (p->next < p->files->len) {
		f = p->files->pdata[p->next];
		if (f->resize)
			break;
		p->next++;
	}
	if (p->next == p->files->len) {
		finish(p, NULL);
		return;
	}
	if (!p->img)
		p->img = g_find_program_in_path("qemu-img");
	if (!p->img) {
		finish(p, err_new(ENOENT,
				  "%s.size: qemu-img is needed to make a disk larger, and is not "
				  "installed (on Debian: apt install qemu-utils)",
				  f->key));
		return;
	}
	size = g_strdup_printf("%" G_GUINT64_FORMAT, f->size);
	char *argv[] = {
		p->img,		 (char *)"resize", (char *)"-q", (char *)"-f",
		(char *)"qcow2", f->path,	   size,	 NULL,
	};
	p->run = proc_run(argv, &p->user, PROGRAM_TIMEOUT_MS, resized, p);
}

static void worked(void *job)
{
	Prepare *p = job;

	if (!p->done || p->error)
		finish(p, g_steal_pointer(&p->error));
	else
		resize_next(p);
}

void prepare_begin(Prepare *p, Prepare **slot, PrepareFn done, void *arg)
{
	p->slot = slot;
	p->done = done;
	p->arg = arg;
	if (*slot) {
		(*slot)->then = p;
		return;
	}
	*slot = p;
	loop_work(work, worked, p);
}

void prepare_cancel(Prepare **slot)
{
	Prepare *p = *slot;

	if (!p)
		return;
	if (p->then) {
		p->then->slot = NULL;
		prepare_free(g_steal_pointer(&p->then));
		return;
	}
	p->done = NULL;
	g_atomic_int_set(&p->cancelled, 1);
	/* Else the pool has it, and frees it when it is done. */
	if (p->run) {
		proc_run_cancel(p->run);
		prepare_free(p);
	}
}

void prepare_forget(Prepare **slot)
{
	prepare_cancel(slot);
	if (*slot)
		(*slot)->slot = NULL;
	*slot = NULL;
}
