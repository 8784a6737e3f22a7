/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes to a VM that runs: from what it was started with to what its spec says, one key an op.
 * What runs is BackendVm.spec, which is kept true by what is done here.
 */
#include <errno.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/vm.h"

static void change_free(void *arg)
{
	SpecChange *c = arg;

	g_free(c->key);
	spec_unref(c->want);
	g_free(c);
}

bool vm_can_apply(const Vm *vm, const Spec *want, const char *key)
{
	const BackendClass *cls = vm->bv ? vm->bv->be->cls : NULL;

	return cls && cls->op[OP_APPLY] && (vm->state == VM_RUNNING || vm->state == VM_PAUSED) &&
	       cls->can_apply(vm->bv, want, key);
}

bool vm_order_change(Vm *vm, const Spec *want, const char *key, Op **op, GError **err)
{
	Spec *merged = vm->bv ? spec_merge(vm->bv->spec, want, key) : NULL;
	SpecChange *c;

	if (!merged)
		return err_set(err, EBUSY, "%s cannot be changed by itself; stop the VM first",
			       key);
	c = g_new0(SpecChange, 1);
	c->key = g_strdup(key);
	c->want = merged;
	return vm_order(vm, OP_APPLY, c, change_free, op, err);
}

/* Take it for what runs; where that is spec.yaml, without a copy of it. */
static void take(Vm *vm, Spec *spec)
{
	g_autoptr(GPtrArray) keys = spec_diff(vm->spec, spec);

	spec_ref(keys->len ? spec : vm->spec);
	spec_unref(vm->bv->spec);
	vm->bv->spec = keys->len ? spec : vm->spec;
	vm_save_started(vm);
	vm_changed(vm, EV_PENDING);
}

void backend_spec(BackendVm *bv, Spec *spec)
{
	take(bv->vm, spec);
}

static bool is_pending(const Vm *vm, const char *key)
{
	g_autoptr(GPtrArray) keys = vm_pending(vm);

	return g_ptr_array_find_with_equal_func(keys, key, g_str_equal, NULL);
}

static void apply_next(Vm *vm)
{
	while (vm->to_apply && vm->to_apply->len && !vm->op) {
		g_autofree char *key = g_ptr_array_steal_index(vm->to_apply, 0);
		g_autoptr(GError) e = NULL;
		Op *op;

		/* Others may have changed the spec meanwhile, or what runs. */
		if (is_pending(vm, key) && vm_can_apply(vm, vm->spec, key) &&
		    !vm_order_change(vm, vm->spec, key, &op, &e))
			vm_set_error(vm, "apply", e);
	}
	if (!vm->to_apply || vm->op)
		return;
	g_clear_pointer(&vm->to_apply, g_ptr_array_unref);
	/* Whoever waits for the end of it may look now. */
	vm_changed(vm, EV_PENDING);
}

static void add_keys(Vm *vm, const GPtrArray *keys, bool removed)
{
	for (unsigned i = 0; i < keys->len; i++) {
		const char *key = keys->pdata[i];
		const bool goes =
			spec_named(vm->bv->spec, key) != NULL && !spec_named(vm->spec, key);

		if (goes == removed && vm_can_apply(vm, vm->spec, key))
			g_ptr_array_add(vm->to_apply, g_strdup(key));
	}
}

void vm_apply(Vm *vm)
{
	g_autoptr(GPtrArray) keys = NULL;

	vm->apply_later = vm->op != NULL;
	if (vm->op || vm->removed || !vm->bv || !vm_is_live(vm))
		return;
	keys = vm_pending(vm);
	if (vm->to_apply)
		g_ptr_array_unref(vm->to_apply);
	vm->to_apply = g_ptr_array_new_with_free_func(g_free);
	/* What goes makes room for what comes: a file, an address, a slot. */
	add_keys(vm, keys, true);
	add_keys(vm, keys, false);
	apply_next(vm);
}

bool vm_is_applying(const Vm *vm)
{
	return vm->to_apply != NULL || (vm->apply_later && vm->op && op_kind(vm->op) == OP_APPLY);
}

void vm_apply_ended(Vm *vm, const Op *op)
{
	const SpecChange *c = op_arg(op);

	if (op_kind(op) == OP_APPLY && !op_error(op) && vm->bv)
		take(vm, c->want);
	if (vm->next_op) /* which ends it, as a rule */
		g_clear_pointer(&vm->to_apply, g_ptr_array_unref);
	else if (vm->apply_later)
		vm_apply(vm);
	else
		apply_next(vm);
}
