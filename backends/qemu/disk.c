/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a VM that the first start makes: copy-on-write overlays of images, and the UEFI
 * variables. All of it is done with the owner's rights, by programs that run one after the other;
 * a file gets its name when it is complete. Loop thread only.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

#define PROGRAM_TIMEOUT_MS 50000 /* within a start's deadline */
#define QCOW2_MAGIC	   0x514649fbu
#define MAX_BACKING	   1023 /* bytes of a backing file's name, as in the format */

typedef struct Job {
	const SpecDisk *disk; /* NULL: the UEFI variables */
	char *path, *fresh;   /* the file, and its name until it is complete */
	bool resize;	      /* it is there, but too small */
} Job;

struct QemuDisks {
	Spec *spec;
	const ProcUser *user;
	QemuDisksFn done;
	void *arg;
	GPtrArray *jobs;
	guint next;
	ProcRun *run;
	GError *failed; /* found before anything ran */
	Timer *later;
};

typedef struct Overlay {
	uint64_t size;
	char backing[MAX_BACKING + 1];
} Overlay;

static void run_job(QemuDisks *d);

static void job_free(void *arg)
{
	Job *j = arg;

	g_free(j->path);
	g_free(j->fresh);
	g_free(j);
}

static uint64_t be(const uint8_t *p, int bytes)
{
	uint64_t v = 0;

	while (bytes-- > 0)
		v = v << 8 | *p++;
	return v;
}

/* False with ENOENT when there is none yet. */
static bool read_overlay(const char *path, const ProcUser *user, Overlay *ret, GError **err)
{
	uint8_t head[32];
	struct stat st;
	const int before = qemu_as_owner(user);
	const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	qemu_as_daemon(user, before);
	if (fd < 0)
		return err_set(err, errno, "cannot open %s: %s", path, g_strerror(errno));
	*ret = (Overlay){ 0 };
	bool ok = !fstat(fd, &st) && S_ISREG(st.st_mode) &&
		  pread(fd, head, sizeof(head), 0) == sizeof(head) && be(head, 4) == QCOW2_MAGIC;
	if (ok) {
		const uint64_t offset = be(head + 8, 8), len = be(head + 16, 4);
		ret->size = be(head + 24, 8);
		ok = len > 0 && len <= MAX_BACKING && offset < (1u << 20) &&
		     pread(fd, ret->backing, len, (off_t)offset) == (ssize_t)len;
	}
	close(fd);
	return ok || err_set(err, EINVAL, "%s is not an overlay that vmfs made", path);
}

static bool check_overlay(const SpecDisk *d, const char *path, const Overlay *o, bool *ret_resize,
			  GError **err)
{
	if (strcmp(o->backing, d->image))
		return err_set(
			err, EINVAL,
			"disks.%s.image: its overlay is of %s, and only good for that; remove "
			"%s to begin afresh",
			d->name, o->backing, path);
	if (d->size && d->size < o->size)
		return err_set(err, EINVAL,
			       "disks.%s.size: the disk has %" G_GUINT64_FORMAT
			       " bytes and cannot be made smaller",
			       d->name, o->size);
	*ret_resize = d->size > o->size;
	return true;
}

static void add_job(QemuDisks *q, const SpecDisk *d, const char *path, bool resize)
{
	Job *j = g_new0(Job, 1);

	j->disk = d;
	j->path = g_strdup(path);
	j->fresh = g_strconcat(path, ".new", NULL);
	j->resize = resize;
	g_ptr_array_add(q->jobs, j);
}

static bool plan_disk(QemuDisks *q, const SpecDisk *d, const char *data_dir, GError **err)
{
	g_autofree char *path = qemu_disk_path(data_dir, d);
	g_autoptr(GError) e = NULL;
	Overlay o;
	bool resize = false;

	if (read_overlay(path, q->user, &o, &e)) {
		if (!check_overlay(d, path, &o, &resize, err))
			return false;
		if (resize)
			add_job(q, d, path, true);
		return true;
	}
	if (err_code(e) != ENOENT) {
		g_propagate_error(err, g_steal_pointer(&e));
		return false;
	}
	add_job(q, d, path, false);
	return true;
}

static bool plan(QemuDisks *q, const char *data_dir, GError **err)
{
	for (guint i = 0; i < q->spec->disks->len; i++) {
		const SpecDisk *d = q->spec->disks->pdata[i];
		if (d->image && !plan_disk(q, d, data_dir, err))
			return false;
	}
	if (q->spec->firmware == FIRMWARE_UEFI) {
		g_autofree char *path = g_build_filename(data_dir, QEMU_UEFI_VARS, NULL);
		if (faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW))
			add_job(q, NULL, path, false);
	}
	if (q->jobs->len && !qemu_host()->img)
		return err_set(err, ENOENT,
			       "qemu-img is needed to make disks, and is not installed "
			       "(on Debian: apt install qemu-utils)");
	return true;
}

static void disks_free(QemuDisks *q)
{
	timer_stop(&q->later);
	g_clear_error(&q->failed);
	g_ptr_array_unref(q->jobs);
	spec_unref(q->spec);
	g_free(q);
}

static void finish(QemuDisks *q, const GError *err)
{
	q->done(q->arg, err);
	disks_free(q);
}

