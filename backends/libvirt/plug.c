/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks, interfaces and the like of what runs, one at a time. What is defined for the next start is
 * changed with spec.yaml; here it is the running domain alone. A device that goes is gone when the
 * guest has let go of it.
 */
#include <errno.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "vmfs/err.h"

char *lv_live_xml(const LvCall *c, GError **err)
{
	char *xml = virDomainGetXMLDesc(c->dom, 0), *copy = g_strdup(xml);

	if (!xml)
		lv_error(err, "libvirt does not show what runs");
	free(xml);
	return copy;
}

/* Of which image a private disk is. */
static bool write_own(const LvCall *c, const LvOwn *own, GError **err)
{
	g_autofree char *text = lv_xml_own(c->spec, own);

	if (!text || virDomainSetMetadata(c->dom, VIR_DOMAIN_METADATA_ELEMENT, text, XML_OWN_PREFIX,
					  XML_OWN_URI, VIR_DOMAIN_AFFECT_LIVE) >= 0)
		return true;
	lv_error(err, "libvirt cannot keep what its disk is");
	return false;
}

static bool work_plug(LvCall *c, GError **err)
{
	const SpecDisk *disk =
		g_str_has_prefix(c->name, "disks.") ? spec_named(c->spec, c->name) : NULL;
	const bool is_own = c->dir && disk && lv_is_own(disk);
	g_autofree char *xml = lv_live_xml(c, err), *device = NULL;
	LvOwn own = { c->dir };

	if (!xml || (is_own && !lv_learn_caps(c, err)))
		return false;
	own.dac = c->caps.dac;
	device = lv_xml_device(xml, c->spec, c->name, c->id, c->dir ? &own : NULL, err);
	if (!device || (is_own && (!lv_own_reach(c, err) || !write_own(c, &own, err))))
		return false;
	if (virDomainAttachDeviceFlags(c->dom, device, VIR_DOMAIN_AFFECT_LIVE) < 0) {
		lv_error(err, "libvirt cannot plug it in");
		return false;
	}
	/* If not, it stays, and they are pending: the guest would be asked to let go of it first.
	 */
	return lv_ports_change(c, c->name, err);
}

static bool work_unplug(LvCall *c, GError **err)
{
	g_autofree char *xml = lv_live_xml(c, err), *device = NULL, *after = NULL;

	if (!xml)
		return false;
	if (!lv_xml_has_device(xml, c->name))
		return true;
	device = lv_xml_device(xml, NULL, c->name, 0, NULL, err);
	if (!device)
		return false;
	/* It waits for the guest, for five seconds; and is content then, whatever it did. */
	if (virDomainDetachDeviceFlags(c->dom, device, VIR_DOMAIN_AFFECT_LIVE) < 0) {
		lv_error(err, "libvirt cannot take it away");
		return false;
	}
	after = lv_live_xml(c, err);
	if (!after)
		return false;
	if (lv_xml_has_device(after, c->name))
		return err_set(err, ETIMEDOUT, "%s: the guest does not let go of it", c->name);
	return lv_ports_change(c, c->name, err);
}

static bool work_ports(LvCall *c, GError **err)
{
	return lv_ports_change(c, c->name, err);
}

static void applied(LvCall *c)
{
	lv_ports_report(c);
	if (lv_call_alive(c) && !c->error && g_str_has_prefix(c->name, "shares."))
		lv_shares_report(c->lv, c->have, c->spec);
	if (c->op)
		lv_op_end(c->lv, g_steal_pointer(&c->error));
}

static bool is_of_ports(const char *key)
{
	return g_str_has_prefix(key, "nics.") && g_str_has_suffix(key, ".ports");
}

static void apply(LvVm *lv, Op *op)
{
	const SpecChange *change = op_arg(op);
	const bool wanted = spec_named(change->want, change->key) != NULL;
	LvCall *c = lv_op_begin(lv, op,
				is_of_ports(change->key) ? work_ports
				: wanted		 ? work_plug
							 : work_unplug,
				applied);

	if (!c)
		return;
	c->name = g_strdup(change->key);
	c->spec = spec_ref(change->want);
	c->have = spec_ref(lv->base.spec);
	c->id = lv->base.vm->id;
	lv_own_call(c);
	lv_call_send(c);
}

static void prepared(void *arg, const GError *err)
{
	Op *op = arg;

	if (err)
		op_fail(op, g_error_copy(err));
	else
		apply(lv_of(op_vm(op)->bv), op);
}

static void cancel_prepare(Op *op, void *ctx)
{
	LvVm *lv = ctx;

	(void)op;
	lv_own_cancel(lv);
}

void lv_apply(BackendVm *bv, Op *op)
{
	const SpecChange *change = op_arg(op);
	LvVm *lv = lv_of(bv);
	GError *e = NULL;

	if (!lv_is_allowed(bv->vm, change->want, &e)) {
		op_fail(op, e);
		return;
	}
	if (lv_own_prepare(lv, change->want, change->key, prepared, op))
		op_on_cancel(op, cancel_prepare, lv);
	else
		apply(lv, op);
}

/* libvirt plugs no others; and the guest's memory has to be shared from the start on. */
static bool can_plug_share(const Spec *running, const Spec *of, const char *key)
{
	return lv_xml_share_type(spec_named(of, key)) == SHARE_VIRTIOFS && running->shared_memory;
}

bool lv_can_apply(const BackendVm *bv, const Spec *want, const char *key)
{
	const bool there = spec_named(bv->spec, key) != NULL,
		   wanted = spec_named(want, key) != NULL;

	if (is_of_ports(key))
		return lv_ports_nic(bv->spec, key) && lv_ports_nic(want, key);
	if (there == wanted)
		return false;
	if (g_str_has_prefix(key, "shares."))
		return can_plug_share(bv->spec, wanted ? want : bv->spec, key);
	return g_str_has_prefix(key, "disks.") || g_str_has_prefix(key, "nics.") ||
	       g_str_has_prefix(key, "devices.");
}
