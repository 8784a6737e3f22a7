/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What there is at a host. The first list is one call for all; after that events tell, and where
 * they do not say all of it, the domain is looked at. An answer that an event has overtaken is
 * thrown away, and asked for again.
 */
#include <libvirt/virterror.h>
#include <string.h>

#include "backends/libvirt/lv.h"
#include "backends/libvirt/xml.h"
#include "vmfs/err.h"
#include "vmfs/log.h"

#define MAX_LOOKING 3  /* jobs at once: one thread is left for orders */
#define BATCH	    16 /* domains a job */
#define FIRST_MS    100

typedef enum LookState { LOOK_QUEUED, LOOK_RUNNING, LOOK_AGAIN } LookState;

typedef struct LvLook {
	LookState state;
} LvLook;

/* ---- in the pool ---- */

static void found_free(void *arg)
{
	LvFound *f = arg;

	g_free(f->name);
	g_free(f->xml);
	g_strfreev(f->snapshots);
	spec_unref(f->spec);
	spec_unref(f->run);
	g_free(f);
}

static LvFound *found_new(virDomainPtr dom)
{
	LvFound *f = g_new0(LvFound, 1);

	(void)virDomainGetUUIDString(dom, f->key);
	f->name = g_strdup(virDomainGetName(dom));
	f->known = true;
	return f;
}

/* Set of the keys of domains of which that is true. */
static GHashTable *list_of(virConnectPtr virt, unsigned flags)
{
	GHashTable *set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	virDomainPtr *doms = NULL;
	int n = virConnectListAllDomains(virt, &doms, flags);

	for (int i = 0; i < n; i++) {
		char *key = g_malloc0(VIR_UUID_STRING_BUFLEN);

		(void)virDomainGetUUIDString(doms[i], key);
		g_hash_table_add(set, key);
		virDomainFree(doms[i]);
	}
	free(doms);
	return set;
}

static LvState stats_state(const virDomainStatsRecord *r)
{
	int state = VIR_DOMAIN_NOSTATE, reason = 0;

	(void)virTypedParamsGetInt(r->params, r->nparams, "state.state", &state);
	(void)virTypedParamsGetInt(r->params, r->nparams, "state.reason", &reason);
	return lv_state_of(state, reason);
}

/* For hypervisors that cannot tell the states of all in one call. */
static GPtrArray *list_each(virConnectPtr virt, GError **err)
{
	GPtrArray *out;
	virDomainPtr *doms = NULL;
	int n = virConnectListAllDomains(virt, &doms, 0);

	if (n < 0) {
		lv_error(err, "cannot list the domains");
		return NULL;
	}
	out = g_ptr_array_new_with_free_func(found_free);
	for (int i = 0; i < n; i++) {
		int state, reason;

		if (!virDomainGetState(doms[i], &state, &reason, 0)) {
			LvFound *f = found_new(doms[i]);

			f->state = lv_state_of(state, reason);
			g_ptr_array_add(out, f);
		}
		virDomainFree(doms[i]);
	}
	free(doms);
	return out;
}

GPtrArray *lv_list(virConnectPtr virt, GError **err)
{
	virDomainStatsRecordPtr *records = NULL;
	int n = virConnectGetAllDomainStats(virt, VIR_DOMAIN_STATS_STATE, &records, 0);
	g_autoptr(GHashTable) asleep = list_of(virt, VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE);
	GPtrArray *out;

	if (n < 0) {
		out = list_each(virt, err);
	} else {
		out = g_ptr_array_new_with_free_func(found_free);
		for (int i = 0; i < n; i++) {
			LvFound *f = found_new(records[i]->dom);

			f->state = stats_state(records[i]);
			g_ptr_array_add(out, f);
		}
		virDomainStatsRecordListFree(records);
	}
	for (unsigned i = 0; out && i < out->len; i++) {
		LvFound *f = out->pdata[i];

		f->state = lv_state_with_sleep(f->state, g_hash_table_contains(asleep, f->key));
	}
	return out;
}

typedef struct Look {
	void *tag;
	virConnectPtr virt; /* a reference */
	GPtrArray *found;   /* of LvFound: key at first, then all */
	uint64_t free;	    /* bytes that the host has left; 0: it does not tell */
	GError *error;	    /* of the connection */
} Look;

static Spec *spec_of(const char *xml, bool autostart)
{
	g_autofree char *said = xml ? lv_xml_spec(xml, NULL) : NULL;
	g_autofree char *text =
		said ? g_strconcat(said, autostart ? "autostart: true\n" : "", NULL) : NULL;

	return text ? spec_restore(text, strlen(text), NULL) : NULL;
}

