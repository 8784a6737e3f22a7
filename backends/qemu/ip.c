/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's addresses, and the host ports that lead to it. The agent knows best; without one,
 * connections that the guest has made through QEMU's user network tell. There is no event for "the
 * guest has an address now", so a series of questions with growing pauses is started when there is
 * a reason to (it runs, the agent came up, someone wants to know) and ends by itself.
 */
#include <string.h>

#include "backends/guestnet.h"
#include "backends/qemu/qemu.h"
#include "vmfs/err.h"
#include "vmfs/netaddr.h"

#define FIRST_PAUSE_MS	 100
#define MAX_TRIES	 9 /* the pauses double: some 30 s in all */
#define AGENT_TIMEOUT_MS 3000

static void ask(void *arg);

typedef struct Own {
	const Spec *spec;
	unsigned id;
} Own;

static bool is_ours(const void *arg, const char *mac)
{
	const Own *o = arg;

	for (guint i = 0; i < o->spec->nics->len; i++) {
		const SpecNic *n = o->spec->nics->pdata[i];
		g_autofree char *own = n->mac ? g_strdup(n->mac) : qemu_mac(o->id, 0);
		/* Which number a nic has does not matter: that part is the VM's. */
		const size_t len = n->mac ? strlen(own) : strlen(own) - 2;
		if (!g_ascii_strncasecmp(mac, own, len))
			return true;
	}
	return false;
}

GPtrArray *qemu_agent_ips(const json_t *interfaces, const Spec *spec, unsigned id)
{
	const Own own = { spec, id };

	return guestnet_ips(interfaces, is_ours, &own);
}

static char *nic_at(const void *arg, const char *netdev)
{
	(void)arg;
	return g_str_has_prefix(netdev, QEMU_NET_PREFIX)
		       ? g_strdup(netdev + strlen(QEMU_NET_PREFIX))
		       : NULL;
}

GPtrArray *qemu_usernet(const char *text)
{
	return usernet_parse(text, nic_at, NULL);
}

void qemu_report_ports(QemuVm *q, const Spec *spec, const char *usernet)
{
	g_autoptr(GPtrArray) rows = qemu_usernet(usernet);

	usernet_report(&q->base, spec, rows);
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
	g_autoptr(GPtrArray) rows = text ? qemu_usernet(text) : NULL;

	q->ip_slot = NULL;
	q->ip_asked = false;
	if (err || !rows || !report(q, usernet_ips(rows)))
		ask_later(q);
}

static void ask_usernet(QemuVm *q)
{
	json_t *args = json_object();

	json_object_set_new(args, "command-line", json_string(USERNET_INFO));
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
	agent_request(q->agent, GUESTNET_COMMAND, NULL, false, AGENT_TIMEOUT_MS, agent_answered, q);
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
