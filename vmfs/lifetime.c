/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers exist only for VMs that wait to be started again. All that expire share one descriptor,
 * which is armed for the first of them and tells as well when the clock is set.
 */
#include "vmfs/lifetime.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "backends/backend.h"
#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/host.h"
#include "vmfs/log.h"
#include "vmfs/registry.h"
#include "vmfs/specval.h"
#include "vmfs/store.h"
#include "vmfs/vm.h"

#define MAX_PAUSE_MS  60000 /* between two starts, unless the spec wants a longer one */
#define RAN_WELL_US   (60 * G_USEC_PER_SEC)
#define MAX_DOUBLINGS 20
#define BUSY_MS	      1000  /* until another look at a VM that something else is done to */
#define RETRY_MS      60000 /* when a VM whose time is up cannot be stopped or removed */
#define AT_ONCE	      4	    /* VMs that are being started after a boot */
#define BOOT_FILE     "boot"

static void expire(Vm *vm);

static struct {
	int clock; /* -1: no VM expires */
	Watch *watch;
	GQueue boot; /* of Vm: to be started, a reference each */
	unsigned booting;
} life = { .clock = -1 };

static void tell_time(Vm *vm, const char *word, int64_t at)
{
	g_autoptr(GString) text = g_string_new(NULL);

	if (at)
		events_time(text, at);
	else
		g_string_append_c(text, '-');
	events_emit_word(vm, word, text->str);
}

/* ---- starting again ---- */

static void schedule(Vm *vm);
static void restart_due(void *arg);

bool lifetime_is_waiting(const Vm *vm)
{
	return vm->life.restart != NULL;
}

static void stop_waiting(Vm *vm)
{
	timer_stop(&vm->life.restart);
	vm->life.restart_at = 0;
}

void lifetime_cancel(Vm *vm)
{
	if (!lifetime_is_waiting(vm))
		return;
	stop_waiting(vm);
	tell_time(vm, "restart", 0);
	vm_changed(vm, EV_FACTS);
	vm_save_run(vm);
}

void lifetime_started(Vm *vm)
{
	lifetime_cancel(vm);
	vm->life.restarts = vm->life.failures = 0;
	vm->life.started = g_get_monotonic_time();
}

static void start_ended(Op *op, void *arg)
{
	Vm *vm = arg;
	const GError *e = op_error(op);

	/* Whoever cancelled it does not want it to run. */
	if (e && err_code(e) != ECANCELED)
		schedule(vm);
}

/* Start it on our own account. */
static bool start(Vm *vm, Op **op)
{
	g_autoptr(GError) e = NULL;

	vm->life.started = g_get_monotonic_time();
	if (vm_order(vm, OP_START, NULL, NULL, op, &e))
		return true;
	vm_set_error(vm, "start", e);
	return false;
}

static void restart_due(void *arg)
{
	Vm *vm = arg;
	Op *op;

	vm->life.restart = NULL;
	if (vm->op) {
		vm->life.restart = timer_start(BUSY_MS, restart_due, vm);
		return;
	}
	stop_waiting(vm);
	if (vm_is_live(vm))
		return;
	vm->life.restarts++;
	if (!start(vm, &op))
		schedule(vm);
	else if (op_done(op))
		start_ended(op, vm);
	else
		(void)op_wait(op, false, start_ended, vm);
	vm_changed(vm, EV_FACTS);
}

static void wait_for_restart(Vm *vm, int64_t at)
{
	const int64_t us = at - vm_now();

	vm->life.restart_at = at;
	vm->life.restart = timer_start(us > 0 ? (uint64_t)us / 1000 : 0, restart_due, vm);
}

/* The pause doubles with each time that it did not run well. */
static void schedule(Vm *vm)
{
	const uint64_t first = vm->spec->restart_delay_ms, most = MAX(MAX_PAUSE_MS, first);
	const unsigned doublings = MIN(vm->life.failures, MAX_DOUBLINGS);

	if (vm->spec->restart == RESTART_NEVER || vm->removed || vm->life.expiring)
		return;
	vm->life.failures++;
	stop_waiting(vm);
	wait_for_restart(vm, vm_now() + (int64_t)MIN(first << doublings, most) * 1000);
	tell_time(vm, "restart", vm->life.restart_at);
	vm_changed(vm, EV_FACTS);
	vm_save_run(vm);
}

static bool is_wanted(const Vm *vm, VmState state, const char *reason)
{
	const OpKind kind = vm->op && !op_done(vm->op) ? op_kind(vm->op) : OP_NONE;

	/* A start that fails is told to whoever ordered it: if that is us, by start_ended(). */
	if (kind == OP_STOP || kind == OP_KILL || kind == OP_START)
		return false;
	if (state == VM_CRASHED)
		return vm->spec->restart != RESTART_NEVER;
	return state == VM_STOPPED && vm->spec->restart == RESTART_ALWAYS &&
	       !g_strcmp0(reason, "guest-shutdown");
}

