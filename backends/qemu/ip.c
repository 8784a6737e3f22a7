/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's addresses, and the host ports that lead to it. The agent knows best; without one,
 * connections that the guest has made through QEMU's user network tell. There is no event for "the
 * guest has an address now", so a series of questions with growing pauses is started when there is
 * a reason to (it runs, the agent came up, someone wants to know) and ends by itself.
 */
#include <arpa/inet.h>
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"
#include "vmfs/netaddr.h"
#include "vmfs/ssh.h"

#define FIRST_PAUSE_MS	 100
#define MAX_TRIES	 9 /* the pauses double: some 30 s in all */
#define AGENT_TIMEOUT_MS 3000

static void ask(void *arg);

static bool is_ours(const char *mac, const Spec *spec, unsigned id)
{
	for (guint i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];
		g_autofree char *own = n->mac ? g_strdup(n->mac) : qemu_mac(id, 0);
		/* Which number a nic has does not matter: that part is the VM's. */
		const size_t len = n->mac ? strlen(own) : strlen(own) - 2;
		if (!g_ascii_strncasecmp(mac, own, len))
			return true;
	}
	return false;
}

static const char *nic_mac(const json_t *nic)
{
	return json_string_value(json_object_get(nic, "hardware-address"));
}

const json_t *qemu_agent_nic(const json_t *interfaces, const char *mac)
{
	json_t *nic;
	size_t i;

	json_array_foreach(interfaces, i, nic)
	{
		const char *its = nic_mac(nic);

		if (its && !g_ascii_strcasecmp(its, mac))
			return nic;
	}
	return NULL;
}

GPtrArray *qemu_agent_ips(const json_t *interfaces, const Spec *spec, unsigned id)
{
	GPtrArray *ips = g_ptr_array_new_with_free_func(g_free);
	size_t i, j;
	json_t *nic, *addr;

	json_array_foreach(interfaces, i, nic)
	{
		const char *mac = nic_mac(nic);
		if (!mac || !is_ours(mac, spec, id))
			continue;
		json_array_foreach(json_object_get(nic, "ip-addresses"), j, addr)
		{
			const char *text = json_string_value(json_object_get(addr, "ip-address"));
			if (text)
				netaddr_add(ips, text);
		}
	}
	return ips;
}

/* One row of `info usernet`, after "Hub -1 (net-eth0):". */
typedef struct Row {
	char nic[64], state[32], src[64], dst[64];
	bool udp;
	unsigned src_port, dst_port;
} Row;

static void each_row(const char *text, void (*fn)(void *arg, const Row *row), void *arg)
{
	g_auto(GStrv) lines = g_strsplit(text, "\n", 1024);
	Row r = { 0 };
	char proto[8], state[32];

	for (char **l = lines; *l; l++) {
		if (sscanf(*l, "Hub %*d (" QEMU_NET_PREFIX "%63[^)]):", r.nic) == 1)
			continue;
		/* The state may hold a blank: UDP[236 sec]. */
		if (sscanf(*l, " %7[A-Z][%31[^]]] %*d %63s %u %63s %u", proto, state, r.src,
			   &r.src_port, r.dst, &r.dst_port) != 6)
			continue;
		r.udp = !strcmp(proto, "UDP");
		memcpy(r.state, state, sizeof(state));
		fn(arg, &r);
	}
}

typedef struct Ports {
	const Spec *spec;
	GHashTable *facts; /* "port.eth0.22" to "127.0.0.1:39555" */
} Ports;

static bool has_port(const SpecNic *n, const Row *r)
{
	/* Which may be ours. */
	if (!r->udp && r->dst_port == SSH_PORT)
		return true;
	for (guint i = 0; i < n->ports->len; i++) {
		const SpecPort *p = n->ports->pdata[i];
		if (p->udp == r->udp && p->guest_port == r->dst_port &&
		    (!p->host_port || p->host_port == r->src_port))
			return true;
	}
	return false;
}

static void take_port(void *arg, const Row *r)
{
	Ports *ports = arg;

	if (strcmp(r->state, "HOST_FORWARD"))
		return;
	for (guint i = 0; i < ports->spec->nics->len; i++) {
		const SpecNic *n = ports->spec->nics->pdata[i];
		if (strcmp(n->name, r->nic) || !has_port(n, r))
			continue;
		char *key =
			g_strdup_printf("port.%s.%u%s", r->nic, r->dst_port, r->udp ? "/udp" : "");
		char *value = g_strdup_printf("%s:%u", r->src, r->src_port);
		const char *before = g_hash_table_lookup(ports->facts, key);
		if (before) {
			/* QEMU lists the latest first. */
			char *both = g_strdup_printf("%s %s", value, before);
			g_free(value);
			value = both;
		}
		g_hash_table_insert(ports->facts, key, value);
	}
}

static char *port_key(const SpecNic *n, const SpecPort *p)
{
	return g_strdup_printf("port.%s.%u%s", n->name, p->guest_port, p->udp ? "/udp" : "");
}

static void forget_ports(QemuVm *q, GHashTable *facts)
{
	const Spec *have = q->base.spec;

	for (guint i = 0; i < have->nics->len; i++) {
		const SpecNic *n = have->nics->pdata[i];

		for (guint j = 0; j < n->ports->len; j++) {
			g_autofree char *key = port_key(n, n->ports->pdata[j]);

			if (!g_hash_table_contains(facts, key))
				backend_fact(&q->base, key, NULL);
		}
	}
}

