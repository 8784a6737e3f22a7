/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding a VM again: after a restart of the daemon, or after its monitor broke off. What a run
 * leaves behind is its process, the sockets, and what qemu_save() stored. The run directory belongs
 * to the VM's owner, so a pid found there counts only if the owner owns the process as well.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/qemu/qemu.h"
#include "backends/qemu/save.h"
#include "vmfs/err.h"
#include "vmfs/host.h"

#define GROUP		  "backend"
#define ANSWER_TIMEOUT_MS 5000
#define PAST		  (64u << 10) /* bytes of console that readers are shown, as if we had been there */

void qemu_save(const BackendVm *bv, GKeyFile *run)
{
	const QemuVm *q = (const QemuVm *)bv;

	g_key_file_set_string(run, GROUP, "boot", host_boot_id());
	qemu_shares_save(q, run);
	if (!q->proc)
		return;
	g_key_file_set_integer(run, GROUP, "pid", proc_pid(q->proc));
	g_key_file_set_uint64(run, GROUP, "start_time", q->start_time);
	if (q->accel)
		g_key_file_set_string(run, GROUP, "accel", q->accel);
	g_key_file_set_boolean(run, GROUP, "shares-memory", q->shares_memory);
	if (q->identity)
		g_key_file_set_boolean(run, GROUP, "identity-copied", true);
	if (q->slots) {
		g_autofree char *slots = qemu_slots_text(q->slots, q->bridges);

		g_key_file_set_string(run, GROUP, "slots", slots);
	}
}

static void known(QemuVm *q, VmState state, const char *reason)
{
	timer_stop(&q->silence_timer);
	backend_state(&q->base, state, reason);
	if (q->op && op_kind(q->op) == OP_ADOPT)
		qemu_end_op(q, NULL);
}

static void unknown(QemuVm *q)
{
	known(q, VM_UNKNOWN, "no-answer");
}

/* ---- what it says when it answers ---- */

/* A sleep or a snapshot made it stand still when the daemon ended. */
static bool was_held(const QemuVm *q)
{
	GKeyFile *run = vm_run_file(qemu_vm(q));
	g_autofree char *op = run ? g_key_file_get_string(run, "vm", "operation", NULL) : NULL;
	g_autofree char *pushed = run ? g_key_file_get_string(run, "vm", "pushed", NULL) : NULL;

	return !g_strcmp0(pushed, "running") &&
	       (!g_strcmp0(op, "sleep") || !g_strcmp0(op, "snapshot"));
}

/* Neither a start nor a restore had come to where its vCPUs run. */
static bool never_ran(const QemuVm *q)
{
	GKeyFile *run = vm_run_file(qemu_vm(q));
	g_autofree char *op = run ? g_key_file_get_string(run, "vm", "operation", NULL) : NULL;
	g_autofree char *pushed = run ? g_key_file_get_string(run, "vm", "pushed", NULL) : NULL;

	return (!g_strcmp0(op, "start") || !g_strcmp0(op, "restore")) &&
	       (!g_strcmp0(pushed, "stopped") || !g_strcmp0(pushed, "crashed"));
}

static void released(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	if (err)
		unknown(q);
	else
		known(q, VM_RUNNING, NULL);
}

static void stream_aborted(void *arg, const GError *err)
{
	QemuVm *q = arg;

	q->held = false;
	if (q->qmp)
		qmp_execute(q->qmp, "cont", NULL, released, q);
}

static void jobs_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const json_t *job;
	size_t i;

	json_array_foreach(result, i, job)
	{
		const char *id = json_string_value(json_object_get(job, "device"));

		if (id && g_str_has_prefix(id, QEMU_COPY_PREFIX))
			qemu_snapshot_cancel_copy(q, id);
	}
}

static void snapshot_aborted(void *arg, const GError *err)
{
}

/* The snapshot that was being taken is gone: QEMU need not go on with it while the guest runs. */
static void abort_snapshot(QemuVm *q)
{
	GKeyFile *run = vm_run_file(qemu_vm(q));
	g_autofree char *op = run ? g_key_file_get_string(run, "vm", "operation", NULL) : NULL;

	if (g_strcmp0(op, "snapshot"))
		return;
	qmp_execute(q->qmp, "query-block-jobs", NULL, jobs_answered, q);
	if (!q->held)
		qemu_stream_abort(q, snapshot_aborted, q);
}

