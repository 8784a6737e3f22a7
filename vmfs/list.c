/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/list.h"

#include <string.h>

#include "vmfs/registry.h"

/* With more lines than this to mend, all are written anew: each mended one moves those behind it.
 */
#define MAX_MENDED 64

static struct {
	GString *text;
	Vm *changed[MAX_MENDED]; /* VMs whose line is to be mended */
	unsigned n_changed;
	bool all; /* write it anew */
} list = { .all = true };

static void add_line(const Vm *vm, GString *out)
{
	const Backend *be = vm->bv ? vm->bv->be : vm_backend_kind(vm, NULL);

	g_string_append_printf(out, "%s %s %s %s %s\n", vm->name, vm_state_name(vm->state),
			       be ? be->cls->name : "-", vm_host(vm), vm->ips ? vm->ips[0] : "-");
}

void list_change(Vm *vm, unsigned changes)
{
	/* A new line, and one that is gone, moves the others. */
	if (changes & EV_NAME)
		list.all = true;
	if (list.all || !(changes & LIST_CHANGES))
		return;
	for (unsigned i = 0; i < list.n_changed; i++)
		if (list.changed[i] == vm)
			return;
	if (list.n_changed == MAX_MENDED)
		list.all = true;
	else
		list.changed[list.n_changed++] = vm;
}

static void write_all(void)
{
	const GPtrArray *vms = registry_all();

	if (!list.text)
		list.text = g_string_new(NULL);
	g_string_truncate(list.text, 0);
	for (unsigned i = 0; i < vms->len; i++) {
		Vm *vm = vms->pdata[i];

		vm->line_at = (uint32_t)list.text->len;
		add_line(vm, list.text);
		vm->line_len = (uint32_t)list.text->len - vm->line_at;
	}
}

static void mend(Vm *vm)
{
	g_autoptr(GString) line = g_string_new(NULL);
	const GPtrArray *vms = registry_all();
	uint32_t moved;

	add_line(vm, line);
	moved = (uint32_t)line->len - vm->line_len;
	if (!moved) {
		memcpy(list.text->str + vm->line_at, line->str, line->len);
		return;
	}
	g_string_erase(list.text, vm->line_at, vm->line_len);
	g_string_insert_len(list.text, vm->line_at, line->str, (gssize)line->len);
	vm->line_len = (uint32_t)line->len;
	for (unsigned i = vms->len; i-- && vms->pdata[i] != vm;)
		((Vm *)vms->pdata[i])->line_at += moved;
}

const GString *list_text(void)
{
	if (list.all)
		write_all();
	for (unsigned i = 0; !list.all && i < list.n_changed; i++)
		mend(list.changed[i]);
	list.all = false;
	list.n_changed = 0;
	return list.text;
}

size_t list_size(void)
{
	g_autoptr(GString) line = NULL;
	size_t size;

	if (list.all)
		return list_text()->len;
	line = g_string_new(NULL);
	size = list.text->len;
	for (unsigned i = 0; i < list.n_changed; i++) {
		g_string_truncate(line, 0);
		add_line(list.changed[i], line);
		size += line->len - list.changed[i]->line_len;
	}
	return size;
}
