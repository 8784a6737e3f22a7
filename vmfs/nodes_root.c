/* SPDX-License-Identifier: Apache-2.0 */
/* The root: the VMs, and .vmfs/. */
#include "vmfs/node.h"
#include "vmfs/registry.h"

static uint32_t next_vm(const NodeRef *dir, uint32_t after, char name[256])
{
	const Vm *vm = registry_after(after);

	(void)dir;
	if (!vm)
		return 0;
	g_strlcpy(name, vm->name, 256);
	return vm->serial;
}

static uint32_t find_vm(const NodeRef *dir, const char *name)
{
	const Vm *vm = registry_find(name);

	(void)dir;
	return vm ? vm->serial : 0;
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
};

const Node root_node = {
	1, "/", S_IFDIR | 0755, .dir = &root_dir, .doc = "the virtual machines of this host",
};