void lifetime_ended(Vm *vm, VmState state, const char *reason)
{
	const int64_t started = vm->life.started;

	if (!is_wanted(vm, state, reason))
		return;
	if (started && g_get_monotonic_time() - started >= RAN_WELL_US)
		vm->life.failures = 0;
	schedule(vm);
}

/* ---- starting after a boot ---- */

static void boot_next(void);

static void boot_ended(Op *op, void *arg)
{
	Vm *vm = arg;

	life.booting--;
	if (!vm->removed)
		start_ended(op, vm);
	vm_unref(vm);
	boot_next();
}

/* It is still being found out about. */
static void boot_again(Op *op, void *arg)
{
	(void)op;
	life.booting--;
	g_queue_push_tail(&life.boot, arg);
	boot_next();
}

/* Takes the reference. */
static void boot_one(Vm *vm)
{
	Op *op;

	if (vm->removed || (!vm->op && vm->state != VM_STOPPED && vm->state != VM_CRASHED)) {
		vm_unref(vm);
		return;
	}
	life.booting++;
	if (vm->op) {
		(void)op_wait(vm->op, false, boot_again, vm);
		return;
	}
	lifetime_started(vm);
	if (start(vm, &op) && !op_done(op)) {
		(void)op_wait(op, false, boot_ended, vm);
		return;
	}
	life.booting--;
	if (!vm_is_live(vm))
		schedule(vm);
	vm_unref(vm);
}

/* Only when all has been ordered: a daemon that dies before begins anew. */
static void boot_done(void)
{
	g_autoptr(GBytes) id = g_bytes_new(host_boot_id(), strlen(host_boot_id()));

	store_put(BOOT_FILE, id, true, NULL, NULL);
}

static void boot_next(void)
{
	while (life.boot.length && life.booting < AT_ONCE)
		boot_one(g_queue_pop_head(&life.boot));
	if (!life.boot.length && !life.booting)
		boot_done();
}

static bool is_fresh_boot(void)
{
	g_autoptr(GBytes) bytes = store_get(BOOT_FILE, 256);
	g_autofree char *id =
		bytes ? g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes)) : NULL;

	return g_strcmp0(id, host_boot_id()) != 0;
}

/* ---- expiring ---- */

static void clock_rings(void *arg, int status, int events);

/* For the first VM whose time comes. */
static void arm(void)
{
	struct itimerspec when = { 0 };
	int64_t first = 0;

	for (Vm *vm = registry_after(0); vm; vm = registry_after(vm->serial)) {
		const int64_t at = vm->life.expiring ? 0 : vm->life.expires_at;

		if (at && (!first || at < first))
			first = at;
	}
	if (first && life.clock < 0) {
		life.clock = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
		if (life.clock < 0) {
			log_error("cannot make a timer: %s", g_strerror(errno));
			return;
		}
		life.watch = watch_start(life.clock, UV_READABLE, clock_rings, NULL);
	}
	if (life.clock < 0)
		return;
	when.it_value.tv_sec = first / G_USEC_PER_SEC;
	when.it_value.tv_nsec = first % G_USEC_PER_SEC * 1000;
	(void)timerfd_settime(life.clock, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &when, NULL);
}

static void expire_due(void)
{
	const int64_t now = vm_now();
	uint32_t serial = 0;

	for (Vm *vm = registry_after(serial); vm; vm = registry_after(serial)) {
		serial = vm->serial;
		if (!vm->life.expires_at || vm->life.expires_at > now || vm->life.expiring)
			continue;
		log_info("%s: its time is up", vm->name);
		vm->life.expiring = true;
		lifetime_cancel(vm);
		tell_time(vm, "expired", vm->life.expires_at);
		expire(vm);
	}
	arm();
}

/* Also when the clock was set: the read then fails with ECANCELED. */
static void clock_rings(void *arg, int status, int events)
{
	uint64_t n;

	(void)arg;
	(void)status;
	(void)events;
	if (read(life.clock, &n, sizeof n) < 0 && errno == EAGAIN)
		return;
	expire_due();
}

static void retry_due(void *arg)
{
	Vm *vm = arg;

	vm->life.retry = NULL;
	expire(vm);
}

static void retry_later(Vm *vm)
{
	timer_stop(&vm->life.retry);
	vm->life.retry = timer_start(RETRY_MS, retry_due, vm);
}

static void quiet(Op *op, void *arg)
{
	(void)op;
	expire(arg);
}

static void stop_ended(Op *op, void *arg)
{
	if (op_error(op))
		retry_later(arg);
	else
		expire(arg);
}

static void stop_first(Vm *vm)
{
	const bool runs = vm->state != VM_UNKNOWN && !vm_is_asleep(vm);
	const char *verb = runs ? "stop" : "kill";
	g_autoptr(GError) e = NULL;
	Op *op;

	if (!vm_command(vm, verb, strlen(verb), &op, &e))
		retry_later(vm);
	else if (!op || op_done(op))
		stop_ended(op, vm);
	else
		(void)op_wait(op, false, stop_ended, vm);
	op_unref(op);
}

