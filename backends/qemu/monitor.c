/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is connected to a VMM that runs: its monitor, the console, the agent; and its end. All that
 * the core learns of a running VM comes from the events here. Loop thread only.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "backends/qemu/qemu.h"
#include "backends/qemu/save.h"
#include "vmfs/err.h"
#include "vmfs/log.h"

#define QUIT_TIMEOUT_MS 5000
#define LAST_WORDS_MS	200
#define RECONNECT_MS	200

void qemu_gone(QemuVm *q, VmState state, const char *reason, int exit_status)
{
	Op *op = q->op;
	const OpKind kind = op ? op_kind(op) : OP_NONE;
	const bool wanted = kind == OP_STOP || kind == OP_KILL || kind == OP_ADOPT;

	qemu_forget(q);
	vm_remove_run_dir(qemu_vm(q));
	backend_gone(&q->base, state, reason, exit_status);
	if (!op)
		return;
	qemu_end_op(q, wanted ? NULL
			      : err_new(EIO, "the VM ended (%s) before it was done",
					reason ? reason : "no reason known"));
}

void qemu_report_end(QemuVm *q)
{
	const int status = q->exit_status;
	char word[24] = "gone";

	if (q->end.reason) {
		qemu_gone(q, q->end.state, q->end.reason, status);
		return;
	}
	if (status >= 0 && WIFSIGNALED(status))
		snprintf(word, sizeof(word), "signal-%d", WTERMSIG(status));
	else if (status >= 0)
		snprintf(word, sizeof(word), "exit-%d", WEXITSTATUS(status));
	qemu_gone(q, VM_CRASHED, word, status);
}

/*
 * The process is gone. What it wrote before that is still in our sockets and may well say why, or
 * not be read yet: the connection ends by itself once it has been.
 */
static void maybe_dead(QemuVm *q, bool wait)
{
	void (*died)(QemuVm * q) = q->died;

	if (!q->exited || (wait && q->qmp))
		return;
	timer_stop(&q->exit_timer);
	if (died) {
		q->died = NULL;
		died(q);
	} else {
		qemu_report_end(q);
	}
}

static void last_words_over(void *arg)
{
	QemuVm *q = arg;

	q->exit_timer = NULL;
	maybe_dead(q, false);
}

void qemu_exited(void *arg, int status)
{
	QemuVm *q = arg;

	q->exited = true;
	q->exit_status = status;
	if (q->console)
		console_catch_up(q->console);
	qemu_ip_stop(q);
	timer_stop(&q->exit_timer);
	timer_stop(&q->silence_timer);
	q->exit_timer = timer_start(LAST_WORDS_MS, last_words_over, q);
	if (q->qmp)
		qmp_settle(q->qmp);
	else
		maybe_dead(q, true);
}

static void quit_expired(void *arg)
{
	QemuVm *q = arg;

	q->exit_timer = NULL;
	proc_kill(q->proc, SIGKILL);
}

void qemu_quit(QemuVm *q, VmState state, const char *reason)
{
	if (q->exited || !q->proc)
		return;
	if (!q->end.reason)
		q->end = (QemuEnd){ state, reason };
	if (!q->qmp) {
		proc_kill(q->proc, SIGKILL);
		return;
	}
	qmp_execute(q->qmp, "quit", NULL, NULL, NULL);
	if (!q->exit_timer)
		q->exit_timer = timer_start(QUIT_TIMEOUT_MS, quit_expired, q);
}

void qemu_forget(QemuVm *q)
{
	qemu_disconnect(q);
	timer_stop(&q->exit_timer);
	qemu_shares_forget(q, !q->proc || q->exited);
	q->shares_memory = false;
	proc_free(g_steal_pointer(&q->proc));
	proc_user_clear(&q->user);
	q->start_time = 0;
	q->accel = NULL;
	g_clear_pointer(&q->slots, g_hash_table_unref);
	g_clear_pointer(&q->key_names, g_ptr_array_unref);
	g_clear_pointer(&q->leaving, g_hash_table_unref);
	q->exited = false;
	q->end = (QemuEnd){ 0 };
	q->died = NULL;
	q->held = false;
	q->clock_is_late = false;
	q->identity = IDENTITY_OWN;
}

/* ---- the monitor ---- */

static bool bool_of(const json_t *data, const char *key)
{
	return json_is_true(json_object_get(data, key));
}

static const char *string_of(const json_t *data, const char *key)
{
	const char *s = json_string_value(json_object_get(data, key));

	return s ? s : "";
}

