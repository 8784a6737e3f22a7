/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A way to the guest's ssh server: the VM's own key, a forward to port 22 (made when somebody first
 * asks for one, if the spec has none), and the key in the guest, by its agent. Loop thread only.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"
#include "vmfs/ssh.h"

#define AGENT_TIMEOUT_MS 2000

struct QemuSsh {
	QemuVm *q;
	Ask *ask;
	SshKey *key; /* being made */
	QmpSlot *slot;
	char *address;	/* "127.0.0.1:40427" */
	bool forwarded; /* by us: not a second time */
};

static void ssh_free(QemuSsh *s)
{
	QemuVm *q = s->q;

	q->ssh = NULL;
	ssh_key_cancel(s->key);
	qmp_cancel(&s->slot);
	g_free(s->address);
	g_free(s);
}

static void fail(QemuSsh *s, GError *take)
{
	Ask *a = s->ask;

	ssh_free(s);
	ask_fail(a, take);
}

static void answer(QemuSsh *s)
{
	Ask *a = s->ask;
	char *text = ssh_config(qemu_vm(s->q), s->address, NULL);

	ssh_free(s);
	ask_answer(a, g_bytes_new_take(text, strlen(text)));
}

/* ---- the key in the guest ---- */

static void authorized(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	/* A guest that does not know how, or has no such user: it may have got the key otherwise.
	 */
	q->ssh_authorized = !err;
	if (q->ssh && q->ssh->address)
		answer(q->ssh);
}

void qemu_ssh_authorize(QemuVm *q)
{
	const char *user = vm_spec(qemu_vm(q))->ssh_user;

	if (q->ssh_key && q->agent && agent_is_open(q->agent) &&
	    (!q->ssh_authorized || g_strcmp0(user, q->ssh_user))) {
		g_free(q->ssh_user);
		q->ssh_user = g_strdup(user);
		agent_cancel(q->agent, authorized, q);
		agent_request(q->agent, "guest-ssh-add-authorized-keys",
			      json_pack("{s:s,s:[s]}", "username", user, "keys", q->ssh_key), false,
			      AGENT_TIMEOUT_MS, authorized, q);
	} else if (q->ssh && q->ssh->address) {
		answer(q->ssh);
	}
}

/* ---- the way there ---- */

static void usernet_answered(void *arg, const json_t *result, const GError *err);

static void ask_monitor(QemuSsh *s, const char *line, QmpFn fn)
{
	json_t *args = json_pack("{s:s}", "command-line", line);

	s->slot = qmp_execute(s->q->qmp, "human-monitor-command", args, fn, s);
}

static void forwarded(void *arg, const json_t *result, const GError *err)
{
	QemuSsh *s = arg;

	s->slot = NULL;
	if (err)
		fail(s, g_error_copy(err));
	else
		ask_monitor(s, USERNET_INFO, usernet_answered);
}

static void usernet_answered(void *arg, const json_t *result, const GError *err)
{
	QemuSsh *s = arg;
	const char *text = json_string_value(result);
	const SpecNic *nic = s->q->base.spec->nics->pdata[0];
	g_autoptr(GPtrArray) rows = text ? qemu_usernet(text) : NULL;

	s->slot = NULL;
	s->address = rows ? usernet_ssh(rows, "127.0.0.1") : NULL;
	if (err) {
		fail(s, g_error_copy(err));
	} else if (s->address) {
		if (s->forwarded)
			usernet_report(&s->q->base, s->q->base.spec, rows);
		qemu_ssh_authorize(s->q);
	} else if (s->forwarded) {
		fail(s, err_new(EIO, "QEMU could not forward a port of this host to the guest's "
				     "port 22"));
	} else {
		g_autofree char *netdev = g_strconcat(QEMU_NET_PREFIX, nic->name, NULL);
		g_autofree char *line = usernet_add_ssh(&(UsernetEnd){ netdev, QEMU_GUEST_IP });

		s->forwarded = true;
		ask_monitor(s, line, forwarded);
	}
}

static void key_made(void *arg, const char *public_key, const GError *err)
{
	QemuSsh *s = arg;
	QemuVm *q = s->q;

	s->key = NULL;
	if (err) {
		fail(s, g_error_copy(err));
	} else if (!q->qmp) {
		fail(s, err_new(EHOSTDOWN, "QEMU does not answer; 'kill' ends it"));
	} else {
		g_free(q->ssh_key);
		q->ssh_key = g_strdup(public_key);
		ask_monitor(s, USERNET_INFO, usernet_answered);
	}
}

void qemu_ask_ssh(BackendVm *bv, Ask *a)
{
	QemuVm *q = qemu_of(bv);
	const ProcUser owner = qemu_owner(q);

	if (!q->qmp || q->exited) {
		ask_fail(a, err_new(EHOSTDOWN, "QEMU does not answer; 'kill' ends it"));
		return;
	}
	if (!bv->spec->nics->len) {
		ask_answer(a, g_bytes_new_static("", 0)); /* nothing leads there */
		return;
	}
	q->ssh = g_new0(QemuSsh, 1);
	q->ssh->q = q;
	q->ssh->ask = a;
	q->ssh->key = ssh_key(qemu_vm(q), &owner, key_made, q->ssh);
}

void qemu_ssh_reset(QemuVm *q)
{
	const ProcUser owner = qemu_owner(q);
	g_autofree char *path = ssh_known_hosts(qemu_vm(q));
	int before;

	/* One that lives in memory has new keys of its own now, and not ours. */
	q->ssh_authorized = false;
	before = qemu_as_owner(&owner);
	(void)unlink(path);
	qemu_as_daemon(&owner, before);
}

void qemu_ssh_forget(QemuVm *q)
{
	if (q->agent)
		agent_cancel(q->agent, authorized, q);
	if (q->ssh)
		fail(q->ssh, err_new(EIO, "the VM ended before it answered"));
	q->ssh_authorized = false;
	g_clear_pointer(&q->ssh_key, g_free);
	g_clear_pointer(&q->ssh_user, g_free);
}
