/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs: what is asked of a domain, and how it is known to be done. */
#include <errno.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "backends/usernet.h"
#include "vmfs/err.h"
#include "vmfs/registry.h"

/* ---- ending ---- */

void lv_op_clear(LvVm *lv)
{
	for (unsigned i = 0; i < lv->calls->len; i++)
		((LvCall *)lv->calls->pdata[i])->op = NULL;
	timer_stop(&lv->op_timer);
	lv->op = NULL;
	lv->ending = NULL;
}

void lv_op_end(LvVm *lv, GError *take)
{
	Op *op = lv->op;

	lv_op_clear(lv);
	if (take)
		op_fail(op, take);
	else
		op_ok(op);
}

static void cancel_op(Op *op, void *ctx)
{
	(void)op;
	lv_op_clear(ctx);
}

void lv_op_look(LvVm *lv)
{
	OpKind kind = lv->op ? op_kind(lv->op) : OP_NONE;

	const VmState state = lv->base.vm->pushed;

	if (state != VM_STOPPED && state != VM_CRASHED && state != VM_ASLEEP)
		return;
	/* What is asleep is killed by taking its memory away: the call says when that is done. */
	if (kind == OP_STOP || (kind == OP_KILL && state != VM_ASLEEP))
		lv_op_end(lv, NULL);
	else if (kind == OP_REBOOT)
		lv_op_end(lv, err_new(ESRCH, "it has ended meanwhile"));
}

void lv_op_rebooted(LvVm *lv)
{
	if (lv->op && op_kind(lv->op) == OP_REBOOT)
		lv_op_end(lv, NULL);
}

void lv_op_away(LvVm *lv)
{
	LvCall *start = lv->start;
	Op *op = start ? start->op : NULL;

	lv->start = NULL;
	if (start)
		start->op = NULL;
	if (op && lv->undoing)
		op_next(op);
	else if (op)
		op_fail(op, err_new(EHOSTDOWN, "its host went away meanwhile"));
	lv->undoing = false;
	lv_snapshot_away(lv);
	if (lv->op)
		lv_op_end(lv, err_new(EHOSTDOWN, "its host went away meanwhile"));
}

LvCall *lv_op_begin(LvVm *lv, Op *op, bool (*work)(LvCall *c, GError **err),
		    void (*done)(LvCall *c))
{
	GError *e = NULL;
	LvCall *c = lv_call_new(lv, work, done, &e);

	if (!c) {
		op_fail(op, e);
		return NULL;
	}
	lv->op = op;
	c->op = op;
	op_on_cancel(op, cancel_op, lv);
	return c;
}

/* What the call says is so at once; its event comes as well. */
static void take_state(LvCall *c)
{
	if (lv_call_alive(c) && !c->error && c->state.state != VM_STATE_MAX)
		lv_show(c->lv, c->state);
}

static void simple_done(LvCall *c)
{
	take_state(c);
	if (c->op)
		lv_op_end(c->lv, g_steal_pointer(&c->error));
}

/* ---- the simple ones ---- */

static bool said(int r, GError **err)
{
	if (r >= 0)
		return true;
	lv_error(err, "libvirt refuses");
	return false;
}

static bool work_pause(LvCall *c, GError **err)
{
	return said(virDomainSuspend(c->dom), err);
}

static bool work_resume(LvCall *c, GError **err)
{
	return said(virDomainResume(c->dom), err);
}

static bool work_reset(LvCall *c, GError **err)
{
	return said(virDomainReset(c->dom, 0), err);
}

void lv_pause(BackendVm *bv, Op *op)
{
	LvCall *c = lv_op_begin(lv_of(bv), op, work_pause, simple_done);

	if (c)
		lv_call_send(c);
}

void lv_resume(BackendVm *bv, Op *op)
{
	LvCall *c = lv_op_begin(lv_of(bv), op, work_resume, simple_done);

	if (c)
		lv_call_send(c);
}

