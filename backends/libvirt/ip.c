/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's addresses: what the network's DHCP server gave it, else what its agent says, else
 * whom the host has met. libvirt finds the interfaces by their MAC addresses. There is no event for
 * this, so a series of questions with growing pauses begins when there is a reason to, and ends by
 * itself.
 */
#include <string.h>

#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "vmfs/netaddr.h"

#define FIRST_PAUSE_MS 100
#define MAX_TRIES      9 /* the pauses double: some 30 s in all */

static const unsigned sources[] = { VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
				    VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
				    VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP };

static void add_all(GPtrArray *out, const virDomainInterface *nic)
{
	for (unsigned i = 0; i < nic->naddrs; i++)
		netaddr_add(out, nic->addrs[i].addr);
}

/* The agent tells of those too that only the guest has. */
static bool is_ours(const GPtrArray *macs, const char *mac)
{
	for (unsigned i = 0; mac && i < macs->len; i++)
		if (!g_ascii_strcasecmp(macs->pdata[i], mac))
			return true;
	return false;
}

static bool work_ip(LvCall *c, GError **err)
{
	char *xml = virDomainGetXMLDesc(c->dom, 0);
	g_autoptr(GPtrArray) macs = lv_xml_macs(xml ? xml : "");

	(void)err;
	free(xml);
	c->list = g_ptr_array_new_with_free_func(g_free);
	for (unsigned s = 0; s < G_N_ELEMENTS(sources) && !c->list->len; s++) {
		virDomainInterfacePtr *nics = NULL;
		int n = virDomainInterfaceAddresses(c->dom, &nics, sources[s], 0);

		for (int i = 0; i < n; i++) {
			if (is_ours(macs, nics[i]->hwaddr))
				add_all(c->list, nics[i]);
			virDomainInterfaceFree(nics[i]);
		}
		free(nics);
	}
	return true;
}

static void ask(void *arg);

static void answered(LvCall *c)
{
	LvVm *lv = c->lv;

	if (!lv)
		return;
	lv->ip_asked = false;
	if (lv->base.vm->pushed != VM_RUNNING)
		return;
	if (!c->error && c->list && c->list->len) {
		g_ptr_array_add(c->list, NULL);
		backend_ips(&lv->base, (const char *const *)c->list->pdata);
	} else if (lv->ip_try < MAX_TRIES) {
		lv->ip_timer = timer_start((uint64_t)FIRST_PAUSE_MS << lv->ip_try++, ask, lv);
	}
}

static void ask(void *arg)
{
	LvVm *lv = arg;
	LvCall *c;

	lv->ip_timer = NULL;
	if (lv->base.vm->pushed != VM_RUNNING)
		return;
	c = lv_call_new(lv, work_ip, answered, NULL);
	if (!c)
		return;
	lv->ip_asked = true;
	lv_call_send(c);
}

void lv_ip_start(LvVm *lv)
{
	lv->ip_try = 0;
	if (lv->ip_asked)
		return;
	timer_stop(&lv->ip_timer);
	ask(lv);
}

void lv_ip_stop(LvVm *lv)
{
	timer_stop(&lv->ip_timer);
}
