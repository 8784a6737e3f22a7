/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a VM that a start makes: its private disks, the seed for cloud-init, the UEFI
 * variables. All of it is done in the pool with the owner's rights, and by `qemu-img resize` where
 * a disk grows. A file gets its name when it is complete. Loop thread, but for the work.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "backends/qemu/qemu.h"
#include "backends/qemu/save.h"
#include "vmfs/diskfile.h"
#include "vmfs/err.h"
#include "vmfs/hostdev.h"
#include "vmfs/rights.h"
#include "vmfs/seed.h"

#define PROGRAM_TIMEOUT_MS 50000 /* within a start's deadline */
#define MAX_UEFI_VARS	   (16 << 20)

/* What the pool works on: copies, which outlive a start that gave up. */
struct QemuDisks {
	QemuVm *q; /* whose `disks` this is; NULL: it is no more */
	ProcUser user;
	GPtrArray *files; /* of DiskFile */
	GPtrArray *nodes; /* of char *: the keys of devices, each before the path of its node */
	Seed *seed;	  /* NULL: there is to be none */
	char *seed_path, *uefi_from, *uefi_path;
	GError *error;
	gint cancelled; /* atomic */

	QemuDisksFn done; /* NULL: nobody waits any more */
	void *arg;
	guint next; /* file to be resized */
	ProcRun *run;
	/* Waits for this one, which nobody waits for any more but which is still in the pool. */
	QemuDisks *then;
};

static void work(void *job);
static void worked(void *job);