static void remove_fresh(QemuDisks *q, const Job *j)
{
	const int before = qemu_as_owner(q->user);

	(void)unlink(j->fresh);
	qemu_as_daemon(q->user, before);
}

/* What a program said, with the place in the spec and the errno that fits. */
static void finish_program(QemuDisks *q, const Job *j, const GError *err)
{
	g_autofree char *sentence = qemu_sentence(err->message);
	const char *what = sentence ? sentence : err->message;
	const int code = err_code(err) == EIO ? qemu_errno(what) : err_code(err);
	g_autoptr(GError) e = NULL;

	remove_fresh(q, j);
	e = j->disk ? err_new(code, "disks.%s: %s", j->disk->name, what)
		    : err_new(code, "firmware: cannot copy the UEFI variables: %s", what);
	finish(q, e);
}

static void made(void *arg, const GString *out, const GError *err)
{
	QemuDisks *q = arg;
	const Job *j = q->jobs->pdata[q->next];

	q->run = NULL;
	if (err) {
		finish_program(q, j, err);
		return;
	}
	if (!j->resize) {
		const int before = qemu_as_owner(q->user);
		const int r = rename(j->fresh, j->path);
		qemu_as_daemon(q->user, before);
		if (r) {
			g_autoptr(GError) e = err_new(errno, "%s", g_strerror(errno));
			finish_program(q, j, e);
			return;
		}
	}
	q->next++;
	run_job(q);
}

static void run(QemuDisks *q, char *const *argv, ProcRunFn fn)
{
	q->run = proc_run(argv, q->user, PROGRAM_TIMEOUT_MS, fn, q);
}

static void run_create(QemuDisks *q, const Job *j, const char *format)
{
	g_autofree char *size = g_strdup_printf("%" G_GUINT64_FORMAT, j->disk->size);
	char *argv[] = {
		qemu_host()->img,
		(char *)"create",
		(char *)"-q",
		(char *)"-f",
		(char *)"qcow2",
		(char *)"-F",
		(char *)format,
		(char *)"-b",
		j->disk->image,
		j->fresh,
		j->disk->size ? size : NULL,
		NULL,
	};

	run(q, argv, made);
}

static void image_known(void *arg, const GString *out, const GError *err)
{
	QemuDisks *q = arg;
	const Job *j = q->jobs->pdata[q->next];
	g_autoptr(GError) e = NULL;

	q->run = NULL;
	if (err) {
		finish_program(q, j, err);
		return;
	}
	json_t *info = json_loadb(out->str, out->len, 0, NULL);
	const char *format = json_string_value(json_object_get(info, "format"));
	const json_int_t size = json_integer_value(json_object_get(info, "virtual-size"));
	if (!format)
		e = err_new(EIO, "qemu-img does not know what %s is", j->disk->image);
	else if (j->disk->size && j->disk->size < (uint64_t)size)
		e = err_new(EINVAL,
			    "size: its image has %" G_GINT64_FORMAT " bytes; a disk cannot "
			    "be smaller than that",
			    (gint64)size);
	if (e)
		finish_program(q, j, e);
	else
		run_create(q, j, j->disk->format ? j->disk->format : format);
	json_decref(info);
}

static void run_job(QemuDisks *q)
{
	if (q->next == q->jobs->len) {
		finish(q, NULL);
		return;
	}
	const Job *j = q->jobs->pdata[q->next];
	if (!j->disk) {
		char *argv[] = {
			(char *)"cp", (char *)"--", (char *)qemu_host()->uefi_vars, j->fresh, NULL,
		};
		run(q, argv, made);
	} else if (j->resize) {
		g_autofree char *size = g_strdup_printf("%" G_GUINT64_FORMAT, j->disk->size);
		char *argv[] = {
			qemu_host()->img, (char *)"resize", (char *)"-q", (char *)"-f",
			(char *)"qcow2",  j->path,	    size,	  NULL,
		};
		run(q, argv, made);
	} else {
		/* A running VM may use the image: -U does not mind. */
		char *argv[] = {
			qemu_host()->img,	 (char *)"info", (char *)"-U",
			(char *)"--output=json", j->disk->image, NULL,
		};
		remove_fresh(q, j);
		run(q, argv, image_known);
	}
}

static void fail_later(void *arg)
{
	QemuDisks *q = arg;
	g_autoptr(GError) err = g_steal_pointer(&q->failed);

	q->later = NULL;
	finish(q, err);
}

QemuDisks *qemu_disks_prepare(BackendVm *bv, const ProcUser *user, QemuDisksFn done, void *arg)
{
	QemuDisks *q = g_new0(QemuDisks, 1);

	q->spec = spec_ref(bv->spec);
	q->user = user;
	q->done = done;
	q->arg = arg;
	q->jobs = g_ptr_array_new_with_free_func(job_free);
	if (!plan(q, vm_data_dir(bv->vm), &q->failed)) {
		q->later = timer_start(0, fail_later, q);
	} else if (!q->jobs->len) {
		disks_free(q);
		return NULL;
	} else {
		run_job(q);
	}
	return q;
}

void qemu_disks_cancel(QemuDisks *q)
{
	if (!q)
		return;
	if (q->run) {
		proc_run_cancel(q->run);
		remove_fresh(q, q->jobs->pdata[q->next]);
	}
	disks_free(q);
}
