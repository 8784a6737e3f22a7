/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory and CPUs of a guest that runs, up to the maximum that it was started with. Memory beyond
 * what the guest is to have is in its balloon. CPUs are only added: under TCG, QEMU 7.2 corrupts
 * its memory when one comes after another has gone. Loop thread only.
 */
#include <errno.h>
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

#define BALLOON_MS 10000
#define NOTICE_MS  2000 /* until the guest has seen a new CPU, and put it to use */

struct Resize {
	const Spec *want; /* of the op */
	bool memory;
	char *coming; /* the id of a CPU that the guest has not seen yet; or NULL */
	bool plugged, done;
};

static QmpSlot *set_balloon(QemuVm *q, uint64_t bytes, QmpFn fn)
{
	return qmp_execute(q->qmp, "balloon", json_pack("{s:I}", "value", (json_int_t)bytes), fn,
			   q);
}

void qemu_balloon_start(QemuVm *q)
{
	if (q->base.spec->max_memory)
		(void)set_balloon(q, q->base.spec->memory, NULL);
}

static void end(QemuVm *q, GError *take)
{
	q->resize->done = !take;
	qemu_end_op(q, take);
}

/* ---- memory ---- */

static void memory_late(void *arg)
{
	QemuVm *q = arg;

	q->op_timer = NULL;
	end(q,
	    err_new(ETIMEDOUT,
		    "memory: the guest did not follow within %d s, so it stays as it was: is its "
		    "driver virtio_balloon loaded, and has it memory to spare?",
		    BALLOON_MS / 1000));
}

void qemu_balloon_changed(QemuVm *q, uint64_t bytes)
{
	const struct Resize *r = q->resize;

	if (r && r->memory && bytes == r->want->memory)
		end(q, NULL);
}

static void balloon_told(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	q->op_slot = NULL;
	if (err)
		end(q, g_error_copy(err));
	else
		qemu_balloon_changed(
			q, (uint64_t)json_integer_value(json_object_get(result, "actual")));
}

static void balloon_set(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	(void)result;
	/* There is no event where it has that size already. */
	q->op_slot = err ? NULL : qmp_execute(q->qmp, "query-balloon", NULL, balloon_told, q);
	if (err)
		end(q, g_error_copy(err));
}

/* ---- CPUs ---- */

static void next_cpu(QemuVm *q);

static unsigned count_cpus(const json_t *cpus, const json_t **ret_free)
{
	unsigned n = 0;
	const json_t *item;
	size_t i;

	/* The last of the machine comes first. */
	json_array_foreach(cpus, i, item)
	{
		if (!json_object_get(item, "qom-path"))
			*ret_free = item;
		else
			n += (unsigned)json_integer_value(json_object_get(item, "vcpus-count"));
	}
	return n;
}

static void set_vcpus_answered(void *arg, const json_t *result, const GError *err)
{
	(void)result;
	(void)err; /* an agent that cannot: the guest may do it by itself */
	end(arg, NULL);
}

static void vcpus_told(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	json_t *offline = json_array();
	const json_t *item;
	size_t i;

	json_array_foreach(result, i, item)
	{
		if (json_is_false(json_object_get(item, "online")))
			json_array_append_new(offline,
					      json_pack("{s:O,s:b}", "logical-id",
							json_object_get(item, "logical-id"),
							"online", 1));
	}
	if (!err && json_array_size(offline)) {
		agent_request(q->agent, "guest-set-vcpus", json_pack("{s:o}", "vcpus", offline),
			      false, NOTICE_MS, set_vcpus_answered, q);
	} else {
		json_decref(offline);
		end(q, NULL);
	}
}

/* Linux leaves a new CPU to user space, and that to us where nobody else cares. */
static void put_to_use(QemuVm *q)
{
	if (q->resize->plugged && q->agent && agent_is_open(q->agent))
		agent_request(q->agent, "guest-get-vcpus", NULL, false, NOTICE_MS, vcpus_told, q);
	else
		end(q, NULL);
}

static void notice_late(void *arg)
{
	QemuVm *q = arg;

	q->op_timer = NULL;
	g_clear_pointer(&q->resize->coming, g_free);
	next_cpu(q);
}