static void on_stop(QemuVm *q, const json_t *data)
{
	q->paused = true;
	if (!q->end.reason && !q->held)
		backend_state(&q->base, VM_PAUSED, q->pause_reason);
}

static void on_resume(QemuVm *q, const json_t *data)
{
	q->paused = false;
	q->pause_reason = NULL;
	qemu_start_resumed(q);
	qemu_snapshot_resumed(q);
	if (!q->end.reason && !q->died && !q->held)
		backend_state(&q->base, VM_RUNNING, NULL);
}

static void on_shutdown(QemuVm *q, const json_t *data)
{
	const char *reason = string_of(data, "reason");

	if (!strcmp(reason, "guest-panic"))
		qemu_quit(q, VM_CRASHED, "guest-panic");
	else if (bool_of(data, "guest"))
		qemu_quit(q, VM_STOPPED, "guest-shutdown");
	else if (!strcmp(reason, "host-signal"))
		qemu_quit(q, VM_CRASHED, "host-signal");
	else if (!strcmp(reason, "host-error"))
		qemu_quit(q, VM_CRASHED, "host-error");
	else
		qemu_quit(q, VM_STOPPED, "host-stop");
}

static void on_panic(QemuVm *q, const json_t *data)
{
	qemu_quit(q, VM_CRASHED, "guest-panic");
}

static void on_reset(QemuVm *q, const json_t *data)
{
	backend_ips(&q->base, NULL);
	exec_lost(&q->base, "reset");
	qemu_identity_reset(q);
	qemu_ssh_reset(q);
	if (q->op && (op_kind(q->op) == OP_REBOOT || op_kind(q->op) == OP_RESET))
		qemu_end_op(q, NULL);
	qemu_ip_stop(q);
	qemu_ip_start(q);
}

static void on_port(QemuVm *q, const json_t *data)
{
	const char *id = string_of(data, "id");
	const bool open = bool_of(data, "open");

	qemu_exec_port(q, id, open);
	if (!q->agent || strcmp(id, QEMU_AGENT_ID))
		return;
	agent_port(q->agent, open);
	if (!open)
		exec_lost(&q->base, "agent");
}

static void on_unplugged(QemuVm *q, const json_t *data)
{
	qemu_exec_unplugged(q, string_of(data, "device"));
	qemu_device_deleted(q, string_of(data, "device"));
}

static void on_balloon(QemuVm *q, const json_t *data)
{
	qemu_balloon_changed(q, (uint64_t)json_integer_value(json_object_get(data, "actual")));
}

static void on_ost(QemuVm *q, const json_t *data)
{
	const json_t *info = json_object_get(data, "info");

	qemu_cpu_noticed(q, string_of(info, "device"));
}

/* Comes right before the STOP that it causes. */
static void on_io_error(QemuVm *q, const json_t *data)
{
	if (!strcmp(string_of(data, "action"), "stop"))
		q->pause_reason = bool_of(data, "nospace") ? "no-space" : "io-error";
}

static void on_rx_filter(QemuVm *q, const json_t *data)
{
	qemu_identity_changed(q);
}

static void on_migration(QemuVm *q, const json_t *data)
{
	qemu_stream_event(q, string_of(data, "status"));
}

static void on_job(QemuVm *q, const json_t *data)
{
	qemu_snapshot_job(q, string_of(data, "id"), string_of(data, "status"), NULL);
}

static void on_block_job(QemuVm *q, const json_t *data)
{
	const char *error = json_string_value(json_object_get(data, "error"));

	qemu_snapshot_job(q, string_of(data, "device"), "completed", error);
}

static const struct {
	const char *name;
	void (*fn)(QemuVm *q, const json_t *data);
} events[] = {
	{ "STOP", on_stop },
	{ "RESUME", on_resume },
	{ "SHUTDOWN", on_shutdown },
	{ "GUEST_PANICKED", on_panic },
	{ "RESET", on_reset },
	{ "VSERPORT_CHANGE", on_port },
	{ "DEVICE_DELETED", on_unplugged },
	{ "BALLOON_CHANGE", on_balloon },
	{ "ACPI_DEVICE_OST", on_ost },
	{ "BLOCK_IO_ERROR", on_io_error },
	{ "MIGRATION", on_migration },
	{ "NIC_RX_FILTER_CHANGED", on_rx_filter },
	{ "JOB_STATUS_CHANGE", on_job },
	{ "BLOCK_JOB_COMPLETED", on_block_job },
};