static void unhold(QemuVm *q)
{
	q->held = true;
	/* What a sleep that came to nothing has left. */
	qemu_sleep_drop(q, NULL);
	abort_snapshot(q);
	qemu_stream_abort(q, stream_aborted, q);
}

static void take_status(QemuVm *q, const char *status)
{
	if (!strcmp(status, "running")) {
		q->paused = false;
		abort_snapshot(q);
		known(q, VM_RUNNING, NULL);
		qemu_ip_start(q);
	} else if (!strcmp(status, "shutdown")) {
		qemu_quit(q, VM_STOPPED, "guest-shutdown");
	} else if (!strcmp(status, "guest-panicked")) {
		qemu_quit(q, VM_CRASHED, "guest-panic");
	} else if (vm_saved(qemu_vm(q)) == SAVED_ASLEEP) {
		/* It was on its way to sleep, or to wake: nothing is lost when it is asleep. */
		qemu_quit(q, VM_ASLEEP, "slept");
	} else if (vm_saved(qemu_vm(q)) == SAVED_WAKING || was_held(q)) {
		unhold(q);
	} else if (never_ran(q) ||
		   (!strcmp(status, "prelaunch") && vm_state(qemu_vm(q)) == VM_STARTING)) {
		/* The start was cut off, and is undone. */
		qemu_quit(q, VM_STOPPED, "start-interrupted");
	} else {
		q->paused = true;
		known(q, VM_PAUSED, strcmp(status, "paused") ? status : NULL);
	}
}

static void status_answered(void *arg, const json_t *result, const GError *err)
{
	static const char *const words[] = {
		"running",  "shutdown",	      "guest-panicked", "prelaunch", "paused",
		"io-error", "internal-error", "suspended",	"watchdog",  "debug",
		"save-vm",  "postmigrate",    "finish-migrate", "inmigrate", "restore-vm",
		"colo",	    "preconfig",
	};
	QemuVm *q = arg;
	const char *status = json_string_value(json_object_get(result, "status"));

	if (status)
		q->lost = NULL;
	for (size_t i = 0; status && i < G_N_ELEMENTS(words); i++) {
		if (!strcmp(status, words[i])) {
			take_status(q, words[i]);
			return;
		}
	}
	if (qmp_is_alive(q->qmp)) /* else resync_lost() is told next */
		unknown(q);
}

static void chardevs_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const json_t *c;
	size_t i;

	json_array_foreach(result, i, c)
	{
		const char *label = json_string_value(json_object_get(c, "label"));
		if (q->agent && label && !strcmp(label, QEMU_SOCKET_AGENT))
			agent_port(q->agent, json_is_true(json_object_get(c, "frontend-open")));
	}
}

static void kvm_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	if (!err)
		qemu_report_accel(q, result);
}

static void usernet_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	if (json_is_string(result))
		qemu_report_ports(q, q->base.spec, json_string_value(result));
}

static void peripherals_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	if (!err)
		qemu_reconcile(q, result);
	if (!err)
		qemu_resize_reconcile(q);
}

void qemu_find_process(QemuVm *q)
{
	Vm *vm = qemu_vm(q);
	g_autofree char *path = g_build_filename(vm_run_dir(vm), QEMU_PID_FILE, NULL);
	char text[32] = "", proc[32];
	struct stat st;
	const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return;
	const ssize_t n = read(fd, text, sizeof(text) - 1);
	close(fd);
	const pid_t pid = n > 0 ? (pid_t)strtol(text, NULL, 10) : 0;
	if (pid <= 1)
		return;
	q->proc = proc_adopt(pid, 0, qemu_exited, q, NULL);
	if (!q->proc)
		return;
	g_snprintf(proc, sizeof(proc), "/proc/%d", (int)pid);
	/* Looked at while the pidfd keeps the pid from being used again. */
	if (stat(proc, &st) || st.st_uid != vm_uid(vm) || pid == getpid()) {
		proc_free(g_steal_pointer(&q->proc));
		return;
	}
	q->start_time = proc_start_time(pid);
	backend_pid(&q->base, pid);
	backend_changed(&q->base);
}

