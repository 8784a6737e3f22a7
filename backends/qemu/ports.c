/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forwards into a guest that runs, changed one by one: those that go first, for one that comes may
 * want their port. When one cannot be made, all that was done is taken back. Loop thread only.
 */
#include <errno.h>
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

typedef struct Ports {
	QemuVm *q;
	const SpecChange *change; /* of the op */
	const SpecNic *have, *want;
	GPtrArray *moves; /* of UsernetMove */
	guint at;
	GError *error; /* set: on the way back */
	QmpSlot *slot;
} Ports;

static void ports_free(void *arg)
{
	Ports *p = arg;

	if (p->moves)
		g_ptr_array_unref(p->moves);
	g_clear_error(&p->error);
	g_free(p);
}

static const SpecNic *nic_of(const Spec *spec, const char *key)
{
	for (guint i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];
		g_autofree char *own = g_strdup_printf("nics.%s.ports", n->name);

		if (!strcmp(key, own))
			return n;
	}
	return NULL;
}

bool qemu_ports_can_apply(const BackendVm *bv, const Spec *want, const char *key)
{
	return nic_of(want, key) && nic_of(bv->spec, key);
}

static void ask_monitor(Ports *p, const char *line, QmpFn fn)
{
	json_t *args = json_pack("{s:s}", "command-line", line);

	p->slot = qmp_execute(p->q->qmp, "human-monitor-command", args, fn, p);
}

static void next(Ports *p);

static void reported(void *arg, const json_t *result, const GError *err)
{
	Ports *p = arg;
	const char *text = json_string_value(result);

	p->slot = NULL;
	if (text)
		qemu_report_ports(p->q, p->change->want, text);
	qemu_end_op(p->q, NULL);
}

static void moved(void *arg, const json_t *result, const GError *err)
{
	Ports *p = arg;

	p->slot = NULL;
	if (!p->error && err)
		p->error = g_error_copy(err);
	else if (!p->error)
		p->error = usernet_error(p->change->key, p->moves->pdata[p->at],
					 json_string_value(result), vm_uid(qemu_vm(p->q)));
	if (!p->error)
		p->at++;
	next(p);
}

static void next(Ports *p)
{
	const UsernetMove *m;

	if (!p->q->qmp || !qmp_is_alive(p->q->qmp) || (p->error && !p->at)) {
		qemu_end_op(p->q, p->error ? g_steal_pointer(&p->error)
					   : err_new(EHOSTDOWN, "QEMU does not answer"));
	} else if (p->error) {
		m = p->moves->pdata[--p->at];
		if (m->back)
			ask_monitor(p, m->back, moved);
		else
			next(p);
	} else if (p->at < p->moves->len) {
		m = p->moves->pdata[p->at];
		ask_monitor(p, m->forward, moved);
	} else {
		ask_monitor(p, USERNET_INFO, reported);
	}
}

static void usernet_answered(void *arg, const json_t *result, const GError *err)
{
	Ports *p = arg;
	const char *text = json_string_value(result);
	g_autoptr(GPtrArray) rows = text ? qemu_usernet(text) : NULL;
	g_autofree char *netdev = g_strconcat(QEMU_NET_PREFIX, p->want->name, NULL);

	p->slot = NULL;
	if (!rows) {
		qemu_end_op(p->q, err ? g_error_copy(err)
				      : err_new(EPROTO, "QEMU does not tell its forwards"));
		return;
	}
	p->moves = usernet_plan(rows, &(UsernetEnd){ netdev, QEMU_GUEST_IP }, p->have, p->want);
	next(p);
}

static void ports_run(Op *op, void *ctx)
{
	Ports *p = ctx;

	if (p->q->qmp && !p->q->exited)
		ask_monitor(p, USERNET_INFO, usernet_answered);
	else
		qemu_end_op(p->q, err_new(EHOSTDOWN, "QEMU does not answer; 'kill' ends it"));
}

static void ports_cancel(Op *op, void *ctx)
{
	Ports *p = ctx;

	p->q->op = NULL;
	qmp_cancel(&p->slot);
}

static const Step steps[] = {
	{ "ports", ports_run, ports_cancel, NULL },
	{ 0 },
};

void qemu_ports_apply(QemuVm *q, Op *op)
{
	Ports *p = g_new0(Ports, 1);

	p->q = q;
	q->op = op;
	p->change = op_arg(op);
	p->have = nic_of(q->base.spec, p->change->key);
	p->want = nic_of(p->change->want, p->change->key);
	op_steps(op, steps, p, ports_free);
}
