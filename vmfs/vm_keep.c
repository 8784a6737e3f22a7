/* SPDX-License-Identifier: Apache-2.0 */
/* What a successor of this daemon must know of a VM beyond what is stored. */
#include <errno.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/keep.h"
#include "vmfs/registry.h"
#include "vmfs/vm.h"

#define MAX_VERSIONS 32

typedef struct KeptVm {
	uint32_t size; /* of this struct: lines follow */
	int32_t pid;
	int64_t changed;
	uint32_t versions[MAX_VERSIONS];
	uint32_t agent;
	uint32_t unused;
} KeptVm;

G_STATIC_ASSERT(EV_COUNT <= MAX_VERSIONS);

static void keep_all(void)
{
	KeptVm k = { .size = sizeof k };

	memcpy(k.versions, vm_all.versions, sizeof vm_all.versions);
	keep_set(KEEP_VM, 0, &k, sizeof k);
}

void vm_keep(const Vm *vm)
{
	KeptVm k = { .size = sizeof k, .pid = vm->pid, .changed = vm->changed, .agent = vm->agent };
	g_autoptr(GString) lines = NULL;

	if (!keep_head())
		return;
	keep_all();
	if (vm->removed) {
		keep_unset(KEEP_VM, vm->serial);
		keep_unset(KEEP_CONSOLE, vm->serial);
		return;
	}
	memcpy(k.versions, vm->versions, sizeof vm->versions);
	keep_set(KEEP_VM, vm->serial, &k, sizeof k);
	if (!vm->ips && !vm->facts)
		return;
	lines = g_string_new(NULL);
	for (unsigned i = 0; vm->ips && vm->ips[i]; i++)
		g_string_append_printf(lines, "ip %s\n", vm->ips[i]);
	for (unsigned i = 0; vm->facts && i < vm->facts->len; i++)
		g_string_append_printf(lines, "fact %s\n", (char *)vm->facts->pdata[i]);
	keep_append(KEEP_VM, vm->serial, lines->str, lines->len);
}

static void restore_lines(Vm *vm, const char *text, size_t len)
{
	g_autofree char *copy = g_strndup(text, len);
	g_auto(GStrv) lines = g_strsplit(copy, "\n", -1);
	GPtrArray *ips = g_ptr_array_new();

	for (unsigned i = 0; lines[i]; i++) {
		if (g_str_has_prefix(lines[i], "ip ")) {
			g_ptr_array_add(ips, g_strdup(lines[i] + strlen("ip ")));
		} else if (g_str_has_prefix(lines[i], "fact ")) {
			if (!vm->facts)
				vm->facts = g_ptr_array_new_with_free_func(g_free);
			g_ptr_array_add(vm->facts, g_strdup(lines[i] + strlen("fact ")));
		}
	}
	if (ips->len) {
		g_ptr_array_add(ips, NULL);
		vm->ips = (char **)g_ptr_array_free(ips, FALSE);
	} else {
		g_ptr_array_unref(ips);
	}
}

void vm_restore(Vm *vm)
{
	g_autoptr(GBytes) value = keep_get(KEEP_VM, vm->serial);
	const char *data;
	KeptVm k;
	gsize len;

	events_restore(vm);
	if (!value)
		return;
	keep_copy(&k, sizeof k, value);
	data = g_bytes_get_data(value, &len);
	memcpy(vm->versions, k.versions, sizeof vm->versions);
	vm->changed = k.changed;
	if (!vm_is_live(vm))
		return;
	vm->pid = k.pid;
	vm->agent = k.agent;
	if (k.size < len)
		restore_lines(vm, data + k.size, len - k.size);
}

static void cancelled(Op *op)
{
	op_keep(op);
	op_unref(op);
}

static void begin(Vm *vm, Op *op)
{
	/* Of two, the second one was to cancel the first. */
	if (vm->next_op)
		op_conclude(vm->next_op,
			    err_new(ECANCELED, "it was cancelled by '%s'", op_verb(op)->name),
			    cancelled);
	vm->next_op = op;
}

void vm_restore_all(void)
{
	g_autoptr(GBytes) value = keep_get(KEEP_VM, 0);
	const GPtrArray *vms = registry_all();
	KeptVm k;

	if (value) {
		keep_copy(&k, sizeof k, value);
		memcpy(vm_all.versions, k.versions, sizeof vm_all.versions);
	}
	events_restore(NULL);
	for (unsigned i = 0; i < vms->len; i++)
		vm_restore(vms->pdata[i]);
	op_restore(registry_by_serial, begin);
}