static void disks_free(QemuDisks *d)
{
	if (d->q)
		d->q->disks = d->then;
	if (d->then)
		loop_work(work, worked, d->then);
	proc_user_clear(&d->user);
	g_ptr_array_unref(d->files);
	g_ptr_array_unref(d->nodes);
	seed_free(d->seed);
	g_free(d->seed_path);
	g_free(d->uefi_from);
	g_free(d->uefi_path);
	g_clear_error(&d->error);
	g_free(d);
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
	if (len > MAX_UEFI_VARS)
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

static bool work_files(QemuDisks *d, GError **err)
{
	for (guint i = 0; i < d->nodes->len; i += 2)
		if (!open_node(d->nodes->pdata[i], d->nodes->pdata[i + 1],
			       d->user.change ? d->user.uid : geteuid(), err))
			return false;
	for (guint i = 0; i < d->files->len; i++)
		if (g_atomic_int_get(&d->cancelled) || !diskfile_prepare(d->files->pdata[i], err))
			return false;
	if (d->uefi_path && faccessat(AT_FDCWD, d->uefi_path, F_OK, AT_SYMLINK_NOFOLLOW) &&
	    !diskfile_make(d->uefi_path, "firmware", fill_copy, d->uefi_from, err))
		return false;
	if (d->seed)
		return diskfile_make(d->seed_path, "cloud_init", seed_fill, d->seed, err);
	/* One of a former start, with what may be secrets. */
	if (d->seed_path && unlink(d->seed_path) && errno != ENOENT)
		return err_set(err, errno, "cloud_init: cannot remove %s: %s", d->seed_path,
			       g_strerror(errno));
	return true;
}

static void work(void *job)
{
	QemuDisks *d = job;
	int before;

	if (d->error)
		return;
	if (rights_take(&d->user, &before))
		(void)work_files(d, &d->error);
	else
		(void)err_set(&d->error, EPERM, "vmfs cannot act with the rights of user %u",
			      d->user.uid);
	rights_drop(&d->user, before);
}

/* ---- on the loop ---- */

static void resize_next(QemuDisks *d);

/* The last thing: done() may begin anew. */
static void finish(QemuDisks *d, GError *take)
{
	const QemuDisksFn done = d->done;
	void *arg = d->arg;

	disks_free(d);
	if (done)
		done(arg, take);
	g_clear_error(&take);
}

static void resized(void *arg, const GString *out, const GError *err)
{
	QemuDisks *d = arg;
	const DiskFile *f = d->files->pdata[d->next];
	g_autofree char *sentence = err ? qemu_sentence(err->message) : NULL;
	const char *what = sentence ? sentence : err ? err->message : NULL;

	d->run = NULL;
	if (err) {
		finish(d, err_new(err_code(err) == EIO ? qemu_errno(what) : err_code(err),
				  "%s.size: %s", f->key, what));
		return;
	}
	d->next++;
	resize_next(d);
}

static void resize_next(QemuDisks *d)
{
	const DiskFile *f = NULL;
	g_autofree char *size = NULL;

	while (d->next < d->files->len) {
		f = d->files->pdata[d->next];
		if (f->resize)
			break;
		d->next++;
	}
	if (d->next == d->files->len) {
		finish(d, NULL);
		return;
	}
	if (!qemu_host()->img) {
		finish(d, err_new(ENOENT,
				  "%s.size: qemu-img is needed to make a disk larger, and is not "
				  "installed (on Debian: apt install qemu-utils)",
				  f->key));
		return;
	}
	size = g_strdup_printf("%" G_GUINT64_FORMAT, f->size);
	char *argv[] = {
		qemu_host()->img, (char *)"resize", (char *)"-q", (char *)"-f",
		(char *)"qcow2",  f->path,	    size,	  NULL,
	};
	d->run = proc_run(argv, &d->user, PROGRAM_TIMEOUT_MS, resized, d);
}

static void worked(void *job)
{
	QemuDisks *d = job;

	if (!d->done || d->error)
		finish(d, g_steal_pointer(&d->error));
	else
		resize_next(d);
}

static void add_machine_files(QemuDisks *d, Vm *vm, const Spec *spec)
{
	const char *dir = vm_data_dir(vm);

	d->seed_path = g_build_filename(dir, SEED_NAME, NULL);
	if (spec->cloud_init.given) {
		g_autoptr(GPtrArray) own = g_ptr_array_new();
		SpecCloudInit c = spec->cloud_init;

		if (!c.ssh_keys->len && d->q->ssh_key) {
			g_ptr_array_add(own, d->q->ssh_key);
			c.ssh_keys = own;
		}
		d->seed = seed_new(&c, vm_name(vm), vm_instance_id(vm));
	}
	if (spec->firmware == FIRMWARE_UEFI) {
		d->uefi_from = g_strdup(qemu_host()->uefi_vars);
		d->uefi_path = g_build_filename(dir, QEMU_UEFI_VARS, NULL);
	}
}

static DiskFile *disk_file(QemuVm *q, const SpecDisk *disk)
{
	Vm *vm = qemu_vm(q);
	DiskFile *f = diskfile_new(vm_data_dir(vm), disk);

	f->origin = vm_origin_dir(vm);
	if (disk->file)
		return f;
	f->anew = vm_clone_is_pending(vm);
	f->base = qemu_clone_base(q, disk);
	return f;
}

static void add_device(QemuDisks *d, const SpecDevice *device)
{
	const HostDev *host;

	if (d->error || !hostdev_check(qemu_vm(d->q), device, &d->error))
		return;
	host = hostdev_of(device);
	if (!host->node)
		return;
	g_ptr_array_add(d->nodes, g_strconcat("devices.", device->name, NULL));
	g_ptr_array_add(d->nodes, g_strdup(host->node));
}

static bool is_wanted(const char *only, const char *section, const char *name)
{
	g_autofree char *key = g_strdup_printf("%s.%s", section, name);

	return !only || !strcmp(only, key);
}

void qemu_disks_prepare(QemuVm *q, const Spec *spec, const char *key, QemuDisksFn done, void *arg)
{
	QemuDisks *d = g_new0(QemuDisks, 1);

	d->q = q;
	d->user = q->user;
	d->user.groups =
		g_memdup2(q->user.groups, (gsize)q->user.n_groups * sizeof *q->user.groups);
	d->files = g_ptr_array_new_with_free_func((GDestroyNotify)diskfile_free);
	d->nodes = g_ptr_array_new_with_free_func(g_free);
	d->done = done;
	d->arg = arg;
	for (guint i = 0; i < spec->disks->len; i++) {
		const SpecDisk *disk = spec->disks->pdata[i];

		if (is_wanted(key, "disks", disk->name))
			g_ptr_array_add(d->files, disk_file(q, disk));
	}
	for (guint i = 0; i < spec->devices->len; i++) {
		const SpecDevice *device = spec->devices->pdata[i];

		if (is_wanted(key, "devices", device->name))
			add_device(d, device);
	}
	if (!key)
		add_machine_files(d, qemu_vm(q), spec);
	if (q->disks) {
		q->disks->then = d;
		return;
	}
	q->disks = d;
	loop_work(work, worked, d);
}

void qemu_disks_cancel(QemuVm *q)
{
	QemuDisks *d = q->disks;

	if (!d)
		return;
	if (d->then) {
		d->then->q = NULL;
		disks_free(g_steal_pointer(&d->then));
		return;
	}
	d->done = NULL;
	g_atomic_int_set(&d->cancelled, 1);
	/* Else the pool has it, and frees it when it is done. */
	if (d->run) {
		proc_run_cancel(d->run);
		disks_free(d);
	}
}

void qemu_disks_forget(QemuVm *q)
{
	qemu_disks_cancel(q);
	if (q->disks)
		q->disks->q = NULL;
	q->disks = NULL;
}
