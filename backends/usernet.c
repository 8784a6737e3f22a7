/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/usernet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/netaddr.h"
#include "vmfs/ssh.h"
#include "vmfs/vm.h"

#define MAX_LINES 1024

/* ---- what is there ---- */

static void row_free(void *arg)
{
	UsernetRow *r = arg;

	g_free(r->nic);
	g_free(r);
}

/* One after "Hub -1 (net-eth0):". */
static UsernetRow *read_row(const char *line)
{
	UsernetRow r = { 0 };
	char proto[8], state[32], dst[64];

	/* The state may hold a blank: UDP[236 sec]. */
	if (sscanf(line, " %7[A-Z][%31[^]]] %*d %63s %u %63s %u", proto, state, r.src, &r.src_port,
		   dst, &r.dst_port) != 6)
		return NULL;
	r.udp = !strcmp(proto, "UDP");
	r.forward = !strcmp(state, "HOST_FORWARD");
	return g_memdup2(&r, sizeof r);
}

GPtrArray *usernet_parse(const char *text, char *(*name)(const void *arg, const char *netdev),
			 const void *arg)
{
	g_auto(GStrv) lines = g_strsplit(text, "\n", MAX_LINES);
	g_autofree char *nic = NULL;
	GPtrArray *rows = g_ptr_array_new_with_free_func(row_free);
	char netdev[128];

	for (char **l = lines; *l; l++) {
		UsernetRow *r;

		if (sscanf(*l, "Hub %*d (%127[^)]):", netdev) == 1) {
			g_free(nic);
			nic = name(arg, netdev);
			continue;
		}
		r = nic ? read_row(*l) : NULL;
		if (!r)
			continue;
		r->nic = g_strdup(nic);
		g_ptr_array_add(rows, r);
	}
	return rows;
}

static char *port_key(const char *nic, unsigned guest_port, bool udp)
{
	return g_strdup_printf("port.%s.%u%s", nic, guest_port, udp ? "/udp" : "");
}

static bool has_port(const SpecNic *n, const UsernetRow *r)
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

/* "port.eth0.22" to "127.0.0.1:39555" */
static void add_fact(GHashTable *facts, const Spec *spec, const UsernetRow *r)
{
	for (guint i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];
		char *key, *value;
		const char *before;

		if (strcmp(n->name, r->nic) || !has_port(n, r))
			continue;
		key = port_key(r->nic, r->dst_port, r->udp);
		before = g_hash_table_lookup(facts, key);
		/* QEMU lists the latest first. */
		value = g_strdup_printf("%s:%u%s%s", r->src, r->src_port, before ? " " : "",
					before ? before : "");
		g_hash_table_insert(facts, key, value);
	}
}

/* Of whatever nic, which may be no more. */
static void forget_ports(BackendVm *bv, GHashTable *facts)
{
	const GPtrArray *told = bv->vm->facts;

	for (guint i = told ? told->len : 0; i-- > 0;) {
		const char *fact = told->pdata[i];
		g_autofree char *key = g_strndup(fact, strcspn(fact, " "));

		if (g_str_has_prefix(key, "port.") && !g_hash_table_contains(facts, key))
			backend_fact(bv, key, NULL);
	}
}

void usernet_report(BackendVm *bv, const Spec *spec, const GPtrArray *rows)
{
	g_autoptr(GHashTable) facts =
		g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	GHashTableIter it;
	void *key, *value;

	for (guint i = 0; i < rows->len; i++) {
		const UsernetRow *r = rows->pdata[i];

		if (r->forward)
			add_fact(facts, spec, r);
	}
	forget_ports(bv, facts);
	g_hash_table_iter_init(&it, facts);
	while (g_hash_table_iter_next(&it, &key, &value))
		backend_fact(bv, key, value);
}

bool usernet_has_ports(const Spec *spec)
{
	for (guint i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];

		if (n->ports->len)
			return true;
	}
	return false;
}

/* It is from a port that the spec names. */
static bool is_fixed(const SpecNic *nic, const UsernetRow *r)
{
	for (guint i = 0; i < nic->ports->len; i++) {
		const SpecPort *p = nic->ports->pdata[i];

		if (p->udp == r->udp && p->host_port == r->src_port)
			return true;
	}
	return false;
}

/* Row `r` is that forward, from whatever port if the system was to pick one. */
static bool is_row(const SpecNic *nic, const SpecPort *port, const UsernetRow *r)
{
	return r->forward && !strcmp(r->nic, nic->name) && !strcmp(r->src, port->address) &&
	       r->udp == port->udp && r->dst_port == port->guest_port &&
	       (port->host_port ? port->host_port == r->src_port : !is_fixed(nic, r));
}

unsigned usernet_port(const GPtrArray *rows, const SpecNic *nic, const SpecPort *port)
{
	for (guint i = rows->len; i-- > 0;) {
		const UsernetRow *r = rows->pdata[i];

		if (is_row(nic, port, r))
			return r->src_port;
	}
	return 0;
}

char *usernet_ssh(const GPtrArray *rows, const char *host)
{
	for (guint i = 0; i < rows->len; i++) {
		const UsernetRow *r = rows->pdata[i];
		const bool anywhere = !strcmp(r->src, "0.0.0.0") || !strcmp(r->src, "*");

		if (r->forward && !r->udp && r->dst_port == SSH_PORT)
			return g_strdup_printf("%s:%u", anywhere ? host : r->src, r->src_port);
	}
	return NULL;
}

