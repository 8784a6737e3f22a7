/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forwards into a guest. libvirt's user network is QEMU's own, which its monitor can tell to
 * forward ports; libvirt knows nothing of that. So they are kept in the domain's <metadata>, and
 * made between a start and the moment at which the guest goes on. Who starts it otherwise, or has
 * it wake or come from another host, has a domain without them: they are made when it is found.
 */
#include <errno.h>
#include <string.h>

#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "backends/usernet.h"
#include "vmfs/err.h"

/* ---- in the pool ---- */

static char *nic_at(const void *netdevs, const char *netdev)
{
	return g_strdup(g_hash_table_lookup((GHashTable *)netdevs, netdev));
}

static GPtrArray *look(const LvCall *c, GHashTable *netdevs, GError **err)
{
	g_autofree char *text = lv_hmp(c->dom, USERNET_INFO, err);

	return text ? usernet_parse(text, nic_at, netdevs) : NULL;
}

static const char *netdev_of(GHashTable *netdevs, const char *nic)
{
	GHashTableIter it;
	gpointer netdev, name;

	g_hash_table_iter_init(&it, netdevs);
	while (g_hash_table_iter_next(&it, &netdev, &name))
		if (!strcmp(name, nic))
			return netdev;
	return NULL;
}

static void undo(const LvCall *c, const GPtrArray *moves, guint done)
{
	while (done-- > 0) {
		const UsernetMove *m = moves->pdata[done];
		g_autofree char *said = m->back ? lv_hmp(c->dom, m->back, NULL) : NULL;

		(void)said;
	}
}

/* As far as it goes, or not at all. */
static bool carry_out(const LvCall *c, const char *key, const GPtrArray *moves, bool all,
		      GError **err)
{
	const uid_t uid = c->caps.dac ? c->caps.uid : 0;
	GError *first = NULL;

	for (guint i = 0; i < moves->len && !(all && first); i++) {
		const UsernetMove *m = moves->pdata[i];
		g_autoptr(GError) e = NULL;
		g_autofree char *said = lv_hmp(c->dom, m->forward, &e);

		if (said)
			e = usernet_error(key, m, said, uid);
		if (e && all)
			undo(c, moves, i);
		if (e && !first)
			first = g_steal_pointer(&e);
	}
	if (!first)
		return true;
	g_propagate_error(err, first);
	return false;
}

/* What it has of these becomes those of `want`. */
static bool set_nic(const LvCall *c, GHashTable *netdevs, const SpecNic *have, const SpecNic *want,
		    bool all, GError **err)
{
	const char *netdev = netdev_of(netdevs, want->name);
	g_autofree char *key = g_strdup_printf("nics.%s.ports", want->name);
	g_autoptr(GPtrArray) rows = look(c, netdevs, err), moves = NULL, there = NULL;
	SpecNic now = { .name = want->name };

	if (!rows)
		return false;
	if (!netdev)
		return err_set(err, EOPNOTSUPP, "%s: libvirt forwards no ports of this one", key);
	now.ports = there = usernet_present(rows, have);
	moves = usernet_plan(rows, &(UsernetEnd){ netdev, "" }, &now, want);
	return carry_out(c, key, moves, all, err);
}

/* It was done meanwhile, by another call. */
static bool is_done(const LvCall *c, GHashTable *netdevs, const SpecNic *nic)
{
	g_autoptr(GPtrArray) rows = look(c, netdevs, NULL);
	g_autoptr(GPtrArray) there = rows ? usernet_present(rows, nic) : NULL;

	return there && there->len == nic->ports->len;
}

bool lv_ports_work(LvCall *c, GError **err)
{
	g_autofree char *xml = lv_live_xml(c, err), *text = xml ? lv_xml_spec(xml, err) : NULL;
	g_autoptr(Spec) spec = text ? spec_restore(text, strlen(text), err) : NULL;
	g_autoptr(GHashTable) netdevs = NULL;
	GError *first = NULL;

	if (!spec)
		return false;
	netdevs = lv_xml_netdevs(xml);
	for (guint i = 0; i < spec->nics->len; i++) {
		const SpecNic *nic = spec->nics->pdata[i];
		g_autoptr(GError) e = NULL;

		if (nic->ports->len && !set_nic(c, netdevs, nic, nic, false, &e) &&
		    !is_done(c, netdevs, nic) && !first)
			first = g_steal_pointer(&e);
	}
	c->list = look(c, netdevs, first ? NULL : &first);
	if (first)
		g_propagate_error(err, first);
	return !first;
}