static void monitor_event(void *arg, const char *name, const json_t *data)
{
	QemuVm *q = arg;

	for (size_t i = 0; i < G_N_ELEMENTS(events); i++) {
		if (!strcmp(name, events[i].name)) {
			events[i].fn(q, data);
			return;
		}
	}
}

static void monitor_ready(void *arg)
{
	QemuVm *q = arg;

	if (q->ready)
		q->ready(q);
}

static void reconnect(void *arg)
{
	QemuVm *q = arg;

	q->silence_timer = NULL;
	qemu_resync(q);
}

static void monitor_closed(void *arg, const GError *err)
{
	QemuVm *q = arg;
	void (*lost)(QemuVm * q, const GError *err) = q->lost;

	qemu_ip_stop(q);
	qmp_free(g_steal_pointer(&q->qmp));
	if (q->exited)
		maybe_dead(q, true);
	else if (lost)
		lost(q, err);
	else if (!q->end.reason && !q->silence_timer)
		/* Most likely it is dying: its exit is then reported before this. */
		q->silence_timer = timer_start(RECONNECT_MS, reconnect, q);
}

static const QmpOps monitor_ops = {
	.ready = monitor_ready,
	.event = monitor_event,
	.closed = monitor_closed,
};

void qemu_connect(QemuVm *q, uint64_t timeout_ms)
{
	g_autofree char *path = g_build_filename(vm_run_dir(qemu_vm(q)), QEMU_SOCKET_QMP, NULL);

	qmp_free(g_steal_pointer(&q->qmp));
	q->qmp = qmp_connect(path, timeout_ms, &monitor_ops, q);
}

void qemu_report_accel(QemuVm *q, const json_t *result)
{
	backend_fact(&q->base, "accel",
		     json_is_true(json_object_get(result, "enabled")) ? "kvm" : "tcg");
}

/* ---- console and agent ---- */

static void console_data(void *arg, const char *data, size_t len)
{
	QemuVm *q = arg;

	backend_console(&q->base, data, len);
}

static void console_at(void *arg, uint64_t offset)
{
	QemuVm *q = arg;

	backend_console_at(&q->base, offset);
}

static void console_room(void *arg)
{
	QemuVm *q = arg;

	backend_console_room(&q->base);
}

static const ConsoleOps console_ops = { .data = console_data,
					.at = console_at,
					.room = console_room };

size_t qemu_console_write(BackendVm *bv, const char *data, size_t len)
{
	QemuVm *q = qemu_of(bv);

	return q->console ? console_write(q->console, data, len) : len;
}

static void agent_changed(void *arg, bool up)
{
	QemuVm *q = arg;

	/* It may be that of another boot. What was asked is answered by now. */
	q->cloud_init.tries = 0;
	backend_agent(&q->base, up);
	if (!up)
		return;
	qemu_set_clock(q);
	qemu_identity_tell(q);
	qemu_ip_start(q);
	qemu_ask_again(q);
	qemu_ssh_authorize(q);
}

void qemu_connect_guest(QemuVm *q, size_t past)
{
	const char *dir = vm_run_dir(qemu_vm(q));
	g_autofree char *agent = g_build_filename(dir, QEMU_SOCKET_AGENT, NULL);
	g_autoptr(GError) e = NULL;
	uint64_t offset;

	if (!q->agent)
		q->agent = agent_new(agent, agent_changed, q);
	if (q->console)
		return;
	q->console = console_open(dir, vm_data_dir(qemu_vm(q)), &console_ops, q, &e);
	if (!q->console)
		log_warning("%s: no console: %s", vm_name(qemu_vm(q)), e->message);
	else if (past && vm_console_resume(qemu_vm(q), &offset))
		console_seek(q->console, offset);
	else if (past)
		console_rewind(q->console, past);
}

void qemu_disconnect(QemuVm *q)
{
	qemu_ip_stop(q);
	qemu_fail_questions(q);
	qemu_plug_free(q);
	qemu_resize_free(q);
	qemu_ssh_forget(q);
	qmp_cancel(&q->op_slot);
	qmp_cancel(&q->identity_slot);
	qmp_free(g_steal_pointer(&q->qmp));
	console_free(g_steal_pointer(&q->console));
	agent_free(g_steal_pointer(&q->agent));
	cloudinit_reset(&q->cloud_init);
	timer_stop(&q->silence_timer);
	q->paused = false;
	q->pause_reason = NULL;
	q->ready = NULL;
	q->lost = NULL;
}
