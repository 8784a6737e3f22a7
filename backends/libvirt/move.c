/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From one host to another, by libvirt's own migration, whether it was ordered here or elsewhere.
 * Both hosts tell of a domain that is on its way, each of its part and in no order. So the VM stays
 * where it was until the other host says that it runs there, or libvirt says that it is done.
 */
#include <errno.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backends/libvirt/call.h"
#include "vmfs/err.h"
#include "vmfs/registry.h"

#define PROGRESS_MS 1000
#define ABORT_MS    200 /* until a job that could not be ended yet is ended */

static GHashTable *moving; /* key to LvVm: those whose move was ordered here */

/* ---- where it is ---- */

static LvHost *link_of(uint32_t number)
{
	const Host *host = host_by_number(number);

	return host ? host->link : NULL;
}

static void look(uint32_t number, const char *key)
{
	LvHost *lh = link_of(number);

	if (lh && lh->virt)
		lv_look(lh, key);
}

/* It is there from now on. */
static void go(LvVm *lv, LvHost *to)
{
	Vm *vm = lv->base.vm;
	const uint32_t from = lv->host->host->number;

	lv_console_end(lv);
	lv_ip_stop(lv);
	lv_ports_forget(lv);
	g_hash_table_remove(lv->host->domains, vm->home.key);
	lv->host = to;
	backend_pid(&lv->base, 0);
	g_free(vm->home.host);
	vm->home.host = g_strdup(to->host->name);
	g_hash_table_insert(to->domains, vm->home.key, lv);
	registry_save_meta(vm, NULL, NULL);
	vm_changed(vm, EV_HOST);
	look(to->host->number, vm->home.key);
	look(from, vm->home.key);
}

static bool is_live(LvState s)
{
	return (s.state == VM_RUNNING || s.state == VM_PAUSED || s.state == VM_STOPPING) &&
	       !lv_is_passing(s);
}

bool lv_move_hides(const LvHost *lh, const char *key, LvState state)
{
	const LvVm *lv = moving ? g_hash_table_lookup(moving, key) : NULL;

	if (!lv)
		return false;
	if (lv->host == lh)
		return lh->host->number == lv->from && !is_live(state);
	return lh->host->number == lv->to ? !state.arrived : lh->host->number == lv->from;
}

LvVm *lv_move_arrived(LvHost *lh, const char *key, LvState state)
{
	const Host *host = is_live(state) ? host_after(0) : NULL;

	for (; host; host = host_after(host->number)) {
		const LvHost *other = host->link;
		LvVm *lv = other && other != lh ? g_hash_table_lookup(other->domains, key) : NULL;

		/* That of another host that only has the same key may run there too. */
		if (lv && (state.arrived || (other->virt && !vm_is_live(lv->base.vm)))) {
			go(lv, lh);
			return lv;
		}
	}
	return NULL;
}

void lv_move_forget(LvVm *lv)
{
	timer_stop(&lv->move_timer);
	if (lv->to)
		g_hash_table_remove(moving, lv->base.vm->home.key);
	lv->from = lv->to = 0;
}

/* ---- moving it ---- */

static bool work_migrate(LvCall *c, GError **err)
{
	unsigned flags = VIR_MIGRATE_PERSIST_DEST | VIR_MIGRATE_UNDEFINE_SOURCE;
	virDomainPtr there = NULL;

	if (g_atomic_int_get(&c->unwanted))
		return err_set(err, ECANCELED, "it was not begun");
	if (virDomainIsPersistent(c->dom) == 0)
		flags = 0;
	flags |= virDomainIsActive(c->dom) == 0 ? VIR_MIGRATE_OFFLINE
						: VIR_MIGRATE_LIVE | VIR_MIGRATE_ABORT_ON_ERROR;
	there = virDomainMigrate3(c->dom, c->other, NULL, 0, flags);
	if (!there) {
		lv_error(err, "libvirt cannot move it");
		return false;
	}
	virDomainFree(there);
	return true;
}

static bool work_abort(LvCall *c, GError **err)
{
	if (virDomainAbortJob(c->dom) >= 0)
		return true;
	lv_error(err, "libvirt cannot end it");
	return false;
}

static bool work_progress(LvCall *c, GError **err)
{
	virTypedParameterPtr params = NULL;
	unsigned long long total = 0, left = 0;
	int type, n = 0;

	(void)err;
	if (virDomainGetJobStats(c->dom, &type, &params, &n, 0) < 0)
		return true;
	(void)virTypedParamsGetULLong(params, n, VIR_DOMAIN_JOB_DATA_TOTAL, &total);
	(void)virTypedParamsGetULLong(params, n, VIR_DOMAIN_JOB_DATA_REMAINING, &left);
	if (total && left <= total)
		c->percent = (int)((total - left) * 100 / total);
	virTypedParamsFree(params, n);
	return true;
}

static void ask_progress(void *arg);

static void progressed(LvCall *c)
{
	LvVm *lv = c->lv;
	const LvCall *move = lv ? lv->start : NULL;

	if (!move || lv->undoing)
		return;
	if (move->op && c->percent >= 0)
		op_progress(move->op, (unsigned)c->percent);
	lv->move_timer = timer_start(PROGRESS_MS, ask_progress, lv);
}