void lv_reset(BackendVm *bv, Op *op)
{
	LvCall *c = lv_op_begin(lv_of(bv), op, work_reset, simple_done);

	if (c)
		lv_call_send(c);
}

static bool work_reboot(LvCall *c, GError **err)
{
	return said(virDomainReboot(c->dom, 0), err);
}

static void reboot_asked(LvCall *c)
{
	/* Good news are not the end of it: that is an event. */
	if (c->op && c->error)
		lv_op_end(c->lv, g_steal_pointer(&c->error));
}

void lv_reboot(BackendVm *bv, Op *op)
{
	LvCall *c = lv_op_begin(lv_of(bv), op, work_reboot, reboot_asked);

	if (!c)
		return;
	lv_call_send(c);
	op_accept(op);
}

/* ---- stop and kill ---- */

static bool work_destroy(LvCall *c, GError **err)
{
	int r;

	/* Asleep, it is its memory that it loses. */
	if (virDomainHasManagedSaveImage(c->dom, 0) > 0)
		return said(virDomainManagedSaveRemove(c->dom, 0), err);
	r = virDomainDestroy(c->dom);

	/* It has ended by itself. */
	return (r < 0 && virGetLastErrorCode() == VIR_ERR_OPERATION_INVALID) || said(r, err);
}

static void destroyed(LvCall *c)
{
	if (!c->op)
		return;
	if (c->error) {
		lv_op_end(c->lv, g_steal_pointer(&c->error));
		return;
	}
	/* A transient one is no more: then there is no state. */
	lv_show(c->lv,
		c->state.state == VM_STATE_MAX ? (LvState){ VM_STOPPED, "killed" } : c->state);
	if (c->lv->op)
		lv_op_end(c->lv, NULL);
}

static void destroy(LvVm *lv, const char *reason)
{
	GError *e = NULL;
	LvCall *c = lv_call_new(lv, work_destroy, destroyed, &e);

	if (!c) {
		lv_op_end(lv, e);
		return;
	}
	lv->ending = reason;
	c->op = lv->op;
	lv_call_send(c);
}

void lv_kill(BackendVm *bv, Op *op)
{
	LvVm *lv = lv_of(bv);

	lv->op = op;
	op_on_cancel(op, cancel_op, lv);
	destroy(lv, "killed");
}

static bool work_shutdown(LvCall *c, GError **err)
{
	/* A guest whose vCPUs stand still could not hear us. */
	if (c->resume)
		(void)virDomainResume(c->dom);
	return said(virDomainShutdown(c->dom), err);
}

static void asked(LvCall *c)
{
	/* Whatever it says, it is forced in time. */
	(void)c;
}

static void force(void *arg)
{
	LvVm *lv = arg;

	lv->op_timer = NULL;
	destroy(lv, "forced");
}

static void ask_to_stop(LvVm *lv)
{
	LvCall *c = lv_call_new(lv, work_shutdown, asked, NULL);

	if (!c)
		return;
	c->resume = lv->base.vm->pushed == VM_PAUSED;
	lv_call_send(c);
}

void lv_stop(BackendVm *bv, Op *op)
{
	LvVm *lv = lv_of(bv);
	GError *e = NULL;

	if (!lv_host_need(lv->host, &e)) {
		op_fail(op, e);
		return;
	}
	lv->op = op;
	op_on_cancel(op, cancel_op, lv);
	op_accept(op);
	if (!op_seconds_ms(op)) {
		destroy(lv, "forced");
		return;
	}
	lv->op_timer = timer_start(op_seconds_ms(op), force, lv);
	ask_to_stop(lv);
}

void lv_op_agent_up(LvVm *lv)
{
	/* A guest that was asked while it booted did not hear that. */
	if (lv->op && op_kind(lv->op) == OP_STOP && lv->op_timer)
		ask_to_stop(lv);
}

/* ---- start ---- */