static void cpu_added(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	(void)result;
	q->op_slot = NULL;
	if (err)
		end(q, g_error_copy(err));
	else if (q->resize->coming)
		q->op_timer = timer_start(NOTICE_MS, notice_late, q);
	else
		next_cpu(q); /* the guest was faster than QEMU's answer */
}

static void add_cpu(QemuVm *q, const json_t *cpu, unsigned number)
{
	json_t *args = json_deep_copy(json_object_get(cpu, "props"));

	if (!args)
		args = json_object();
	q->resize->plugged = true;
	q->resize->coming = g_strdup_printf("cpu%u", number);
	json_object_set_new(args, "id", json_string(q->resize->coming));
	json_object_set(args, "driver", json_object_get(cpu, "type"));
	q->op_slot = qmp_execute(q->qmp, "device_add", args, cpu_added, q);
}

static void cpus_told(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const unsigned want = q->resize->want->cpus;
	const json_t *empty = NULL;
	const unsigned have = count_cpus(result, &empty);

	q->op_slot = NULL;
	if (err)
		end(q, g_error_copy(err));
	else if (have < want && empty)
		add_cpu(q, empty, have);
	else
		put_to_use(q);
}

static void next_cpu(QemuVm *q)
{
	if (qemu_need_monitor(q))
		q->op_slot = qmp_execute(q->qmp, "query-hotpluggable-cpus", NULL, cpus_told, q);
}

void qemu_cpu_noticed(QemuVm *q, const char *device)
{
	struct Resize *r = q->resize;

	if (!r || g_strcmp0(r->coming, device))
		return;
	g_clear_pointer(&r->coming, g_free);
	if (q->op_timer) {
		timer_stop(&q->op_timer);
		next_cpu(q);
	}
}

/* ---- the op ---- */

bool qemu_resize_can_apply(const BackendVm *bv, const Spec *want, const char *key)
{
	const Spec *have = bv->spec;

	if (vm_state(bv->vm) != VM_RUNNING)
		return false;
	if (!strcmp(key, "memory"))
		return have->max_memory && want->memory <= have->max_memory;
	return !strcmp(key, "cpus") && want->cpus > have->cpus && want->cpus <= have->max_cpus;
}

void qemu_resize_apply(QemuVm *q, Op *op)
{
	const SpecChange *change = op_arg(op);
	struct Resize *r = g_new0(struct Resize, 1);

	qemu_begin_op(q, op);
	r->want = change->want;
	r->memory = !strcmp(change->key, "memory");
	q->resize = r;
	if (!qemu_need_monitor(q))
		return;
	if (!r->memory) {
		next_cpu(q);
		return;
	}
	q->op_timer = timer_start(BALLOON_MS, memory_late, q);
	q->op_slot = set_balloon(q, r->want->memory, balloon_set);
}

static void cpus_counted(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const json_t *empty = NULL;
	const unsigned have = count_cpus(result, &empty);
	g_autofree char *text = g_strdup_printf("{cpus: %u}\n", have);
	g_autoptr(Spec) said = NULL, is = NULL;

	if (err || !have || !q->base.spec || have == q->base.spec->cpus)
		return;
	said = spec_restore(text, strlen(text), NULL);
	is = said ? spec_merge(q->base.spec, said, "cpus") : NULL;
	if (is)
		backend_spec(&q->base, is);
}

void qemu_resize_reconcile(QemuVm *q)
{
	if (!q->qmp || q->exited)
		return;
	if (q->base.spec->max_cpus)
		qmp_execute(q->qmp, "query-hotpluggable-cpus", NULL, cpus_counted, q);
	qemu_balloon_start(q);
}

void qemu_resize_free(QemuVm *q)
{
	struct Resize *r = g_steal_pointer(&q->resize);

	if (!r)
		return;
	if (q->agent) {
		agent_cancel(q->agent, vcpus_told, q);
		agent_cancel(q->agent, set_vcpus_answered, q);
	}
	/* Half of it may have happened. */
	if (!r->done)
		qemu_resize_reconcile(q);
	g_free(r->coming);
	g_free(r);
}
