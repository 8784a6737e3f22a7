/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/home.h"

#include <errno.h>

#include "vmfs/err.h"
#include "vmfs/loop.h"

#define DEADLINE_MS 1000

typedef struct Order {
	Vm *vm;		/* a reference */
	BackendDone fn; /* NULL: nobody waits any more */
	void *arg;
	Timer *timer;
} Order;

static void ended(void *arg, const GError *e)
{
	Order *o = arg;

	timer_stop(&o->timer);
	if (o->fn)
		o->fn(o->arg, e);
	vm_unref(o->vm);
	g_free(o);
}

static void late(void *arg)
{
	Order *o = arg;
	BackendDone fn = o->fn;
	g_autoptr(GError) e =
		err_new(ETIMEDOUT, "host %s does not answer; look at what it has done when it does",
			vm_host(o->vm));

	o->timer = NULL;
	o->fn = NULL;
	fn(o->arg, e);
}

static Order *order_new(Vm *vm, BackendDone fn, void *arg)
{
	Order *o = g_new0(Order, 1);

	o->vm = vm_ref(vm);
	o->fn = fn;
	o->arg = arg;
	o->timer = timer_start(DEADLINE_MS, late, o);
	return o;
}

/* The class that keeps the books; NULL: none does. */
static const BackendClass *keeper(const Vm *vm)
{
	return vm->home.be && vm->bv ? vm->home.be->cls : NULL;
}

void home_define(Vm *vm, Spec *spec, BackendDone fn, void *arg)
{
	const BackendClass *cls = keeper(vm);

	if (cls && cls->define)
		cls->define(vm->bv, spec, ended, order_new(vm, fn, arg));
	else
		fn(arg, NULL);
}

void home_rename(Vm *vm, const char *name, BackendDone fn, void *arg)
{
	const BackendClass *cls = keeper(vm);

	if (cls && cls->rename)
		cls->rename(vm->bv, name, ended, order_new(vm, fn, arg));
	else
		fn(arg, NULL);
}

void home_undefine(Vm *vm, BackendDone fn, void *arg)
{
	const BackendClass *cls = keeper(vm);

	if (cls && cls->undefine)
		cls->undefine(vm->bv, ended, order_new(vm, fn, arg));
	else
		fn(arg, NULL);
}