static void ask_progress(void *arg)
{
	LvVm *lv = arg;
	LvCall *c;

	lv->move_timer = NULL;
	c = lv->start ? lv_call_new(lv, work_progress, progressed, NULL) : NULL;
	if (!c)
		return;
	c->percent = -1;
	lv_call_send(c);
}

static void end(LvVm *lv)
{
	const uint32_t from = lv->from, to = lv->to;

	lv_move_forget(lv);
	backend_fact(&lv->base, "destination", NULL);
	look(from, lv->base.vm->home.key);
	look(to, lv->base.vm->home.key);
}

static void migrated(LvCall *c)
{
	LvVm *lv = c->lv;
	LvHost *to = lv ? link_of(lv->to) : NULL;
	Op *op = c->op;

	if (!lv)
		return;
	if (lv->start == c)
		lv->start = NULL;
	if (!c->error && to && lv->host && lv->host != to)
		go(lv, to);
	end(lv);
	if (!op)
		return;
	if (!lv->undoing && c->error) {
		op_fail(op, g_steal_pointer(&c->error));
		return;
	}
	lv->undoing = false;
	op_next(op);
}

static LvHost *destination(const LvVm *lv, const char *name, GError **err)
{
	const Vm *vm = lv->base.vm;
	const Host *host = host_find(name);
	LvHost *to = host ? host->link : NULL;
	const LvVm *same = to ? g_hash_table_lookup(to->domains, lv->base.vm->home.key) : NULL;

	if (host && !vm->home.foreign && lv_has_own(vm->spec) && !lv_host_is_here(host))
		return (void *)err_set(err, EOPNOTSUPP,
				       "the files of disks with `image` or `size`, and of "
				       "cloud_init, are on this machine, and host %s is another",
				       name);
	if (!to || !lv_host_need(to, err))
		return to ? NULL : (void *)err_set(err, EHOSTDOWN, "host %s has no URI", name);
	if (same)
		(void)err_set(err, EEXIST, "host %s has that domain already: it is '%s'", name,
			      same->base.vm->name);
	return same ? NULL : to;
}

static void run_move(Op *op, void *ctx)
{
	LvVm *lv = ctx;
	const char *name = op_arg(op);
	GError *e = NULL;
	LvHost *to = destination(lv, name, &e);
	LvCall *c = to ? lv_call_new(lv, work_migrate, migrated, &e) : NULL;

	if (!c) {
		op_fail(op, e);
		return;
	}
	c->op = op;
	c->slow = true;
	c->other = to->virt;
	(void)virConnectRef(c->other);
	lv->start = c;
	lv->from = lv->host->host->number;
	lv->to = to->host->number;
	if (!moving)
		moving = g_hash_table_new(g_str_hash, g_str_equal);
	g_hash_table_insert(moving, lv->base.vm->home.key, lv);
	backend_fact(&lv->base, "destination", name);
	lv->move_timer = timer_start(PROGRESS_MS, ask_progress, lv);
	lv_call_send(c);
}

static void end_job(void *arg);

static void ended_job(LvCall *c)
{
	/* It may not have begun yet, or have ended. */
	if (c->lv && c->lv->start && c->lv->undoing && c->error)
		c->lv->move_timer = timer_start(ABORT_MS, end_job, c->lv);
}

static void end_job(void *arg)
{
	LvVm *lv = arg;
	LvCall *c;

	lv->move_timer = NULL;
	c = lv_call_new(lv, work_abort, ended_job, NULL);
	if (c)
		lv_call_send(c);
}

/* Whether it is too late for that, libvirt knows: then it is there. */
static void cancel_move(Op *op, void *ctx)
{
	LvVm *lv = ctx;
	LvCall *c = lv->start;

	(void)op;
	lv->undoing = c != NULL;
	timer_stop(&lv->move_timer);
	if (!c)
		return;
	g_atomic_int_set(&c->unwanted, 1);
	end_job(lv);
}

static void undo_move(Op *op, void *ctx)
{
	const LvVm *lv = ctx;

	if (!lv->undoing)
		op_next(op);
}

static const Step steps[] = {
	{ "moving", run_move, cancel_move, undo_move },
	{ 0 },
};

void lv_migrate(BackendVm *bv, Op *op)
{
	op_steps(op, steps, lv_of(bv), NULL);
}

void lv_move_away(const LvHost *lh)
{
	const GPtrArray *vms = registry_all();

	for (unsigned i = 0; moving && g_hash_table_size(moving) && i < vms->len; i++) {
		Vm *vm = vms->pdata[i];
		const LvVm *lv = g_hash_table_lookup(moving, vm->home.key ? vm->home.key : "");

		if (lv && lv->base.vm == vm && lv->to == lh->host->number && vm->op &&
		    op_kind(vm->op) == OP_MIGRATE)
			op_cancel(vm->op, err_new(EHOSTDOWN, "host %s went away meanwhile",
						  lh->host->name));
	}
}