static void resync_ready(QemuVm *q)
{
	json_t *args = json_object(), *path = json_object();

	q->ready = NULL;
	timer_stop(&q->silence_timer);
	if (!q->proc)
		qemu_find_process(q);
	if (!q->proc) {
		/* Somebody answers at the owner's socket whom we could never end. */
		unknown(q);
		json_decref(args);
		json_decref(path);
		return;
	}
	json_object_set_new(args, "command-line", json_string(USERNET_INFO));
	json_object_set_new(path, "path", json_string("/machine/peripheral"));
	qmp_execute(q->qmp, "qom-list", path, peripherals_answered, q);
	qmp_execute(q->qmp, "query-chardev", NULL, chardevs_answered, q);
	qmp_execute(q->qmp, "query-kvm", NULL, kvm_answered, q);
	qmp_execute(q->qmp, "human-monitor-command", args, usernet_answered, q);
	qemu_report_vnc(q);
	qemu_report_shares(q);
	qmp_execute(q->qmp, "query-status", NULL, status_answered, q);
}

static void gone(QemuVm *q)
{
	if (vm_saved(qemu_vm(q)) == SAVED_ASLEEP) {
		qemu_gone(q, VM_ASLEEP, "slept", -1);
		return;
	}
	/* What a sleep that came to nothing has left. */
	qemu_sleep_drop(q, NULL);
	switch (was_held(q) ? VM_RUNNING : vm_state(qemu_vm(q))) {
	case VM_STARTING:
		qemu_gone(q, VM_STOPPED, "start-interrupted", -1);
		break;
	case VM_STOPPING:
		qemu_gone(q, VM_STOPPED, "stopped", -1);
		break;
	case VM_STOPPED:
	case VM_RUNNING:
	case VM_PAUSED:
	case VM_ASLEEP:
	case VM_CRASHED:
	case VM_UNKNOWN:
	case VM_STATE_MAX:
		qemu_gone(q, VM_CRASHED, "gone", -1);
		break;
	}
}

static void resync_lost(QemuVm *q, const GError *err)
{
	q->lost = NULL;
	q->ready = NULL;
	if (q->proc) {
		if (!q->end.reason)
			unknown(q);
		return;
	}
	/* Nobody holds the sockets, so nothing was started, or it has gone since. */
	gone(q);
}

/* The connection stays: should it answer after all, we shall know. */
static void no_answer(void *arg)
{
	QemuVm *q = arg;

	q->silence_timer = NULL;
	if (!q->proc)
		qemu_find_process(q);
	unknown(q);
}

void qemu_resync(QemuVm *q)
{
	q->ready = resync_ready;
	q->lost = resync_lost;
	timer_stop(&q->silence_timer);
	q->silence_timer = timer_start(ANSWER_TIMEOUT_MS, no_answer, q);
	qemu_connect(q, 0);
	qemu_connect_guest(q, PAST);
}

/* ---- after a restart of the daemon ---- */

static void cancel_adopt(Op *op, void *ctx)
{
	QemuVm *q = ctx;

	q->op = NULL;
}

void qemu_adopt(BackendVm *bv, Op *op)
{
	QemuVm *q = qemu_of(bv);
	GKeyFile *run = vm_run_file(bv->vm);
	g_autofree char *boot = run ? g_key_file_get_string(run, GROUP, "boot", NULL) : NULL;
	g_autofree char *accel = run ? g_key_file_get_string(run, GROUP, "accel", NULL) : NULL;
	g_autofree char *slots = run ? g_key_file_get_string(run, GROUP, "slots", NULL) : NULL;
	const int pid = run ? g_key_file_get_integer(run, GROUP, "pid", NULL) : 0;

	q->op = op;
	op_on_cancel(op, cancel_adopt, q);
	if (boot && *boot && strcmp(boot, host_boot_id())) {
		if (vm_saved(bv->vm) == SAVED_ASLEEP)
			gone(q);
		else
			qemu_gone(q, VM_STOPPED, "host-reboot", -1);
		return;
	}
	if (pid > 0) {
		q->start_time = g_key_file_get_uint64(run, GROUP, "start_time", NULL);
		q->proc = proc_adopt(pid, q->start_time, qemu_exited, q, NULL);
		/* Else what is stored may be of a run before: a full disk keeps what it has. */
		if (q->proc)
			backend_pid(bv, pid);
		else
			q->start_time = 0;
	}
	if (accel)
		q->accel = g_intern_string(accel);
	g_clear_pointer(&q->slots, g_hash_table_unref);
	q->slots = qemu_slots_parse(slots, &q->bridges);
	qemu_shares_adopt(q, run);
	q->shares_memory = run && g_key_file_get_boolean(run, GROUP, "shares-memory", NULL);
	qemu_identity_adopt(q, run && g_key_file_get_boolean(run, GROUP, "identity-copied", NULL));
	qemu_resync(q);
}
