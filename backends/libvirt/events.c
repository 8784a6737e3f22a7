/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a host says by itself. The callbacks run in libvirt's thread: they copy, post, and nothing
 * else. What they post finds its host by number, and is dropped when that has another connection
 * by now.
 */
#include <string.h>

#include "backends/libvirt/lv.h"

typedef struct Heard {
	void *tag;
	char key[VIR_UUID_STRING_BUFLEN];
	char *name;
	LvState state; /* VM_STATE_MAX: not said */
	bool look;     /* more has changed than that */
	int agent;     /* 1: it is there, -1: it is not, 0: not said */
	bool rebooted;
} Heard;

static void heard(void *arg)
{
	Heard *h = arg;
	LvHost *lh = lv_host_at(h->tag);
	LvVm *lv = lh ? g_hash_table_lookup(lh->domains, h->key) : NULL;

	if (lh && h->state.state != VM_STATE_MAX)
		lv_heard(lh, h->key, h->name, h->state);
	if (lh && h->look)
		lv_look(lh, h->key);
	if (lv && h->agent)
		lv_agent(lv, h->agent > 0);
	if (lv && h->rebooted) {
		exec_lost(&lv->base, "reset");
		lv_ssh_reset(lv);
		lv_op_rebooted(lv);
	}
	g_free(h->name);
	g_free(h);
}

static Heard *heard_new(virDomainPtr dom, void *tag)
{
	Heard *h = g_new0(Heard, 1);

	h->tag = tag;
	h->state.state = VM_STATE_MAX;
	if (virDomainGetUUIDString(dom, h->key)) {
		g_free(h);
		return NULL;
	}
	return h;
}

static int on_lifecycle(virConnectPtr virt, virDomainPtr dom, int event, int detail, void *tag)
{
	Heard *h = heard_new(dom, tag);

	(void)virt;
	if (!h)
		return 0;
	h->name = g_strdup(virDomainGetName(dom));
	h->state = lv_state_of_event(event, detail);
	/* Beginning and ending a run may make or end the domain, and what is defined may change;
	 * one that goes on may have had a snapshot taken. */
	h->look = event != VIR_DOMAIN_EVENT_SUSPENDED;
	loop_post(heard, h);
	return 0;
}

static void on_agent(virConnectPtr virt, virDomainPtr dom, int state, int reason, void *tag)
{
	Heard *h = heard_new(dom, tag);

	(void)virt;
	(void)reason;
	if (!h)
		return;
	h->agent = state == VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED ? 1 : -1;
	loop_post(heard, h);
}

static void on_reboot(virConnectPtr virt, virDomainPtr dom, void *tag)
{
	Heard *h = heard_new(dom, tag);

	(void)virt;
	if (!h)
		return;
	h->rebooted = true;
	loop_post(heard, h);
}

static void look_later(virDomainPtr dom, void *tag)
{
	Heard *h = heard_new(dom, tag);

	if (!h)
		return;
	h->look = true;
	loop_post(heard, h);
}

static void on_device(virConnectPtr virt, virDomainPtr dom, const char *alias, void *tag)
{
	(void)virt;
	(void)alias;
	look_later(dom, tag);
}

static void on_metadata(virConnectPtr virt, virDomainPtr dom, int type, const char *uri, void *tag)
{
	(void)virt;
	(void)type;
	(void)uri;
	look_later(dom, tag);
}

static const struct {
	int id;
	virConnectDomainEventGenericCallback fn;
	bool must;
} callbacks[] = {
	{ VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(on_lifecycle), true },
	{ VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(on_agent), false },
	{ VIR_DOMAIN_EVENT_ID_REBOOT, VIR_DOMAIN_EVENT_CALLBACK(on_reboot), false },
	{ VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, VIR_DOMAIN_EVENT_CALLBACK(on_device), false },
	{ VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, VIR_DOMAIN_EVENT_CALLBACK(on_device), false },
	{ VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, VIR_DOMAIN_EVENT_CALLBACK(on_metadata), false },
};

bool lv_events_begin(virConnectPtr virt, void *tag, GError **err)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(callbacks); i++) {
		if (virConnectDomainEventRegisterAny(virt, NULL, callbacks[i].id, callbacks[i].fn,
						     tag, NULL) < 0 &&
		    callbacks[i].must) {
			lv_error(err, "this host cannot tell what happens on it");
			return false;
		}
	}
	return true;
}
