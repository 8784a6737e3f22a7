/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's addresses: what the network's DHCP server gave it, else what its agent says, else
 * whom the host has met. libvirt finds the interfaces by their MAC addresses. There is no event for
 * this, so a series of questions with growing pauses begins when there is a reason to, and ends by
 * itself.
 */
#include <string.h>

#include "backends/guestnet.h"
#include "backends/libvirt/agent.h"
#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "vmfs/netaddr.h"

#define FIRST_PAUSE_MS 100
#define MAX_TRIES      9 /* the pauses double: some 30 s in all */

static void add_all(GPtrArray *out, const virDomainInterface *nic)
{
	for (unsigned i = 0; i < nic->naddrs; i++)
		netaddr_add(out, nic->addrs[i].addr);
}

static bool is_ours(const void *arg, const char *mac)
{
	const GPtrArray *macs = arg;

	for (unsigned i = 0; mac && i < macs->len; i++)
		if (!g_ascii_strcasecmp(macs->pdata[i], mac))
			return true;
	return false;
}

static GPtrArray *of_host(virDomainPtr dom, unsigned source, const GPtrArray *macs)
{
	GPtrArray *ips = g_ptr_array_new_with_free_func(g_free);
	virDomainInterfacePtr *nics = NULL;
	int n = virDomainInterfaceAddresses(dom, &nics, source, 0);

	for (int i = 0; i < n; i++) {
		if (is_ours(macs, nics[i]->hwaddr))
			add_all(ips, nics[i]);
		virDomainInterfaceFree(nics[i]);
	}
	free(nics);
	return ips;
}

/* libvirt itself would wait for the agent for ever. It tells of those too that only the guest has.
 */
static GPtrArray *of_agent(virDomainPtr dom, const GPtrArray *macs)
{
	json_t *said = lv_agent_ask(dom, GUESTNET_COMMAND, NULL, NULL);
	GPtrArray *ips = guestnet_ips(said, is_ours, macs);

	json_decref(said);
	return ips;
}

static bool work_ip(LvCall *c, GError **err)
{
	char *xml = virDomainGetXMLDesc(c->dom, 0);
	g_autoptr(GPtrArray) macs = lv_xml_macs(xml ? xml : "");

	(void)err;
	free(xml);
	c->list = of_host(c->dom, VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE, macs);
	if (!c->list->len && c->guest) {
		g_ptr_array_unref(c->list);
		c->list = of_agent(c->dom, macs);
	}
	if (!c->list->len) {
		g_ptr_array_unref(c->list);
		c->list = of_host(c->dom, VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP, macs);
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
	c->guest = lv->base.vm->agent;
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
