/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The networks of a host. They are few, so all are looked at whenever one has changed. What is done
 * to them is done one after the other, each with a look at its end: so no look is older than one
 * that was shown before it.
 */
#include "backends/libvirt/lv.h"

#include <errno.h>
#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>

#include "backends/libvirt/netxml.h"
#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/networks.h"

typedef struct NetJob NetJob;
struct NetJob {
	/* For the loop. */
	void *tag;
	BackendDone fn;	    /* of an order; NULL: nobody waits for it any more */
	BackendText leases; /* of a question; or NULL */
	void *arg;

	/* For the thread, and then for the loop. */
	virConnectPtr virt;		       /* a reference */
	bool (*work)(NetJob *j, GError **err); /* NULL: it is only a look */
	char *key;			       /* NULL: of a new one */
	NetworkOrder order;
	NetSpec *spec;	  /* or NULL */
	GString *text;	  /* of leases */
	GPtrArray *found; /* of NetworkInfo; NULL: not looked */
	GError *error;
};

/* ---- in the pool ---- */

static bool said(int r, GError **err)
{
	if (r >= 0)
		return true;
	lv_error(err, "libvirt refuses");
	return false;
}

/* As it is defined; of one that is not, or by a driver that knows no difference, as it is. Freed
 * with free(). */
static char *xml_of(virNetworkPtr net)
{
	char *xml = virNetworkGetXMLDesc(net, VIR_NETWORK_XML_INACTIVE);

	return xml ? xml : virNetworkGetXMLDesc(net, 0);
}

static NetworkInfo *info_of(virNetworkPtr net)
{
	NetworkInfo *info;
	char key[VIR_UUID_STRING_BUFLEN];
	char *xml = xml_of(net);
	NetSpec *spec = xml ? lv_netxml_spec(xml) : NULL;
	int autostart = 0;

	free(xml);
	if (!spec || virNetworkGetUUIDString(net, key)) {
		netspec_free(spec);
		return NULL;
	}
	(void)virNetworkGetAutostart(net, &autostart);
	spec->autostart = autostart;
	info = g_new0(NetworkInfo, 1);
	info->key = g_strdup(key);
	info->spec = spec;
	info->active = virNetworkIsActive(net) > 0;
	return info;
}

GPtrArray *lv_net_list(virConnectPtr virt)
{
	virNetworkPtr *nets = NULL;
	int n = virConnectListAllNetworks(virt, &nets, 0);
	GPtrArray *found;

	if (n < 0)
		return NULL;
	found = g_ptr_array_new_with_free_func(network_info_free);
	for (int i = 0; i < n; i++) {
		NetworkInfo *info = info_of(nets[i]);

		if (info)
			g_ptr_array_add(found, info);
		virNetworkFree(nets[i]);
	}
	free(nets);
	return found;
}

static bool define(NetJob *j, virNetworkPtr have, GError **err)
{
	char *now = have ? xml_of(have) : NULL;
	g_autofree char *xml =
		now ? lv_netxml_edit(now, j->spec, err) : lv_netxml_new(j->spec, err);
	virNetworkPtr net;
	int autostart = 0;
	bool ok;

	free(now);
	if (!xml)
		return false;
	net = virNetworkDefineXML(j->virt, xml);
	if (!net)
		return said(-1, err);
	(void)virNetworkGetAutostart(net, &autostart);
	ok = !autostart == !j->spec->autostart ||
	     said(virNetworkSetAutostart(net, j->spec->autostart), err);
	virNetworkFree(net);
	return ok;
}

static bool obey(NetJob *j, GError **err)
{
	virNetworkPtr net = j->key ? virNetworkLookupByUUIDString(j->virt, j->key) : NULL;
	bool ok = false;

	if (j->key && !net)
		return said(-1, err);
	switch (j->order) {
	case NETWORK_DEFINE:
		ok = define(j, net, err);
		break;
	case NETWORK_START:
		ok = said(virNetworkCreate(net), err);
		break;
	case NETWORK_STOP:
		ok = said(virNetworkDestroy(net), err);
		break;
	case NETWORK_UNDEFINE:
		ok = said(virNetworkUndefine(net), err);
		break;
	}
	if (net)
		virNetworkFree(net);
	return ok;
}

static void say_lease(GString *out, const virNetworkDHCPLease *l)
{
	g_autoptr(GDateTime) end = g_date_time_new_from_unix_utc(l->expirytime);
	g_autofree char *until = end ? g_date_time_format_iso8601(end) : NULL;

	g_string_append_printf(out, "%s %s %s %s\n", l->ipaddr ? l->ipaddr : "-",
			       l->mac ? l->mac : "-",
			       l->hostname && *l->hostname ? l->hostname : "-",
			       l->expirytime && until ? until : "-");
}

