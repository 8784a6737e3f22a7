/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU as a backend: the class, and the operations on a VM that runs. Starting is in start.c,
 * finding a VM again after a restart of the daemon in adopt.c. Loop thread only.
 */
#include "backends/qemu/qemu.h"
#include "backends/qemu/save.h"
#include "backends/qemu/start.h"

#include <errno.h>
#include <signal.h>

#include "vmfs/err.h"

#define AGENT_TIMEOUT_MS 1000 /* then the guest is asked in another way */

static void clear_op(QemuVm *q)
{
	q->op = NULL;
	qmp_cancel(&q->op_slot);
	timer_stop(&q->op_timer);
	qemu_plug_free(q);
	qemu_resize_free(q);
}

static void guest_asked(void *arg, const json_t *result, const GError *err);

static void cancel_op(Op *op, void *ctx)
{
	QemuVm *q = ctx;

	if (q->agent)
		agent_cancel(q->agent, guest_asked, q);
	clear_op(q);
}

void qemu_end_op(QemuVm *q, GError *take)
{
	Op *op = q->op;

	clear_op(q);
	if (take)
		op_fail(op, take);
	else
		op_ok(op);
}

void qemu_begin_op(QemuVm *q, Op *op)
{
	q->op = op;
	op_on_cancel(op, cancel_op, q);
}

/* False, and the op has failed, when there is no monitor to talk to. */
bool qemu_need_monitor(QemuVm *q)
{
	if (q->qmp && !q->exited)
		return true;
	qemu_end_op(q, err_new(EHOSTDOWN, "QEMU does not answer; 'kill' ends it"));
	return false;
}

static void state_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	q->op_slot = NULL;
	/* The events have told already, unless it was so before. */
	if (!err)
		backend_state(&q->base, op_kind(q->op) == OP_PAUSE ? VM_PAUSED : VM_RUNNING, NULL);
	qemu_end_op(q, err ? g_error_copy(err) : NULL);
}

static void qemu_pause(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);

	qemu_begin_op(q, op);
	if (qemu_need_monitor(q))
		q->op_slot = qmp_execute(q->qmp, "stop", NULL, state_answered, q);
}

static void qemu_resume(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);

	qemu_begin_op(q, op);
	if (qemu_need_monitor(q))
		q->op_slot = qmp_execute(q->qmp, "cont", NULL, state_answered, q);
}

/* Good news are not the end of it: that is an event. */
static void asked_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	q->op_slot = NULL;
	if (err && op_kind(q->op) != OP_STOP) /* which is forced in time */
		qemu_end_op(q, g_error_copy(err));
}

static void qemu_reset(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);

	qemu_begin_op(q, op);
	if (qemu_need_monitor(q))
		q->op_slot = qmp_execute(q->qmp, "system_reset", NULL, asked_answered, q);
}

/* Ask by what the machine has: the power button, or three keys. */
static void ask_by_hardware(QemuVm *q)
{
	const bool stop = op_kind(q->op) == OP_STOP;

	if (!q->qmp) /* a reboot then fails at its deadline */
		return;
	if (!stop && q->base.spec->machine == MACHINE_MICROVM)
		qemu_end_op(q, err_new(EOPNOTSUPP, "the guest's agent does not answer, and a "
						   "microvm has no keyboard; try 'reset'"));
	else if (stop)
		q->op_slot = qmp_execute(q->qmp, "system_powerdown", NULL, asked_answered, q);
	else
		q->op_slot = qmp_execute(q->qmp, "send-key", qemu_keys("ctrl-alt-delete"),
					 asked_answered, q);
}

static void guest_asked(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	if (err)
		ask_by_hardware(q);
}

static void ask_guest(QemuVm *q)
{
	if (!q->agent || !agent_is_open(q->agent)) {
		ask_by_hardware(q);
		return;
	}
	json_t *args = json_object();
	json_object_set_new(args, "mode",
			    json_string(op_kind(q->op) == OP_STOP ? "powerdown" : "reboot"));
	agent_request(q->agent, "guest-shutdown", args, true, AGENT_TIMEOUT_MS, guest_asked, q);
}

void qemu_ask_again(QemuVm *q)
{
	const OpKind kind = q->op && !q->end.reason ? op_kind(q->op) : OP_NONE;

	if (kind == OP_REBOOT || (kind == OP_STOP && q->op_timer))
		ask_guest(q);
}

static void qemu_reboot(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);

	qemu_begin_op(q, op);
	if (!qemu_need_monitor(q))
		return;
	ask_guest(q);
	op_accept(op);
}

static void force_stop(void *arg)
{
	QemuVm *q = arg;

	q->op_timer = NULL;
	qemu_quit(q, VM_STOPPED, "forced");
}

static void qemu_stop(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);
	const uint64_t ms = op_seconds_ms(op);

	qemu_begin_op(q, op);
	op_accept(op);
	if (!q->proc) {
		qemu_gone(q, VM_STOPPED, "forced", -1);
	} else if (!ms || !q->qmp) {
		qemu_quit(q, VM_STOPPED, "forced");
	} else if (!q->end.reason) { /* else it is on its way out already */
		/* A guest whose vCPUs stand still could not hear us. */
		if (q->paused)
			qmp_execute(q->qmp, "cont", NULL, NULL, NULL);
		q->op_timer = timer_start(ms, force_stop, q);
		ask_guest(q);
	}
}

static void memory_dropped(QemuVm *q)
{
	qemu_gone(q, VM_STOPPED, "killed", -1);
}