static bool define(LvCall *c, const char *xml, GError **err)
{
	virDomainPtr dom = virDomainDefineXML(c->virt, xml);

	if (!dom) {
		lv_error(err, "libvirt refuses to define it");
		return false;
	}
	if (c->dom)
		virDomainFree(c->dom);
	c->dom = dom;
	return true;
}

/* Its own definition is as c->spec says. */
static bool write_xml(LvCall *c, GError **err)
{
	const LvOwn own = { c->dir, c->caps.dac }, *mine = c->dir ? &own : NULL;
	g_autofree char *xml = NULL, *text = NULL;
	char *now = c->dom ? virDomainGetXMLDesc(c->dom,
						 VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE)
			   : NULL;
	bool ok = true;

	c->made = !now;
	if (!now) {
		const LvNew made = { c->name, c->key, c->id, c->caps.kvm };

		xml = lv_xml_new(&made, c->spec, mine, err);
	} else {
		g_autoptr(Spec) have = NULL;

		text = lv_xml_spec(now, err);
		have = text ? spec_restore(text, strlen(text), err) : NULL;
		xml = have ? lv_xml_edit(now, have, c->spec, c->id, mine, err) : NULL;
	}
	ok = xml != NULL;
	if (ok)
		xml = lv_nvram_own(c, now, xml);
	if (ok && (!now || strcmp(now, xml)))
		ok = define(c, xml, err);
	free(now);
	return ok;
}

/* Whether its host starts it when that boots, libvirt keeps beside the XML. */
static bool set_autostart(LvCall *c, GError **err)
{
	const bool want = c->spec->autostart;
	int now = 0;

	/* Not all hypervisors know it. */
	if (virDomainGetAutostart(c->dom, &now) < 0 && !want)
		return true;
	return !now == !want || said(virDomainSetAutostart(c->dom, want), err);
}

bool lv_work_define(LvCall *c, GError **err)
{
	const bool asks = !c->dom || (c->dir && lv_has_own(c->spec));

	return (!asks || lv_learn_caps(c, err)) && write_xml(c, err) && set_autostart(c, err);
}

/* What a daemon that has died since had begun, libvirt has done. */
static bool is_started(const LvCall *c)
{
	return c->again && virGetLastErrorCode() == VIR_ERR_OPERATION_INVALID &&
	       virDomainIsActive(c->dom) > 0;
}

/* libvirt keeps a guest's UEFI variables by the domain's name: of an earlier one there may be some
 * left. */
#if LIBVIR_VERSION_NUMBER >= 8001000
#define NEW_NVRAM VIR_DOMAIN_START_RESET_NVRAM
#else
#define NEW_NVRAM 0
#endif

/* As it stands still, so that the console misses nothing. */
static bool boot(LvCall *c, GError **err)
{
	const unsigned flags = c->made && c->spec->firmware == FIRMWARE_UEFI ? NEW_NVRAM : 0;
	LvState now;

	if (!c->console && !c->ports)
		return virDomainCreateWithFlags(c->dom, flags) >= 0 || is_started(c) ||
		       said(-1, err);
	if (virDomainCreateWithFlags(c->dom, flags | VIR_DOMAIN_START_PAUSED) < 0 && !is_started(c))
		return said(-1, err);
	if (c->console)
		c->stream = lv_console_connect(c->virt, c->dom, NULL);
	if (c->ports && !lv_ports_work(c, err)) {
		(void)virDomainDestroy(c->dom);
		return false;
	}
	if (said(virDomainResume(c->dom), err))
		return true;
	/* Somebody else has let it go. */
	if (lv_state_now(c->dom, &now) && now.state == VM_RUNNING) {
		g_clear_error(err);
		return true;
	}
	if (!c->again)
		(void)virDomainDestroy(c->dom);
	return false;
}

