/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forwards into a guest that runs, changed one by one: those that go first, for one that comes may
 * want their port. When one cannot be made, all that was done is taken back. Loop thread only.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

/* A command of the monitor for people, and the one that undoes it. */
typedef struct Move {
	char *forward, *back;
} Move;

typedef struct Ports {
	QemuVm *q;
	const SpecChange *change; /* of the op */
	const SpecNic *have, *want;
	GPtrArray *moves; /* of Move */
	guint at;
	GError *error; /* set: on the way back */
	QmpSlot *slot;
} Ports;

static void move_free(void *arg)
{
	Move *m = arg;

	g_free(m->forward);
	g_free(m->back);
	g_free(m);
}

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

static char *add_text(const Ports *p, const SpecPort *port, unsigned host_port)
{
	return g_strdup_printf("hostfwd_add " QEMU_NET_PREFIX "%s %s:%s:%u-:%u", p->want->name,
			       port->udp ? "udp" : "tcp", port->address, host_port,
			       port->guest_port);
}

static char *remove_text(const Ports *p, const SpecPort *port, unsigned host_port)
{
	return g_strdup_printf("hostfwd_remove " QEMU_NET_PREFIX "%s %s:%s:%u", p->want->name,
			       port->udp ? "udp" : "tcp", port->address, host_port);
}

static void add_move(Ports *p, char *forward_take, char *back_take)
{
	Move *m = g_new0(Move, 1);

	m->forward = forward_take;
	m->back = back_take;
	g_ptr_array_add(p->moves, m);
}

static void plan_new(Ports *p, bool picked)
{
	for (guint i = 0; i < p->want->ports->len; i++) {
		const SpecPort *port = p->want->ports->pdata[i];

		if (picked == !port->host_port && is_extra(p->want->ports, i, p->have->ports))
			add_move(p, add_text(p, port, port->host_port),
				 picked ? NULL : remove_text(p, port, port->host_port));
	}
}

/* Of a forward from a port that the system picked, `usernet` tells which. */
static void plan(Ports *p, const char *usernet)
{
	for (guint i = 0; i < p->have->ports->len; i++) {
		const SpecPort *port = p->have->ports->pdata[i];
		unsigned host_port = port->host_port;

		if (!is_extra(p->have->ports, i, p->want->ports))
			continue;
		if (!host_port)
			host_port = qemu_usernet_port(usernet, p->have, port);
		if (host_port)
			add_move(p, remove_text(p, port, host_port), add_text(p, port, host_port));
	}
	/* What the system picks a port for does not fail, and could not be named to undo it. */
	plan_new(p, false);
	plan_new(p, true);
}

static void ask_monitor(Ports *p, const char *line, QmpFn fn)
{
	json_t *args = json_pack("{s:s}", "command-line", line);

	p->slot = qmp_execute(p->q->qmp, "human-monitor-command", args, fn, p);
}

static GError *move_error(const Ports *p, const char *text)
{
	const Move *m = p->moves->pdata[p->at];
	const char *rule = strrchr(m->forward, ' ') + 1;
	unsigned port = 0;

	if (strncmp(m->forward, "hostfwd_add", strlen("hostfwd_add")))
		return err_new(EIO, "%s: %s", p->change->key, text);
	(void)sscanf(rule, "%*[a-z]:%*[0-9.]:%u-", &port);
	/* QEMU does not say why. */
	if (port < 1024 && vm_uid(qemu_vm(p->q)))
		return err_new(EACCES,
			       "%s: cannot forward %s: ports below 1024 are not for the VM's owner",
			       p->change->key, rule);
	return err_new(EADDRINUSE,
		       "%s: cannot forward %s: that port of the host is taken; use another, or 0 "
		       "for a free one",
		       p->change->key, rule);
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
	const char *text = json_string_value(result);

	p->slot = NULL;
	/* Nothing is said of what went well, but for "host forwarding rule for ... removed". */
	if (!p->error && err)
		p->error = g_error_copy(err);
	else if (!p->error && text && *text && !strstr(text, " removed"))
		p->error = move_error(p, text);
	else if (!p->error)
		p->at++;
	next(p);
}

static void next(Ports *p)
{
	const Move *m;

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
		ask_monitor(p, "info usernet", reported);
	}
}

static void usernet_answered(void *arg, const json_t *result, const GError *err)
{
	Ports *p = arg;
	const char *text = json_string_value(result);

	p->slot = NULL;
	if (err || !text) {
		qemu_end_op(p->q, err ? g_error_copy(err)
				      : err_new(EPROTO, "QEMU does not tell its forwards"));
		return;
	}
	plan(p, text);
	next(p);
}

static void ports_run(Op *op, void *ctx)
{
	Ports *p = ctx;

	if (p->q->qmp && !p->q->exited)
		ask_monitor(p, "info usernet", usernet_answered);
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
	p->moves = g_ptr_array_new_with_free_func(move_free);
	op_steps(op, steps, p, ports_free);
}
