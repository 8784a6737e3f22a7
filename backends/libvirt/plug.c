/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks and interfaces of what runs, one at a time. What is defined for the next start is changed
 * with spec.yaml; here it is the running domain alone. A device that goes is gone when the guest
 * has let go of it.
 */
#include <errno.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "vmfs/err.h"

static char *live_xml(const LvCall *c, GError **err)
{
	char *xml = virDomainGetXMLDesc(c->dom, 0), *copy = g_strdup(xml);

	if (!xml)
		lv_error(err, "libvirt does not show what runs");
	free(xml);
	return copy;
}

static bool work_plug(LvCall *c, GError **err)
{
	g_autofree char *xml = live_xml(c, err), *device = NULL;

	if (!xml)
		return false;
	device = lv_xml_device(xml, c->spec, c->name, c->id, err);
	if (!device)
		return false;
	if (virDomainAttachDeviceFlags(c->dom, device, VIR_DOMAIN_AFFECT_LIVE) >= 0)
		return true;
	lv_error(err, "libvirt cannot plug it in");
	return false;
}

static bool work_unplug(LvCall *c, GError **err)
{
	g_autofree char *xml = live_xml(c, err), *device = NULL, *after = NULL;

	if (!xml)
		return false;
	if (!lv_xml_has_device(xml, c->name))
		return true;
	device = lv_xml_device(xml, NULL, c->name, 0, err);
	if (!device)
		return false;
	/* It waits for the guest, for five seconds; and is content then, whatever it did. */
	if (virDomainDetachDeviceFlags(c->dom, device, VIR_DOMAIN_AFFECT_LIVE) < 0) {
		lv_error(err, "libvirt cannot take it away");
		return false;
	}
	after = live_xml(c, err);
	if (!after)
		return false;
	return !lv_xml_has_device(after, c->name) ||
	       err_set(err, ETIMEDOUT, "%s: the guest does not let go of it", c->name);
}

static void applied(LvCall *c)
{
	if (c->op)
		lv_op_end(c->lv, g_steal_pointer(&c->error));
}

void lv_apply(BackendVm *bv, Op *op)
{
	const SpecChange *change = op_arg(op);
	const bool wanted = spec_named(change->want, change->key) != NULL;
	LvCall *c = lv_op_begin(lv_of(bv), op, wanted ? work_plug : work_unplug, applied);

	if (!c)
		return;
	c->name = g_strdup(change->key);
	c->spec = spec_ref(change->want);
	c->id = bv->vm->id;
	lv_call_send(c);
}

bool lv_can_apply(const BackendVm *bv, const Spec *want, const char *key)
{
	const bool there = spec_named(bv->spec, key) != NULL,
		   wanted = spec_named(want, key) != NULL;

	return there != wanted &&
	       (g_str_has_prefix(key, "disks.") || g_str_has_prefix(key, "nics."));
}