static bool work_start(LvCall *c, GError **err)
{
	if (c->spec && (!lv_work_define(c, err) || !lv_own_reach(c, err)))
		return false;
	if (!boot(c, err))
		return false;
	c->resume = true; /* it runs: to be ended if nobody wants it any more */
	return true;
}

static void undone(LvCall *c)
{
	if (c->op)
		op_next(c->op);
}

static void start_done(LvCall *c)
{
	LvVm *lv = c->lv;
	LvCall *undo;

	if (lv && lv->start == c)
		lv->start = NULL;
	if (lv && c->stream)
		lv_console_begin(lv, c->stream);
	else if (c->stream)
		lv_console_drop(c->stream);
	if (!lv || !c->op)
		return;
	if (!lv->undoing) {
		take_state(c);
		lv_ports_report(c);
		if (c->error)
			op_fail(c->op, g_steal_pointer(&c->error));
		else
			op_next(c->op);
		return;
	}
	lv->undoing = false;
	undo = c->resume ? lv_call_new(lv, work_destroy, undone, NULL) : NULL;
	if (!undo) {
		op_next(c->op);
		return;
	}
	undo->op = c->op;
	lv_call_send(undo);
}

static void run_start(Op *op, void *ctx)
{
	LvVm *lv = ctx;
	Vm *vm = lv->base.vm;
	GError *e = NULL;
	LvCall *c = lv_call_new(lv, work_start, start_done, &e);

	if (!c) {
		op_fail(op, e);
		return;
	}
	c->op = op;
	c->console = !vm->home.foreign;
	c->ports = usernet_has_ports(op_kind(op) == OP_START ? vm->spec : lv->base.spec);
	c->again = op_is_restored(op);
	if (!vm->home.foreign && op_kind(op) == OP_START) {
		c->absent = true;
		c->id = vm->id;
		c->name = g_strdup(vm->name);
		c->spec = spec_ref(vm->spec);
		lv_own_call(c);
	}
	lv->start = c;
	lv_call_send(c);
}

/* It cannot be stopped half-way: what it has started is ended when it is there. */
static void cancel_start(Op *op, void *ctx)
{
	LvVm *lv = ctx;

	(void)op;
	lv->undoing = lv->start != NULL;
}

void lv_undo(Op *op, void *ctx)
{
	LvVm *lv = ctx;

	if (!lv->undoing)
		op_next(op);
}

static void prepared(void *arg, const GError *err)
{
	Op *op = arg;

	op_answered(op, err);
}

void lv_prepare_run(Op *op, void *ctx)
{
	LvVm *lv = ctx;

	if (!lv_own_prepare(lv, lv->base.vm->spec, NULL, prepared, op))
		op_next(op);
}

void lv_prepare_cancel(Op *op, void *ctx)
{
	LvVm *lv = ctx;

	(void)op;
	lv_own_cancel(lv);
}

static const Step start_steps[] = {
	{ "preparing", lv_prepare_run, lv_prepare_cancel, NULL },
	{ "starting", run_start, cancel_start, lv_undo },
	{ 0 },
};

static const Step wake_steps[] = {
	{ "starting", run_start, cancel_start, lv_undo },
	{ 0 },
};

void lv_start(BackendVm *bv, Op *op)
{
	LvVm *lv = lv_of(bv);
	GError *e = NULL;

	if (!host_find(vm_host(bv->vm))) {
		op_fail(op, err_new(EHOSTDOWN, "there is no host '%s'; see .vmfs/hosts",
				    vm_host(bv->vm)));
		return;
	}
	if (!lv_is_allowed(bv->vm, bv->vm->spec, &e)) {
		op_fail(op, e);
		return;
	}
	lv_settle(lv);
	op_steps(op, start_steps, lv, NULL);
}

/* libvirt goes on from the memory that it has kept. */
void lv_wake(BackendVm *bv, Op *op)
{
	op_steps(op, wake_steps, lv_of(bv), NULL);
}

