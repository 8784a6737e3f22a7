/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of vmfs's own that a domain uses: private disks and the seed for cloud-init, in the VM's
 * data directory, which is its owner's alone. They stay the owner's: libvirt is told not to give
 * them to the user of its QEMUs, and that one user is let through to them by an access control
 * list. So nothing has to be given back, and no image that a disk is based on changes hands.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backends/libvirt/call.h"
#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/rights.h"
#include "vmfs/seed.h"

bool lv_host_is_here(const Host *host)
{
	g_autofree char *text = lv_uri(host);
	g_autoptr(GUri) uri = text ? g_uri_parse(text, G_URI_FLAGS_NONE, NULL) : NULL;
	const char *server = uri ? g_uri_get_host(uri) : NULL;

	return uri && (!server || !*server);
}

bool lv_is_own(const SpecDisk *d)
{
	return !d->file;
}

bool lv_has_own(const Spec *spec)
{
	bool any = spec->cloud_init.given;

	for (unsigned i = 0; i < spec->disks->len; i++)
		any |= lv_is_own(spec->disks->pdata[i]);
	return any;
}

static bool can_own(const LvVm *lv)
{
	return !lv->base.vm->home.foreign && lv->host && lv_host_is_here(lv->host->host);
}

void lv_own_call(LvCall *c)
{
	Vm *vm = c->vm;

	if (!c->lv || !can_own(c->lv))
		return;
	c->dir = g_strdup(vm_data_dir(vm));
	c->uid = vm_uid(vm);
	c->gid = vm_gid(vm);
}

/* ---- on the loop: they are made ---- */

static Seed *seed_of(LvVm *lv, const Spec *spec)
{
	Vm *vm = lv->base.vm;
	g_autoptr(GPtrArray) own = g_ptr_array_new();
	SpecCloudInit c = spec->cloud_init;

	if (!c.ssh_keys->len && lv->ssh_key) {
		g_ptr_array_add(own, lv->ssh_key);
		c.ssh_keys = own;
	}
	return seed_new(&c, vm_name(vm), vm_instance_id(vm));
}

static void begin(LvVm *lv, const Spec *spec, const char *key, PrepareFn done, void *arg)
{
	Vm *vm = lv->base.vm;
	const char *dir = vm_data_dir(vm);
	const SpecDisk *only = key ? spec_named(spec, key) : NULL;
	Prepare *p = prepare_new();

	p->user = (ProcUser){ .uid = vm_uid(vm), .gid = vm_gid(vm) };
	p->lookup = true;
	for (unsigned i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];

		if (lv_is_own(d) && (!key || d == only))
			g_ptr_array_add(p->files, diskfile_new(dir, d));
	}
	if (!key)
		p->seed_path = g_build_filename(dir, SEED_NAME, NULL);
	if (!key && spec->cloud_init.given)
		p->seed = seed_of(lv, spec);
	prepare_begin(p, &lv->prepare, done, arg);
}

/* The key that the seed is to have is made first. */
struct LvSeedKey {
	LvVm *lv;
	SshKey *key;
	Spec *spec;
	PrepareFn done;
	void *arg;
};

static void seed_key_free(LvVm *lv)
{
	struct LvSeedKey *k = g_steal_pointer(&lv->seed_key);

	ssh_key_cancel(k->key);
	spec_unref(k->spec);
	g_free(k);
}

static void seed_key_made(void *arg, const char *public_key, const GError *err)
{
	struct LvSeedKey *k = arg;
	LvVm *lv = k->lv;

	k->key = NULL;
	if (err)
		log_warning("%s: starts without a key for ssh: %s", vm_name(lv->base.vm),
			    err->message);
	g_free(lv->ssh_key);
	lv->ssh_key = g_strdup(public_key);
	begin(lv, k->spec, NULL, k->done, k->arg);
	seed_key_free(lv);
}

bool lv_own_prepare(LvVm *lv, Spec *spec, const char *key, PrepareFn done, void *arg)
{
	Vm *vm = lv->base.vm;
	const SpecDisk *only = key ? spec_named(spec, key) : NULL;
	const ProcUser owner = { .uid = vm_uid(vm),
				 .gid = vm_gid(vm),
				 .change = vm_uid(vm) != geteuid() };

	if (!can_own(lv) || (key && !(g_str_has_prefix(key, "disks.") && only && lv_is_own(only))))
		return false;
	/* Without a key of the user's, nobody could log in. */
	if (key || !spec->cloud_init.given || spec->cloud_init.ssh_keys->len) {
		begin(lv, spec, key, done, arg);
		return true;
	}
	lv->seed_key = g_new0(struct LvSeedKey, 1);
	*lv->seed_key = (struct LvSeedKey){ lv, NULL, spec_ref(spec), done, arg };
	lv->seed_key->key = ssh_key(vm, &owner, seed_key_made, lv->seed_key);
	return true;
}

void lv_own_cancel(LvVm *lv)
{
	if (lv->seed_key)
		seed_key_free(lv);
	prepare_cancel(&lv->prepare);
}

/* ---- in the pool: they can be reached ---- */

bool lv_learn_caps(LvCall *c, GError **err)
{
	char *text;

	if (c->caps.known)
		return true;
	text = virConnectGetCapabilities(c->virt);
	if (!text) {
		lv_error(err, "libvirt does not say what its host can do");
		return false;
	}
	c->caps = lv_xml_caps(text);
	free(text);
	return true;
}

static bool reach_files(const LvCall *c, GError **err)
{
	const Spec *spec = c->spec;

	if (!rights_let(c->dir, c->caps.uid, 1, err))
		return false;
	for (unsigned i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];
		g_autofree char *path = lv_is_own(d) ? diskfile_path(c->dir, d) : NULL;

		if (path && !rights_let(path, c->caps.uid, d->readonly ? 4 : 6, err))
			return false;
	}
	if (spec->cloud_init.given) {
		g_autofree char *path = g_build_filename(c->dir, SEED_NAME, NULL);

		return rights_let(path, c->caps.uid, 4, err);
	}
	return true;
}

bool lv_own_reach(LvCall *c, GError **err)
{
	ProcUser user = { 0 };
	int before;
	bool ok;

	/* Where nobody is told apart, or root is it, all is reached. */
	if (!c->dir || !lv_has_own(c->spec) || !c->caps.dac || !c->caps.uid)
		return true;
	proc_user_lookup(&user, c->uid, c->gid);
	ok = rights_take(&user, &before);
	if (!ok)
		(void)err_set(err, EPERM, "vmfs cannot act with the rights of user %u", c->uid);
	ok = ok && reach_files(c, err);
	rights_drop(&user, before);
	proc_user_clear(&user);
	return ok;
}
