/* SPDX-License-Identifier: Apache-2.0 */
/* The backend `libvirt`: its class, and a VM's place in it. */
#include <errno.h>

#include "backends/libvirt/lv.h"
#include "vmfs/err.h"

void lv_show(LvVm *lv, LvState s)
{
	const VmState before = lv->base.vm->pushed;

	if ((s.state == VM_STOPPED || s.state == VM_CRASHED) &&
	    (before == VM_RUNNING || before == VM_PAUSED || before == VM_STOPPING))
		backend_gone(&lv->base, s.state, s.reason, -1);
	else
		backend_state(&lv->base, s.state, s.reason);
}

LvVm *lv_bind(Vm *vm)
{
	LvVm *lv = lv_of(vm_backend(vm, NULL));
	const Host *host = host_find(vm->home.host);

	if (!lv->host && host && host->link) {
		lv->host = host->link;
		g_hash_table_insert(lv->host->domains, vm->home.key, lv);
	}
	return lv;
}

static void probe(Backend *be)
{
	const Host *local = host_by_number(HOST_LOCAL);
	g_autofree char *uri = lv_uri(local);

	if (!lv_init())
		backend_probed(be, false, "libvirt: its library does not work here");
	else if (!uri && !host_after(HOST_LOCAL))
		backend_probed(be, false,
			       "libvirt: it does not run here; see .vmfs/hosts for other hosts");
	else
		backend_probed(be, true, NULL);
}

static bool check(Backend *be, const Spec *spec, GError **err)
{
	(void)be;
	(void)spec;
	(void)err;
	return true;
}

static void adopt(BackendVm *bv, Op *op)
{
	/* What it is its host says, or will. */
	if (bv->vm->home.be)
		(void)lv_bind(bv->vm);
	op_ok(op);
}

static void fini(BackendVm *bv)
{
	LvVm *lv = lv_of(bv);

	if (lv->host)
		g_hash_table_remove(lv->host->domains, bv->vm->home.key);
	g_free(lv->xml);
}

const BackendClass libvirt_class = {
	.name = "libvirt",
	.doc = "libvirt: the domains of this host and of others",
	.vm_size = sizeof(LvVm),
	.probe = probe,
	.check = check,
	.fini = fini,
	.op = {
		[OP_ADOPT] = adopt,
	},
	.host_open = lv_host_open,
	.host_close = lv_host_close,
	.host_is_up = lv_host_is_up,
	.host_status = lv_host_status,
};