/* A step at a time: wait for what is under way, stop it, remove it. */
static void expire(Vm *vm)
{
	/* A new document may have given it more time. */
	if (vm->removed || !vm->life.expiring)
		return;
	if (vm->op) {
		(void)op_wait(vm->op, false, quiet, vm);
		return;
	}
	if (vm_is_live(vm) || vm_is_asleep(vm)) {
		stop_first(vm);
		return;
	}
	/* Until it is gone: somebody might still do something to it. */
	retry_later(vm);
	registry_retire(vm);
}

/* From what the spec says, if that is something new. */
static bool reckon(Vm *vm)
{
	const char *text = vm->spec->expires;

	if (!g_strcmp0(text, vm->life.expires))
		return false;
	g_free(vm->life.expires);
	vm->life.expires = g_strdup(text);
	vm->life.expires_at = 0;
	if (text && !specval_expires(text, vm_now(), &vm->life.expires_at, NULL))
		vm->life.expires_at = 0;
	vm->life.expiring = false;
	timer_stop(&vm->life.retry);
	return true;
}

bool lifetime_check(const Vm *vm, const Spec *spec, GError **err)
{
	int64_t at;

	if (!spec->expires || !g_strcmp0(spec->expires, vm->life.expires))
		return true;
	if (!specval_expires(spec->expires, vm_now(), &at, err))
		return false;
	return at > vm_now() ||
	       err_set(err, EINVAL,
		       "expires: '%s' is not in the future; the VM would be removed at once",
		       spec->expires);
}

/* ---- with the rest of the VM ---- */

void lifetime_spec_changed(Vm *vm)
{
	if (vm->spec->restart == RESTART_NEVER)
		lifetime_cancel(vm);
	if (!reckon(vm))
		return;
	registry_save_meta(vm, NULL, NULL);
	vm_changed(vm, EV_FACTS);
	arm();
}

void lifetime_begin(void)
{
	for (Vm *vm = registry_after(0); vm; vm = registry_after(vm->serial)) {
		if (vm->life.restart_at && !lifetime_is_waiting(vm))
			wait_for_restart(vm, MIN(vm->life.restart_at,
						 vm_now() + (int64_t)MAX_PAUSE_MS * 1000));
		if (reckon(vm))
			registry_save_meta(vm, NULL, NULL);
	}
	expire_due();
	if (!is_fresh_boot())
		return;
	for (Vm *vm = registry_after(0); vm; vm = registry_after(vm->serial))
		if (vm->spec->autostart && !vm->life.expiring &&
		    !(vm->home.be && vm->home.be->cls->autostarts))
			g_queue_push_tail(&life.boot, vm_ref(vm));
	boot_next();
}

void lifetime_fini(Vm *vm)
{
	timer_stop(&vm->life.restart);
	timer_stop(&vm->life.retry);
	g_clear_pointer(&vm->life.expires, g_free);
	vm->life.expires_at = 0;
}

void lifetime_show(const Vm *vm, GString *out)
{
	if (vm->life.restarts)
		g_string_append_printf(out, "restarts %u\n", vm->life.restarts);
	if (lifetime_is_waiting(vm)) {
		g_string_append(out, "restart ");
		events_time(out, vm->life.restart_at);
		g_string_append_c(out, '\n');
	}
	if (vm->life.expires_at) {
		g_string_append(out, "expires ");
		events_time(out, vm->life.expires_at);
		g_string_append_c(out, '\n');
	}
}

void lifetime_save_meta(const Vm *vm, GKeyFile *meta)
{
	if (!vm->life.expires)
		return;
	g_key_file_set_string(meta, "vm", "expires", vm->life.expires);
	g_key_file_set_int64(meta, "vm", "expires_at", vm->life.expires_at);
}

void lifetime_load_meta(Vm *vm, GKeyFile *meta)
{
	vm->life.expires = g_key_file_get_string(meta, "vm", "expires", NULL);
	vm->life.expires_at = g_key_file_get_int64(meta, "vm", "expires_at", NULL);
}

void lifetime_save_run(const Vm *vm, GKeyFile *run)
{
	if (vm->life.restarts)
		g_key_file_set_integer(run, "vm", "restarts", (int)vm->life.restarts);
	if (vm->life.failures)
		g_key_file_set_integer(run, "vm", "failures", (int)vm->life.failures);
	if (vm->life.restart_at)
		g_key_file_set_int64(run, "vm", "restart_at", vm->life.restart_at);
}

void lifetime_load_run(Vm *vm, GKeyFile *run)
{
	vm->life.restarts = (unsigned)g_key_file_get_integer(run, "vm", "restarts", NULL);
	vm->life.failures = (unsigned)g_key_file_get_integer(run, "vm", "failures", NULL);
	vm->life.restart_at = g_key_file_get_int64(run, "vm", "restart_at", NULL);
}