/* For who finds it later. */
static bool write_down(const LvCall *c, const Spec *spec, GError **err)
{
	g_autofree char *text = lv_xml_ports(spec);

	if (virDomainSetMetadata(c->dom, VIR_DOMAIN_METADATA_ELEMENT, text,
				 text ? XML_OWN_PREFIX : NULL, XML_PORTS_URI,
				 VIR_DOMAIN_AFFECT_LIVE) >= 0)
		return true;
	lv_error(err, "libvirt cannot keep what is forwarded");
	return false;
}

bool lv_ports_change(LvCall *c, const char *key, GError **err)
{
	const SpecNic *had = lv_ports_nic(c->have, key), *want = lv_ports_nic(c->spec, key);
	g_autoptr(GPtrArray) none = g_ptr_array_new();
	g_autoptr(GHashTable) netdevs = NULL;
	g_autofree char *xml = NULL;
	SpecNic have = { .ports = had ? had->ports : none };

	if (!have.ports->len && (!want || !want->ports->len))
		return true;
	xml = lv_live_xml(c, err);
	if (!xml)
		return false;
	netdevs = lv_xml_netdevs(xml);
	have.name = want ? want->name : NULL;
	if (want && !set_nic(c, netdevs, &have, want, true, err))
		return false;
	if (!write_down(c, c->spec, err)) {
		if (want)
			(void)set_nic(c, netdevs, want, &have, false, NULL);
		return false;
	}
	c->list = look(c, netdevs, NULL);
	return true;
}

/* The first one that can forward. */
static const char *first_netdev(const Spec *spec, GHashTable *netdevs)
{
	for (guint i = 0; i < spec->nics->len; i++) {
		const SpecNic *nic = spec->nics->pdata[i];
		const char *netdev = netdev_of(netdevs, nic->name);

		if (netdev)
			return netdev;
	}
	return NULL;
}

bool lv_ports_ssh(LvCall *c, GError **err)
{
	g_autofree char *xml = lv_live_xml(c, err), *there = NULL, *line = NULL, *said = NULL;
	g_autoptr(GHashTable) netdevs = xml ? lv_xml_netdevs(xml) : NULL;
	const char *netdev = netdevs ? first_netdev(c->spec, netdevs) : NULL;

	if (!netdev)
		return xml;
	c->list = look(c, netdevs, err);
	there = c->list ? usernet_ssh(c->list, "") : NULL;
	if (!c->list || there)
		return c->list;
	line = usernet_add_ssh(&(UsernetEnd){ netdev, "" });
	said = lv_hmp(c->dom, line, err);
	if (!said)
		return false;
	g_ptr_array_unref(c->list);
	c->list = look(c, netdevs, err);
	return c->list;
}

/* ---- on the loop ---- */

const SpecNic *lv_ports_nic(const Spec *spec, const char *key)
{
	const size_t len = strlen(key) - (g_str_has_suffix(key, ".ports") ? strlen(".ports") : 0);
	g_autofree char *nic = g_strndup(key, len);

	return g_str_has_prefix(nic, "nics.") ? spec_named(spec, nic) : NULL;
}

void lv_ports_report(const LvCall *c)
{
	BackendVm *bv = c->lv ? &c->lv->base : NULL;

	if (bv && c->list && lv_call_alive(c))
		usernet_report(bv, c->spec ? c->spec : bv->spec, c->list);
}

void lv_ports_forget(LvVm *lv)
{
	g_autoptr(GPtrArray) none = g_ptr_array_new();

	usernet_report(&lv->base, lv->base.spec, none);
	lv->ports_failed = false;
}

static void looked(LvCall *c)
{
	lv_ports_report(c);
	if (!lv_call_alive(c) || !vm_is_live(c->vm))
		return;
	/* Nobody has ordered anything: it can only be told, and once. */
	if (c->error && !c->lv->ports_failed)
		vm_set_error(c->vm, "ports", c->error);
	c->lv->ports_failed = c->error != NULL;
}

void lv_ports_look(LvVm *lv)
{
	const Vm *vm = lv->base.vm;
	LvCall *c;

	/* Who starts it or changes it sees to it. */
	if (!usernet_has_ports(lv->base.spec) || lv->start ||
	    (vm->op && op_kind(vm->op) == OP_APPLY))
		return;
	c = lv_call_new(lv, lv_ports_work, looked, NULL);
	if (c)
		lv_call_send(c);
}
