/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots in the books of a hypervisor that keeps them itself: taken, dropped and told of by the
 * backend, also when others did that. Here are only their names and numbers, and what they are
 * shown as. Loop thread only.
 */
#include <errno.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/snapshot_internal.h"

#define ANSWER_MS 900

const char *snapshot_spec(const Snapshot *s)
{
	return s->spec;
}

const char *snapshot_xml(const Snapshot *s)
{
	return s->xml;
}

/* ---- what takes long is waited for by nobody ---- */

typedef struct Asking {
	Vm *vm;		 /* a reference */
	uint32_t number; /* of the snapshot; 0: of none */
	Timer *timer;	 /* NULL: answered */
	SnapshotDone done;
	void *arg;
} Asking;

static void answer(Asking *a, int err)
{
	if (!a->timer)
		return;
	timer_stop(&a->timer);
	a->done(a->arg, err);
}

static void late(void *arg)
{
	Asking *a = arg;

	a->timer = NULL;
	a->done(a->arg, 0);
}

static Asking *asking_new(Vm *vm, uint32_t number, SnapshotDone done, void *arg)
{
	Asking *a = g_new0(Asking, 1);

	*a = (Asking){ vm_ref(vm), number, NULL, done, arg };
	a->timer = timer_start(ANSWER_MS, late, a);
	return a;
}

static void asking_free(Asking *a)
{
	vm_unref(a->vm);
	g_free(a);
}

static void looked(void *arg, const GError *e)
{
	Asking *a = arg;

	(void)e; /* what is known stands */
	answer(a, 0);
	asking_free(a);
}

void snapshot_look(Vm *vm, SnapshotDone done, void *arg)
{
	const Backend *be = vm_backend_kind(vm, NULL);
	BackendVm *bv = be && be->cls->snapshot_look ? vm_backend(vm, NULL) : NULL;

	if (bv)
		be->cls->snapshot_look(bv, looked, asking_new(vm, 0, done, arg));
	else
		done(arg, 0);
}

/* ---- dropping ---- */

static Snapshot *dropping(const Vm *vm, uint32_t number)
{
	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++) {
		Snapshot *s = vm->snapshots->pdata[i];

		if (s->number == number && s->state == SNAPSHOT_DROPPING)
			return s;
	}
	return NULL;
}

static void dropped(void *arg, const GError *e)
{
	Asking *a = arg;
	Snapshot *s = dropping(a->vm, a->number);
	const int err = e && err_code(e) != ENOENT ? err_code(e) : 0;

	if (s && err) {
		vm_set_error(a->vm, "rmdir", e);
		snapshot_set_state(s, SNAPSHOT_READY);
	} else if (s) {
		snapshot_remove(s);
		snapshot_store_all(a->vm);
		vm_set_error(a->vm, NULL, NULL);
	}
	answer(a, err);
	asking_free(a);
}

int booked_drop(Snapshot *s, SnapshotDone done, void *arg)
{
	Vm *vm = s->vm;
	GError *e = NULL;
	BackendVm *bv = vm_backend(vm, &e);

	if (!bv)
		return snapshot_fail(vm, "rmdir", e);
	s->state = SNAPSHOT_DROPPING;
	vm_changed(vm, EV_SNAPSHOT);
	bv->be->cls->snapshot_drop(bv, s->name, dropped, asking_new(vm, s->number, done, arg));
	return 0;
}

/* ---- what the books say ---- */

static const BookedSnapshot *find_booked(const GPtrArray *all, const char *name)
{
	for (guint i = 0; i < all->len; i++)
		if (!strcmp(((const BookedSnapshot *)all->pdata[i])->name, name))
			return all->pdata[i];
	return NULL;
}

static bool takes(const Op *op, const char *name)
{
	return op && op_kind(op) == OP_SNAPSHOT && !g_strcmp0(op_word(op), name);
}

/* Its op says when it is one. */
static bool is_taken_here(const Snapshot *s)
{
	return s->op || takes(s->vm->op, s->name) || takes(s->vm->next_op, s->name);
}

static bool take_text(char **have, const char *text)
{
	if (!text || !g_strcmp0(*have, text))
		return false;
	g_free(*have);
	*have = g_strdup(text);
	return true;
}

/* False: nothing has changed by that. */
static bool take_over(Snapshot *s, const BookedSnapshot *b)
{
	bool changed = take_text(&s->spec, b->spec);

	changed |= take_text(&s->xml, b->xml);
	s->made = b->made ? b->made : s->made;
	if (s->state != SNAPSHOT_TAKING || is_taken_here(s))
		return changed;
	s->state = s->next = SNAPSHOT_READY;
	return true;
}

static bool forget_others(Vm *vm, const GPtrArray *all)
{
	bool changed = false;

	for (guint i = vm->snapshots ? vm->snapshots->len : 0; i-- > 0;) {
		Snapshot *s = vm->snapshots->pdata[i];

		if (!s->booked || find_booked(all, s->name) || is_taken_here(s) ||
		    s->state == SNAPSHOT_DROPPING || s->next != s->state)
			continue;
		if (s->state == SNAPSHOT_TAKING) {
			g_autoptr(GError) e = snapshot_unfinished(s->name);

			vm_set_error(vm, "snapshot", e);
		}
		snapshot_remove(s);
		changed = true;
	}
	return changed;
}

static bool is_dropping(const Vm *vm, const char *name)
{
	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++) {
		const Snapshot *s = vm->snapshots->pdata[i];

		if (s->state == SNAPSHOT_DROPPING && !strcmp(s->name, name))
			return true;
	}
	return false;
}

void backend_snapshots(BackendVm *bv, const GPtrArray *all)
{
	Vm *vm = bv->vm;
	bool changed = forget_others(vm, all);

	for (guint i = 0; i < all->len; i++) {
		const BookedSnapshot *b = all->pdata[i];
		Snapshot *s = snapshot_find(vm, b->name);

		if (s) {
			changed |= s->booked && take_over(s, b);
		} else if (snapshot_is_name(b->name) && !is_dropping(vm, b->name) &&
			   (!vm->snapshots || vm->snapshots->len < SNAPSHOT_MAX)) {
			s = snapshot_add(vm, b->name, SNAPSHOT_READY);
			s->booked = true;
			(void)take_over(s, b);
			changed = true;
		}
	}
	if (!changed)
		return;
	snapshot_store_all(vm);
	vm_changed(vm, EV_SNAPSHOT);
}