static bool work_sleep(LvCall *c, GError **err)
{
	if (said(virDomainManagedSave(c->dom, 0), err))
		return true;
	/* libvirt was still at it for a daemon that has died since, and says one thing or another.
	 */
	if (!c->again || virDomainIsActive(c->dom) != 0 ||
	    virDomainHasManagedSaveImage(c->dom, 0) <= 0)
		return false;
	g_clear_error(err);
	return true;
}

void lv_sleep(BackendVm *bv, Op *op)
{
	LvCall *c = lv_op_begin(lv_of(bv), op, work_sleep, simple_done);

	if (!c)
		return;
	c->again = op_is_restored(op);
	lv_call_send(c);
	op_accept(op);
}

/* ---- undefine ---- */

static bool work_undefine(LvCall *c, GError **err)
{
	const unsigned all = VIR_DOMAIN_UNDEFINE_MANAGED_SAVE |
			     VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
			     VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;

	if (!c->dom || virDomainUndefineFlags(c->dom, all | VIR_DOMAIN_UNDEFINE_NVRAM) >= 0)
		return true;
	/* Not all hypervisors know these. */
	return said(virDomainUndefine(c->dom), err);
}

static bool work_rename(LvCall *c, GError **err)
{
	return !c->dom || (lv_nvram_keep(c, err) && said(virDomainRename(c->dom, c->name, 0), err));
}

static void order_done(LvCall *c)
{
	LvHost *lh;

	if (c->lv && c->spec)
		c->lv->redefined = true;
	c->fn(c->arg, c->error);
	/* The VM may be no more. libvirt tells nobody of some of what was defined, and what is
	 * being looked at may be of before. */
	lh = lv_host_at(c->tag);
	if (lh && c->spec && !c->error)
		lv_look(lh, c->key);
}

static void order(BackendVm *bv, bool (*work)(LvCall *c, GError **err), const char *name,
		  const Spec *spec, BackendDone fn, void *arg)
{
	g_autoptr(GError) e = NULL;
	LvCall *c = spec && !lv_is_allowed(bv->vm, spec, &e)
			    ? NULL
			    : lv_call_new(lv_of(bv), work, order_done, &e);

	if (!c) {
		fn(arg, e);
		return;
	}
	c->fn = fn;
	c->arg = arg;
	c->name = g_strdup(name);
	c->id = bv->vm->id;
	c->spec = spec ? spec_ref((Spec *)spec) : NULL;
	c->absent = !bv->vm->home.foreign;
	lv_own_call(c);
	lv_call_send(c);
}

void lv_undefine(BackendVm *bv, BackendDone fn, void *arg)
{
	order(bv, work_undefine, NULL, NULL, fn, arg);
}

void lv_rename(BackendVm *bv, const char *name, BackendDone fn, void *arg)
{
	order(bv, work_rename, name, NULL, fn, arg);
}

static bool work_redefine(LvCall *c, GError **err)
{
	return !c->dom || lv_work_define(c, err);
}

void lv_define(BackendVm *bv, Spec *spec, BackendDone fn, void *arg)
{
	order(bv, work_redefine, NULL, spec, fn, arg);
}

static bool work_xml(LvCall *c, GError **err)
{
	return lv_xml_is_of(c->xml, c->key, virDomainGetName(c->dom), err) &&
	       define(c, c->xml, err);
}

void lv_redefine(BackendVm *bv, Op *op)
{
	GError *e = NULL;
	LvCall *c;

	if (!lv_has_rights(bv->vm, "domain.xml", &e)) {
		op_fail(op, e);
		return;
	}
	c = lv_op_begin(lv_of(bv), op, work_xml, simple_done);
	if (!c)
		return;
	c->xml = g_strdup(op_arg(op));
	lv_call_send(c);
}

void lv_undefine_op(BackendVm *bv, Op *op)
{
	LvCall *c = lv_op_begin(lv_of(bv), op, work_undefine, simple_done);

	if (c)
		lv_call_send(c);
}