/* What it runs with, or slept with. */
static void look_at_run(virDomainPtr dom, LvFound *f)
{
	char *xml = f->state.state == VM_ASLEEP ? virDomainManagedSaveGetXMLDesc(dom, 0)
						: virDomainGetXMLDesc(dom, 0);

	f->run = spec_of(xml, false);
	f->agent = xml && lv_xml_has_agent(xml);
	free(xml);
}

/* false: the connection is of no use. */
static bool look_at(virConnectPtr virt, LvFound *f, GHashTable *autostart, GError **err)
{
	virDomainPtr dom = virDomainLookupByUUIDString(virt, f->key);
	char *xml;

	if (!dom) {
		lv_error(err, "cannot look at a domain");
		if (virGetLastErrorCode() != VIR_ERR_NO_DOMAIN)
			return false;
		g_clear_error(err);
		return true;
	}
	f->known = lv_state_now(dom, &f->state);
	f->name = g_strdup(virDomainGetName(dom));
	xml = virDomainGetXMLDesc(dom, VIR_DOMAIN_XML_INACTIVE);
	f->xml = g_strdup(xml);
	free(xml);
	f->spec = spec_of(f->xml, g_hash_table_contains(autostart, f->key));
	f->snapshots = lv_snapshot_names(dom);
	if (f->state.state == VM_RUNNING || f->state.state == VM_PAUSED ||
	    f->state.state == VM_ASLEEP)
		look_at_run(dom, f);
	virDomainFree(dom);
	return true;
}

static void look_job(void *arg)
{
	Look *l = arg;
	g_autoptr(GHashTable) autostart = list_of(l->virt, VIR_CONNECT_LIST_DOMAINS_AUTOSTART);

	for (unsigned i = 0; i < l->found->len; i++)
		if (!look_at(l->virt, l->found->pdata[i], autostart, &l->error))
			break;
	if (!l->error)
		l->free = virNodeGetFreeMemory(l->virt);
	/* Here: if it was the last reference this talks to the host. */
	(void)virConnectClose(l->virt);
}

/* ---- on the loop ---- */

static void look_some(LvHost *lh);

bool lv_overtake(LvHost *lh, const char *key)
{
	LvLook *look = g_hash_table_lookup(lh->looks, key);

	if (look && look->state == LOOK_RUNNING)
		look->state = LOOK_AGAIN;
	return look;
}

static void gone(LvHost *lh, const char *key)
{
	LvVm *lv = g_hash_table_lookup(lh->domains, key);

	if (!lv || lv_move_hides(lh, key, (LvState){ VM_STOPPED }))
		return;
	g_clear_pointer(&lv->xml, g_free);
	if (lv->base.vm->home.foreign)
		registry_vanish(lv->base.vm);
	else
		lv_show(lv, (LvState){ VM_STOPPED, "undefined" });
}

/* The VM of a domain, made if it is new. */
static LvVm *vm_for(LvHost *lh, const char *key, const char *name, LvState state)
{
	LvVm *lv = g_hash_table_lookup(lh->domains, key);
	const VmHome home = { lh->host->be, lh->host->name, (char *)key, (char *)name, true };
	Vm *vm;

	if (!lv)
		lv = lv_move_arrived(lh, key, state);
	if (!lv && lv_is_passing(state))
		return NULL;
	if (!lv) {
		vm = registry_appear(&home);
		lv = vm ? lv_bind(vm) : NULL;
	} else {
		/* It was only gone for a moment: as while it is given another name. */
		lv->base.vm->gone = false;
		if (lv->base.vm->home.foreign)
			registry_follow_name(lv->base.vm, name);
	}
	return lv;
}

static void found(LvHost *lh, LvFound *f)
{
	LvVm *lv;

	if (!f->known) {
		gone(lh, f->key);
		return;
	}
	if (lv_move_hides(lh, f->key, f->state))
		return;
	lv = vm_for(lh, f->key, f->name, f->state);
	if (!lv)
		return;
	lv_show(lv, f->state);
	if (f->xml && f->spec)
		lv_defined(lv, g_steal_pointer(&f->xml), g_steal_pointer(&f->spec));
	if (f->run)
		lv_runs(lv, f->run, f->agent);
	lv_snapshots_found(lv, g_steal_pointer(&f->snapshots));
}