/* It is asleep: what it slept in goes. */
static void kill_memory(QemuVm *q)
{
	(void)vm_set_saved(qemu_vm(q), SAVED_NONE, NULL, NULL);
	qemu_sleep_drop(q, memory_dropped);
}

static void qemu_kill(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);

	qemu_begin_op(q, op);
	if (!q->proc && vm_saved(bv->vm)) {
		kill_memory(q);
		return;
	}
	if (!q->proc)
		qemu_find_process(q);
	if (!q->proc) {
		qemu_gone(q, VM_STOPPED, "killed", -1);
		return;
	}
	q->end = (QemuEnd){ VM_STOPPED, "killed" };
	proc_kill(q->proc, SIGKILL);
}

static bool check(Backend *be, const Spec *spec, GError **err)
{
	return qemu_check(qemu_host(), spec, err);
}

/* KVM may work for the daemon, but not be permitted to the VM's owner. */
const char *qemu_accel(const Spec *spec)
{
	if (spec->accel == ACCEL_AUTO)
		return qemu_host()->kvm ? "kvm:tcg" : "tcg";
	return spec->accel == ACCEL_KVM ? "kvm" : "tcg";
}

void qemu_fill_args(QemuVm *q, const char *accel, GHashTable *slots, QemuArgs *args)
{
	Vm *vm = qemu_vm(q);
	const QemuHost *host = qemu_host();

	*args = (QemuArgs){
		.spec = q->base.spec,
		.id = vm_id(vm),
		.name = vm_name(vm),
		.run_dir = vm_run_dir(vm),
		.data_dir = vm_data_dir(vm),
		.binary = host->binary ? host->binary : "qemu-system-x86_64",
		.accel = accel,
		.slots = slots,
		.uefi_code = host->uefi_code ? host->uefi_code : "",
		.virtiofs = host->virtiofsd && vm_uid(vm) == 0,
	};
}

static bool cmdline(BackendVm *bv, GPtrArray *argv, GError **err)
{
	QemuVm *q = qemu_of(bv);
	g_autoptr(GHashTable) slots = NULL;
	QemuWake *wake;
	QemuArgs args;
	unsigned bridges;

	if (!qemu_check(qemu_host(), bv->spec, err) || !qemu_clone_plan(q, &wake, err))
		return false;
	slots = qemu_slots_parse(wake ? qemu_wake_slots(wake) : NULL, &bridges);
	qemu_fill_args(q, qemu_accel(bv->spec), slots, &args);
	args.bridges = bridges;
	if (wake)
		qemu_wake_args(wake, &args);
	qemu_slots_fill(&args);
	qemu_argv(&args, argv);
	if (wake)
		qemu_wake_free(wake);
	return true;
}

static void fini(BackendVm *bv)
{
	QemuVm *q = qemu_of(bv);

	qemu_start_abandon(q);
	qemu_sleep_abandon(q);
	qemu_snapshot_abandon(q);
	savedir_cancel(&q->dropping);
	prepare_forget(&q->disks);
	clear_op(q);
	qemu_shares_forget(q, false);
	qemu_forget(q);
}

static void apply(BackendVm *bv, Op *op)
{
	const SpecChange *change = op_arg(op);

	if (qemu_ports_can_apply(bv, change->want, change->key))
		qemu_ports_apply(qemu_of(bv), op);
	else if (qemu_resize_can_apply(bv, change->want, change->key))
		qemu_resize_apply(qemu_of(bv), op);
	else
		qemu_plug_apply(qemu_of(bv), op);
}

static bool can_apply(const BackendVm *bv, const Spec *want, const char *key)
{
	return qemu_ports_can_apply(bv, want, key) || qemu_resize_can_apply(bv, want, key) ||
	       qemu_plug_can_apply(bv, want, key);
}

static void want_ip(BackendVm *bv)
{
	qemu_ip_start(qemu_of(bv));
}

const BackendClass qemu_class = {
	.name = "qemu",
	.doc = "QEMU, one process a VM, controlled by QMP",
	.vm_size = sizeof(QemuVm),
	.clones = true,
	.probe = qemu_probe,
	.check = check,
	.cmdline = cmdline,
	.fini = fini,
	.save = qemu_save,
	.op = {
		[OP_START] = qemu_start,
		[OP_STOP] = qemu_stop,
		[OP_KILL] = qemu_kill,
		[OP_PAUSE] = qemu_pause,
		[OP_RESUME] = qemu_resume,
		[OP_REBOOT] = qemu_reboot,
		[OP_RESET] = qemu_reset,
		[OP_SLEEP] = qemu_sleep,
		[OP_WAKE] = qemu_wake,
		[OP_SNAPSHOT] = qemu_snapshot,
		[OP_RESTORE] = qemu_restore,
		[OP_ADOPT] = qemu_adopt,
		[OP_APPLY] = apply,
		[OP_EXEC] = qemu_exec_start,
		[OP_EXEC_SIGNAL] = qemu_exec_signal,
	},
	.can_apply = can_apply,
	.console_write = qemu_console_write,
	.ask = {
		[ASK_SCREEN] = qemu_ask_screen,
		[ASK_STATS] = qemu_ask_stats,
		[ASK_SSH] = qemu_ask_ssh,
		[ASK_KEYS] = qemu_ask_keys,
		[ASK_MONITOR] = qemu_ask_monitor,
	},
	.want_ip = want_ip,
	.exec = &qemu_exec,
	.want_cloud_init = qemu_want_cloud_init,
};