static bool ask_leases(NetJob *j, GError **err)
{
	virNetworkPtr net = virNetworkLookupByUUIDString(j->virt, j->key);
	virNetworkDHCPLeasePtr *leases = NULL;
	int n = net ? virNetworkGetDHCPLeases(net, NULL, &leases, 0) : -1;

	j->text = g_string_new(NULL);
	if (n < 0)
		(void)said(-1, err);
	for (int i = 0; i < n; i++) {
		say_lease(j->text, leases[i]);
		virNetworkDHCPLeaseFree(leases[i]);
	}
	free(leases);
	if (net)
		virNetworkFree(net);
	return n >= 0;
}

static void run(void *arg)
{
	NetJob *j = arg;

	if (j->work)
		(void)j->work(j, &j->error);
	if (!j->leases)
		j->found = lv_net_list(j->virt);
	/* Here: if it was the last reference this talks to the host. */
	(void)virConnectClose(j->virt);
}

/* ---- on the loop ---- */

static void next(LvHost *lh);

static void answer(NetJob *j, const GError *e)
{
	const BackendDone fn = j->fn;
	const BackendText leases = j->leases;
	g_autoptr(GBytes) text = !e && j->text ? g_bytes_new(j->text->str, j->text->len) : NULL;

	j->fn = NULL;
	j->leases = NULL;
	if (fn)
		fn(j->arg, e);
	if (leases)
		leases(j->arg, text, e);
}

static void job_free(NetJob *j)
{
	g_free(j->key);
	netspec_free(j->spec);
	if (j->text)
		g_string_free(j->text, TRUE);
	if (j->found)
		g_ptr_array_unref(j->found);
	g_clear_error(&j->error);
	g_free(j);
}

static void finished(void *arg)
{
	NetJob *j = arg;
	LvHost *lh = lv_host_at(j->tag);

	lv_host_worked(j->tag);
	/* Of another connection: those who waited have been told. */
	if (lh) {
		g_queue_remove(&lh->net_jobs, j);
		if (j->found)
			networks_update(lh->host, j->found);
		answer(j, j->error);
		next(lh);
	}
	job_free(j);
}

static void next(LvHost *lh)
{
	NetJob *j = g_queue_peek_head(&lh->net_jobs);

	/* One that answer() has given is under way already. */
	if (!j || j->virt)
		return;
	j->virt = lh->virt;
	(void)virConnectRef(j->virt);
	lv_host_work(lh, run, finished, j);
}

static NetJob *job_new(LvHost *lh, bool (*work)(NetJob *j, GError **err), const char *key)
{
	NetJob *j = g_new0(NetJob, 1);

	j->tag = lv_host_tag(lh);
	j->work = work;
	j->key = g_strdup(key);
	return j;
}

static void give(LvHost *lh, NetJob *j)
{
	g_queue_push_tail(&lh->net_jobs, j);
	next(lh);
}

void lv_net_look(LvHost *lh)
{
	const NetJob *last = g_queue_peek_tail(&lh->net_jobs);

	/* Each looks at its end: one that has not begun will see it. */
	if (!last || last->virt || last->leases)
		give(lh, job_new(lh, NULL, NULL));
}

void lv_net_away(LvHost *lh)
{
	g_autoptr(GError) e = err_new(EHOSTDOWN, "host %s went away meanwhile", lh->host->name);
	NetJob *j;

	while ((j = g_queue_pop_head(&lh->net_jobs))) {
		const bool is_out = j->virt;

		answer(j, e);
		/* What is under way comes back, and is freed then. */
		if (!is_out)
			job_free(j);
	}
}

void lv_network_order(Host *host, NetworkOrder order, const char *key, NetSpec *spec_take,
		      BackendDone fn, void *arg)
{
	LvHost *lh = host->link;
	g_autoptr(GError) e = NULL;
	NetJob *j;

	if (!lv_host_need(lh, &e)) {
		netspec_free(spec_take);
		fn(arg, e);
		return;
	}
	j = job_new(lh, obey, key);
	j->order = order;
	j->spec = spec_take;
	j->fn = fn;
	j->arg = arg;
	give(lh, j);
}

void lv_network_leases(Host *host, const char *key, BackendText fn, void *arg)
{
	LvHost *lh = host->link;
	g_autoptr(GError) e = NULL;
	NetJob *j;

	if (!lv_host_need(lh, &e)) {
		fn(arg, NULL, e);
		return;
	}
	j = job_new(lh, ask_leases, key);
	j->leases = fn;
	j->arg = arg;
	give(lh, j);
}

/* ---- what the host says by itself ---- */

static void heard(void *tag)
{
	LvHost *lh = lv_host_at(tag);

	if (lh && lh->virt)
		lv_net_look(lh);
}

/* In libvirt's thread. */
static void on_lifecycle(virConnectPtr virt, virNetworkPtr net, int event, int detail, void *tag)
{
	(void)virt;
	(void)net;
	(void)event;
	(void)detail;
	loop_post(heard, tag);
}

void lv_net_events(virConnectPtr virt, void *tag)
{
	if (virConnectNetworkEventRegisterAny(virt, NULL, VIR_NETWORK_EVENT_ID_LIFECYCLE,
					      VIR_NETWORK_EVENT_CALLBACK(on_lifecycle), tag,
					      NULL) < 0)
		log_info("libvirt: its networks are not watched: %s", virGetLastErrorMessage());
}