void qemu_report_ports(QemuVm *q, const Spec *spec, const char *usernet)
{
	g_autoptr(GHashTable) facts =
		g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	Ports ports = { .spec = spec, .facts = facts };
	GHashTableIter it;
	void *key, *value;

	each_row(usernet, take_port, &ports);
	forget_ports(q, facts);
	g_hash_table_iter_init(&it, facts);
	while (g_hash_table_iter_next(&it, &key, &value))
		backend_fact(&q->base, key, value);
}

typedef struct Picked {
	const SpecNic *nic;
	const SpecPort *port;
	unsigned found;
} Picked;

static void take_picked(void *arg, const Row *r)
{
	Picked *picked = arg;
	const SpecPort *port = picked->port;

	if (strcmp(r->state, "HOST_FORWARD") || strcmp(r->nic, picked->nic->name) ||
	    strcmp(r->src, port->address) || r->udp != port->udp || r->dst_port != port->guest_port)
		return;
	for (guint i = 0; i < picked->nic->ports->len; i++) {
		const SpecPort *p = picked->nic->ports->pdata[i];

		if (p->udp == r->udp && p->host_port == r->src_port)
			return;
	}
	picked->found = r->src_port;
}

unsigned qemu_usernet_port(const char *usernet, const SpecNic *nic, const SpecPort *port)
{
	Picked picked = { .nic = nic, .port = port };

	each_row(usernet, take_picked, &picked);
	return picked.found;
}

static void take_ssh(void *arg, const Row *r)
{
	char **address = arg;
	const bool anywhere = !strcmp(r->src, "0.0.0.0") || !strcmp(r->src, "*");

	if (strcmp(r->state, "HOST_FORWARD") || r->udp || r->dst_port != SSH_PORT || *address)
		return;
	*address = g_strdup_printf("%s:%u", anywhere ? "127.0.0.1" : r->src, r->src_port);
}

char *qemu_usernet_ssh(const char *usernet)
{
	char *address = NULL;

	each_row(usernet, take_ssh, &address);
	return address;
}

/*
 * A connection that the guest made comes from its own address. One made to it does not count: a
 * forward is listed with the address that QEMU would guess.
 */
static void take_source(void *arg, const Row *r)
{
	GPtrArray *ips = arg;
	struct in_addr v4;

	if (!strcmp(r->state, "HOST_FORWARD") || inet_pton(AF_INET, r->src, &v4) != 1)
		return;
	/* slirp's net; .2 is the host's side of it, .3 the name server. */
	const uint32_t a = ntohl(v4.s_addr);
	if (a >> 8 == 0x0a0002 && (a & 0xff) > 3)
		netaddr_add(ips, r->src);
}

GPtrArray *qemu_usernet_ips(const char *usernet, const Spec *spec)
{
	GPtrArray *ips = g_ptr_array_new_with_free_func(g_free);

	each_row(usernet, take_source, ips);
	return ips;
}

/* True when that was what the series was for. */
static bool report(QemuVm *q, GPtrArray *take)
{
	g_autoptr(GPtrArray) ips = take;

	if (!ips->len)
		return false;
	g_ptr_array_add(ips, NULL);
	backend_ips(&q->base, (const char *const *)ips->pdata);
	return true;
}

static void ask_later(QemuVm *q)
{
	q->ip_asked = false;
	if (q->ip_try < MAX_TRIES)
		q->ip_timer = timer_start((uint64_t)FIRST_PAUSE_MS << q->ip_try++, ask, q);
}

static void usernet_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const char *text = json_string_value(result);

	q->ip_slot = NULL;
	q->ip_asked = false;
	if (err || !text || !report(q, qemu_usernet_ips(text, q->base.spec)))
		ask_later(q);
}

static void ask_usernet(QemuVm *q)
{
	json_t *args = json_object();

	json_object_set_new(args, "command-line", json_string("info usernet"));
	q->ip_asked = true;
	q->ip_slot = qmp_execute(q->qmp, "human-monitor-command", args, usernet_answered, q);
}

static void agent_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	q->ip_asked = false;
	if (!err && report(q, qemu_agent_ips(result, q->base.spec, vm_id(qemu_vm(q)))))
		return;
	if (q->qmp)
		ask_usernet(q);
	else
		ask_later(q);
}

static void ask(void *arg)
{
	QemuVm *q = arg;

	q->ip_timer = NULL;
	if (!q->qmp || q->exited)
		return;
	if (!q->agent || !agent_is_open(q->agent)) {
		ask_usernet(q);
		return;
	}
	q->ip_asked = true;
	agent_request(q->agent, "guest-network-get-interfaces", NULL, false, AGENT_TIMEOUT_MS,
		      agent_answered, q);
}

void qemu_ip_start(QemuVm *q)
{
	if (!q->base.spec->nics->len || !q->qmp || q->exited)
		return;
	/* One that runs goes on for as long again, and asks soon. */
	q->ip_try = 0;
	if (q->ip_asked)
		return;
	const bool running = q->ip_timer != NULL;
	timer_stop(&q->ip_timer);
	if (running)
		q->ip_timer = timer_start(FIRST_PAUSE_MS, ask, q);
	else
		ask(q);
}

void qemu_ip_stop(QemuVm *q)
{
	timer_stop(&q->ip_timer);
	qmp_cancel(&q->ip_slot);
	if (q->agent)
		agent_cancel(q->agent, agent_answered, q);
	q->ip_asked = false;
}
