/* SPDX-License-Identifier: Apache-2.0 */
/* The root: the VMs, and .vmfs/. */
#include "vmfs/node.h"
#include "vmfs/registry.h"

static uint32_t next_vm(const NodeRef *dir, uint32_t after, char name[256])
{
	const Vm *vm = registry_after(after);

	(void)dir;
	while (vm && vm->hidden)
		vm = registry_after(vm->serial);
	if (!vm)
		return 0;
	g_strlcpy(name, vm->name, 256);
	return vm->serial;
}

static uint32_t find_vm(const NodeRef *dir, const char *name)
{
	const Vm *vm = registry_find(name);

	(void)dir;
	return vm && !vm->hidden ? vm->serial : 0;
}

static int make_vm(const NodeRef *dir, const char *name, mode_t mode, const Caller *who,
		   NodeDone done, void *arg)
{
	(void)dir;
	return registry_make(name, mode, who, done, arg);
}

static int drop_vm(const NodeRef *r, const Caller *who, NodeDone done, void *arg)
{
	(void)who;
	return registry_remove(r->vm, done, arg);
}

static int rename_vm(const NodeRef *r, const char *newname, const Caller *who, NodeDone done,
		     void *arg)
{
	(void)who;
	return registry_rename(r->vm, newname, done, arg);
}

static const HostAttr *root_attr(const NodeRef *r)
{
	(void)r;
	return registry_root();
}

static void set_root_attr(const NodeRef *r, const HostAttr *attr, NodeDone done, void *arg)
{
	(void)r;
	registry_set_root(attr);
	done(arg, 0);
}

static const Node vm_node = {
	2,
	"NAME",
	S_IFDIR | 0755,
	.dir = &vm_dir,
	.doc = "a virtual machine: mkdir makes it, rmdir destroys it, mv renames it",
};

static const Dir root_dir = {
	.rows = host_rows,
	.child = &vm_node,
	.next = next_vm,
	.find = find_vm,
	.make = make_vm,
	.drop = drop_vm,
	.rename = rename_vm,
};

const Node root_node = {
	1,
	"/",
	S_IFDIR | 0755,
	.dir = &root_dir,
	.attr = root_attr,
	.set_attr = set_root_attr,
	.doc = "the virtual machines of this host",
};
