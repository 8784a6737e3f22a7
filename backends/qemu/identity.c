/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A clone's guest goes on with the name and the addresses of the machine that it is a copy of. Its
 * agent is asked to take those of this VM; until it has, `status` says so. The machine itself has
 * them from its next reset on. Loop thread only.
 */
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/log.h"
#include "vmfs/specval.h"

#define TIMEOUT_MS 5000
#define FACT	   "identity"

char *qemu_nic_mac(const QemuVm *q, const SpecNic *n)
{
	g_autofree char *number = g_strconcat(QEMU_MAC_ID, n->name, NULL);
	const int index = q->slots ? qemu_slot(q->slots, number) : -1;

	return n->mac ? g_strdup(n->mac) : qemu_mac(vm_id(qemu_vm(q)), (unsigned)MAX(index, 0));
}

/* The one that the guest has given it; NULL: not known. */
static char *present_mac(const json_t *filters, const SpecNic *n)
{
	g_autofree char *id = g_strconcat(QEMU_NIC_ID, n->name, NULL);
	const json_t *f;
	char *mac = NULL;
	size_t i;

	json_array_foreach(filters, i, f)
	{
		const char *name = json_string_value(json_object_get(f, "name"));
		const char *text = json_string_value(json_object_get(f, "main-mac"));

		if (!mac && name && text && !strcmp(name, id))
			(void)specval_mac(text, &mac, NULL);
	}
	return mac;
}

static void done(QemuVm *q)
{
	q->identity = IDENTITY_OWN;
	backend_fact(&q->base, FACT, NULL);
	backend_changed(&q->base);
	qemu_ip_stop(q);
	qemu_ip_start(q);
}

static void filters_answered(void *arg, const json_t *result, const GError *err);

static void look(QemuVm *q)
{
	qmp_cancel(&q->identity_slot);
	q->identity_slot = qmp_execute(q->qmp, "query-rx-filter", NULL, filters_answered, q);
}

static void told(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	if (err) {
		log_info("%s: its name and addresses: %s", vm_name(qemu_vm(q)), err->message);
		return;
	}
	q->identity = IDENTITY_TOLD;
	if (q->qmp)
		look(q);
}

/* Words of our own only: a VM's name and addresses have no characters that a shell knows. */
static void add_nic(GString *script, const char *have, const char *want)
{
	g_string_append_printf(script,
			       "for i in /sys/class/net/*; do [ \"$(cat $i/address)\" = %s ] && "
			       "ip link set dev ${i##*/} address %s; done\n",
			       have, want);
}

static void filters_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const Spec *spec = q->base.spec;
	g_autoptr(GString) script = g_string_new(NULL);
	json_t *args;

	q->identity_slot = NULL;
	for (guint i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];
		g_autofree char *have = err ? NULL : present_mac(result, n),
				*want = qemu_nic_mac(q, n);

		if (have && g_ascii_strcasecmp(have, want))
			add_nic(script, have, want);
	}
	if (q->identity == IDENTITY_TOLD) {
		/* An event tells of each that follows. */
		if (!script->len)
			done(q);
		return;
	}
	if (q->identity != IDENTITY_COPIED || !q->agent || !agent_is_open(q->agent))
		return;
	g_string_append_printf(script, "hostname %s\n", vm_name(qemu_vm(q)));
	args = json_pack("{s:s, s:[s, s]}", "path", "/bin/sh", "arg", "-c", script->str);
	agent_request(q->agent, "guest-exec", args, false, TIMEOUT_MS, told, q);
}

void qemu_identity_begin(QemuVm *q)
{
	q->identity = IDENTITY_COPIED;
	backend_fact(&q->base, FACT, "copied, no guest agent has given it its own yet");
	qemu_identity_tell(q);
}

void qemu_identity_tell(QemuVm *q)
{
	if (q->identity == IDENTITY_COPIED && q->qmp && q->agent && agent_is_open(q->agent))
		look(q);
}

void qemu_identity_changed(QemuVm *q)
{
	if (q->identity == IDENTITY_TOLD && q->qmp)
		look(q);
}

void qemu_identity_reset(QemuVm *q)
{
	if (q->identity)
		done(q);
}

void qemu_identity_adopt(QemuVm *q, bool copied)
{
	q->identity = copied ? IDENTITY_COPIED : IDENTITY_OWN;
	if (copied)
		backend_fact(&q->base, FACT, "copied, no guest agent has given it its own yet");
}