GPtrArray *usernet_ips(const GPtrArray *rows)
{
	GPtrArray *ips = g_ptr_array_new_with_free_func(g_free);

	for (guint i = 0; i < rows->len; i++) {
		const UsernetRow *r = rows->pdata[i];
		struct in_addr v4;

		/* A connection that the guest made comes from its own address. One made to it does
		 * not count: a forward is listed with the address that QEMU would guess. */
		if (r->forward || inet_pton(AF_INET, r->src, &v4) != 1)
			continue;
		/* slirp's net; .2 is the host's side of it, .3 the name server. */
		const uint32_t a = ntohl(v4.s_addr);
		if (a >> 8 == 0x0a0002 && (a & 0xff) > 3)
			netaddr_add(ips, r->src);
	}
	return ips;
}

/* ---- what is to be there ---- */

static bool same_port(const SpecPort *a, const SpecPort *b)
{
	return a->host_port == b->host_port && a->guest_port == b->guest_port && a->udp == b->udp &&
	       !strcmp(a->address, b->address);
}

/* How often it is in the first `n` of them. */
static unsigned count(const GPtrArray *ports, guint n, const SpecPort *wanted)
{
	unsigned found = 0;

	for (guint i = 0; i < n; i++)
		found += same_port(ports->pdata[i], wanted);
	return found;
}

/* Number `i` of `ports` has no counterpart in `others`. */
static bool is_extra(const GPtrArray *ports, guint i, const GPtrArray *others)
{
	return count(ports, i, ports->pdata[i]) >= count(others, others->len, ports->pdata[i]);
}

GPtrArray *usernet_present(const GPtrArray *rows, const SpecNic *nic)
{
	GPtrArray *there = g_ptr_array_new();

	for (guint i = 0; i < nic->ports->len; i++) {
		const SpecPort *port = nic->ports->pdata[i];
		unsigned found = 0;

		for (guint k = 0; k < rows->len; k++)
			found += is_row(nic, port, rows->pdata[k]);
		if (found > count(there, there->len, port))
			g_ptr_array_add(there, nic->ports->pdata[i]);
	}
	return there;
}

static char *add_text(const UsernetEnd *end, const SpecPort *port, unsigned host_port)
{
	return g_strdup_printf("hostfwd_add %s %s:%s:%u-%s:%u", end->netdev,
			       port->udp ? "udp" : "tcp", port->address, host_port, end->guest,
			       port->guest_port);
}

static char *remove_text(const UsernetEnd *end, const SpecPort *port, unsigned host_port)
{
	return g_strdup_printf("hostfwd_remove %s %s:%s:%u", end->netdev, port->udp ? "udp" : "tcp",
			       port->address, host_port);
}

char *usernet_add_ssh(const UsernetEnd *end)
{
	return g_strdup_printf("hostfwd_add %s tcp:127.0.0.1:0-%s:%d", end->netdev, end->guest,
			       SSH_PORT);
}

static void move_free(void *arg)
{
	UsernetMove *m = arg;

	g_free(m->forward);
	g_free(m->back);
	g_free(m);
}

static void add_move(GPtrArray *moves, char *forward_take, char *back_take)
{
	UsernetMove *m = g_new0(UsernetMove, 1);

	m->forward = forward_take;
	m->back = back_take;
	g_ptr_array_add(moves, m);
}

static void plan_new(GPtrArray *moves, const UsernetEnd *end, const SpecNic *have,
		     const SpecNic *want, bool picked)
{
	for (guint i = 0; i < want->ports->len; i++) {
		const SpecPort *port = want->ports->pdata[i];

		if (picked == !port->host_port && is_extra(want->ports, i, have->ports))
			add_move(moves, add_text(end, port, port->host_port),
				 picked ? NULL : remove_text(end, port, port->host_port));
	}
}

GPtrArray *usernet_plan(const GPtrArray *rows, const UsernetEnd *end, const SpecNic *have,
			const SpecNic *want)
{
	GPtrArray *moves = g_ptr_array_new_with_free_func(move_free);

	for (guint i = 0; i < have->ports->len; i++) {
		const SpecPort *port = have->ports->pdata[i];
		unsigned host_port = port->host_port;

		if (!is_extra(have->ports, i, want->ports))
			continue;
		if (!host_port)
			host_port = usernet_port(rows, have, port);
		if (host_port)
			add_move(moves, remove_text(end, port, host_port),
				 add_text(end, port, host_port));
	}
	/* What the system picks a port for does not fail, and could not be named to undo it. */
	plan_new(moves, end, have, want, false);
	plan_new(moves, end, have, want, true);
	return moves;
}

GError *usernet_error(const char *key, const UsernetMove *m, const char *said, uid_t uid)
{
	const char *rule = strrchr(m->forward, ' ') + 1;
	unsigned port = 0;

	/* Nothing is said of what went well, but for "host forwarding rule for ... removed". */
	if (!said || !*said || strstr(said, " removed"))
		return NULL;
	if (!g_str_has_prefix(m->forward, "hostfwd_add") ||
	    !strstr(said, "Could not set up host forwarding rule"))
		return err_new(EIO, "%s: %s", key, said);
	(void)sscanf(rule, "%*[a-z]:%*[0-9.]:%u-", &port);
	/* QEMU does not say why. */
	if (port < 1024 && uid)
		return err_new(EACCES,
			       "%s: cannot forward %s: ports below 1024 are not for the VM's owner",
			       key, rule);
	return err_new(EADDRINUSE,
		       "%s: cannot forward %s: that port of the host is taken; use another, or 0 "
		       "for a free one",
		       key, rule);
}