static void looked(void *arg)
{
	Look *l = arg;
	LvHost *lh = lv_host_at(l->tag);

	lv_host_worked(l->tag);
	if (lh)
		lh->looking--;
	if (lh && l->free)
		lh->free = l->free;
	for (unsigned i = 0; lh && !l->error && i < l->found->len; i++) {
		LvFound *f = l->found->pdata[i];
		const LvLook *look = g_hash_table_lookup(lh->looks, f->key);
		bool again = look && look->state == LOOK_AGAIN;

		g_hash_table_remove(lh->looks, f->key);
		if (again)
			lv_look(lh, f->key);
		else
			found(lh, f);
	}
	if (lh && l->error)
		lv_host_away(lh, g_strdup(l->error->message));
	else if (lh)
		look_some(lh);
	g_ptr_array_unref(l->found);
	g_clear_error(&l->error);
	g_free(l);
}

static void look_some(LvHost *lh)
{
	while (lh->to_look.length && lh->looking < MAX_LOOKING && lh->virt) {
		Look *l = g_new0(Look, 1);

		l->tag = lv_host_tag(lh);
		l->virt = lh->virt;
		(void)virConnectRef(l->virt);
		l->found = g_ptr_array_new_with_free_func(found_free);
		while (lh->to_look.length && l->found->len < BATCH) {
			const char *key = g_queue_pop_head(&lh->to_look);
			LvLook *look = g_hash_table_lookup(lh->looks, key);
			LvFound *f = g_new0(LvFound, 1);

			look->state = LOOK_RUNNING;
			g_strlcpy(f->key, key, sizeof f->key);
			g_ptr_array_add(l->found, f);
		}
		lh->looking++;
		lv_host_work(lh, look_job, looked, l);
	}
	if (!lh->to_look.length && !lh->looking && lh->first) {
		timer_stop(&lh->first);
		host_answered(lh->host);
	}
}

static void look_soon(void *tag)
{
	LvHost *lh = lv_host_at(tag);

	if (lh)
		look_some(lh);
}

void lv_look(LvHost *lh, const char *key)
{
	char *copy;

	if (lv_overtake(lh, key))
		return;
	copy = g_strdup(key);
	g_hash_table_insert(lh->looks, copy, g_new0(LvLook, 1));
	g_queue_push_tail(&lh->to_look, copy);
	/* Later: what else comes now goes the same way. */
	if (lh->to_look.length == 1)
		loop_defer(look_soon, lv_host_tag(lh));
}

void lv_look_no_more(LvHost *lh)
{
	timer_stop(&lh->first);
	g_queue_clear(&lh->to_look);
	g_hash_table_remove_all(lh->looks);
	lh->looking = 0;
}

void lv_heard(LvHost *lh, const char *key, const char *name, LvState state)
{
	LvVm *lv = g_hash_table_lookup(lh->domains, key);
	bool runs = state.state == VM_RUNNING || state.state == VM_PAUSED;

	(void)lv_overtake(lh, key);
	if (lv_move_hides(lh, key, state))
		return;
	/* The list is under way still, and may be of a time before now. */
	if (!lh->virt)
		lv_look(lh, key);
	/* The end of one that is known to be gone is no news. */
	if (runs)
		lv = vm_for(lh, key, name, state);
	if (lv && !lv->base.vm->gone)
		lv_show(lv, state);
}

static void first_late(void *arg)
{
	LvHost *lh = arg;

	lh->first = NULL;
	host_answered(lh->host);
}

void lv_discovered(LvHost *lh, GPtrArray *list)
{
	g_autoptr(GHashTable) there = g_hash_table_new(g_str_hash, g_str_equal);
	g_autoptr(GPtrArray) missing = g_ptr_array_new();
	GHashTableIter it;
	gpointer key;

	for (unsigned i = 0; i < list->len; i++)
		g_hash_table_add(there, ((LvFound *)list->pdata[i])->key);
	/* What an event has told of while the list was made the list may not know. */
	g_hash_table_iter_init(&it, lh->domains);
	while (g_hash_table_iter_next(&it, &key, NULL))
		if (!g_hash_table_contains(there, key) && !g_hash_table_contains(lh->looks, key))
			g_ptr_array_add(missing, key);
	/* These first: others may have their names by now. */
	for (unsigned i = 0; i < missing->len; i++)
		gone(lh, missing->pdata[i]);
	for (unsigned i = 0; i < list->len; i++) {
		LvFound *f = list->pdata[i];

		if (!g_hash_table_contains(lh->looks, f->key))
			found(lh, f);
		lv_look(lh, f->key);
	}
	g_ptr_array_unref(list);
	lh->first = timer_start(FIRST_MS, first_late, lh);
	look_some(lh);
}
