/* SPDX-License-Identifier: Apache-2.0 */
/* What a start of QEMU needs of files (prepare.h). Loop thread. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "backends/qemu/qemu.h"
#include "backends/qemu/save.h"
#include "vmfs/err.h"
#include "vmfs/hostdev.h"
#include "vmfs/prepare.h"

static void add_machine_files(QemuVm *q, Prepare *p, const Spec *spec)
{
	Vm *vm = qemu_vm(q);
	const char *dir = vm_data_dir(vm);

	p->seed_path = g_build_filename(dir, SEED_NAME, NULL);
	if (spec->cloud_init.given) {
		g_autoptr(GPtrArray) own = g_ptr_array_new();
		SpecCloudInit c = spec->cloud_init;

		if (!c.ssh_keys->len && q->ssh_key) {
			g_ptr_array_add(own, q->ssh_key);
			c.ssh_keys = own;
		}
		p->seed = seed_new(&c, vm_name(vm), vm_instance_id(vm));
	}
	if (spec->firmware == FIRMWARE_UEFI) {
		p->copy_from = g_strdup(qemu_host()->uefi_vars);
		p->copy_to = g_build_filename(dir, QEMU_UEFI_VARS, NULL);
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

static void add_device(QemuVm *q, Prepare *p, const SpecDevice *device)
{
	const HostDev *host;

	if (p->error || !hostdev_check(qemu_vm(q), device, &p->error))
		return;
	host = hostdev_of(device);
	if (!host->node)
		return;
	g_ptr_array_add(p->nodes, g_strconcat("devices.", device->name, NULL));
	g_ptr_array_add(p->nodes, g_strdup(host->node));
}

static bool is_wanted(const char *only, const char *section, const char *name)
{
	g_autofree char *key = g_strdup_printf("%s.%s", section, name);

	return !only || !strcmp(only, key);
}

void qemu_disks_prepare(QemuVm *q, const Spec *spec, const char *key, PrepareFn done, void *arg)
{
	Prepare *p = prepare_new();

	p->user = q->user;
	p->user.groups =
		g_memdup2(q->user.groups, (gsize)q->user.n_groups * sizeof *q->user.groups);
	for (guint i = 0; i < spec->disks->len; i++) {
		const SpecDisk *disk = spec->disks->pdata[i];

		if (is_wanted(key, "disks", disk->name))
			g_ptr_array_add(p->files, disk_file(q, disk));
	}
	for (guint i = 0; i < spec->devices->len; i++) {
		const SpecDevice *device = spec->devices->pdata[i];

		if (is_wanted(key, "devices", device->name))
			add_device(q, p, device);
	}
	if (!key)
		add_machine_files(q, p, spec);
	prepare_begin(p, &q->disks, done, arg);
}

static void add_read(Prepare *p, const char *key, const char *path)
{
	if (!path)
		return;
	g_ptr_array_add(p->reads, g_strdup(key));
	g_ptr_array_add(p->reads, g_strdup(path));
}

static bool has(const GPtrArray *paths, const char *path)
{
	return g_ptr_array_find_with_equal_func((GPtrArray *)paths, path, g_str_equal, NULL);
}

/* The copy of what a snapshot has of a disk that is the VM's own; owned by the caller. */
static char *copy_of(QemuVm *q, const SpecDisk *d)
{
	g_autofree char *own = diskfile_path(vm_data_dir(qemu_vm(q)), d);

	return g_strconcat(own, QEMU_RESTORED, NULL);
}

void qemu_disks_check_copies(QemuVm *q, const Spec *spec, const GPtrArray *copies, PrepareFn done,
			     void *arg)
{
	Prepare *p = prepare_new();

	p->lookup = true;
	p->user.uid = vm_uid(qemu_vm(q));
	p->user.gid = vm_gid(qemu_vm(q));
	add_read(p, "boot.kernel", spec->kernel);
	add_read(p, "boot.initrd", spec->initrd);
	for (guint i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];
		g_autofree char *copy = copy_of(q, d);
		DiskFile *f;

		if (!d->file && !has(copies, copy))
			continue;
		f = diskfile_new(vm_data_dir(qemu_vm(q)), d);
		g_ptr_array_add(p->files, f);
		if (d->file)
			continue;
		g_free(f->path);
		f->path = g_steal_pointer(&copy);
		f->restored = vm_dirs();
		f->origin = vm_origin_dir(qemu_vm(q));
	}
	prepare_begin(p, &q->disks, done, arg);
}

static bool put_back(QemuVm *q, const SpecDisk *d, const GPtrArray *copies, GError **err)
{
	Vm *vm = qemu_vm(q);
	g_autofree char *copy = copy_of(q, d);
	g_autofree char *own = diskfile_path(vm_data_dir(vm), d);
	g_autofree char *record = diskfile_record(vm_data_dir(vm), d);

	if (unlink(record) && errno != ENOENT)
		return err_set(err, errno, "cannot remove %s: %s", record, g_strerror(errno));
	if (!has(copies, copy)) {
		if (!unlink(own) || errno == ENOENT)
			return true;
		return err_set(err, errno, "cannot remove %s: %s", own, g_strerror(errno));
	}
	/* It is of the image that the snapshot's spec says, whatever was there before. */
	if (d->image && (symlink(d->image, record) || lchown(record, vm_uid(vm), vm_gid(vm))))
		return err_set(err, errno, "cannot make %s: %s", record, g_strerror(errno));
	return !rename(copy, own) ||
	       err_set(err, errno, "cannot put back %s: %s", own, g_strerror(errno));
}

bool qemu_disks_put_back(QemuVm *q, const Spec *spec, const GPtrArray *copies, GError **err)
{
	for (guint i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];

		if (!d->file && !put_back(q, d, copies, err))
			return false;
	}
	return true;
}
