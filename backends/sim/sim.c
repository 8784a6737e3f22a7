/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A simulated hypervisor: complete, deterministic, without processes, so that thousands of VMs fit
 * and every fault can be ordered through the file `sim`. It does nothing on its own: what happens
 * is what the spec's `sim:` keys, an operation or an order says.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/sim/exec.h"
#include "backends/sim/sim.h"
#include "vmfs/err.h"
#include "vmfs/images.h"
#include "vmfs/loop.h"
#include "vmfs/specval.h"
#include "vmfs/ssh.h"

#define MAX_MS	 (24u * 3600 * 1000)
#define MAX_WORD 1024

void sim_tell(SimVm *s, VmState truth, const char *reason)
{
	s->truth = truth;
	backend_changed(&s->base);
	if (!s->lost)
		backend_state(&s->base, truth, reason);
}

static void fail_asks(SimVm *s);

void sim_gone(SimVm *s, VmState truth, const char *reason, int exit_status)
{
	Op *op = s->op;

	timer_stop(&s->boot);
	s->truth = truth;
	fail_asks(s);
	if (!s->lost)
		backend_gone(&s->base, truth, reason, exit_status);
	if (!op || op_kind(op) != OP_APPLY)
		return;
	s->op = NULL;
	timer_stop(&s->timer);
	op_fail(op, err_new(EIO, "the VM ended (%s) before it was done", reason));
}

static void print(SimVm *s, const char *text, size_t len)
{
	g_autofree char *path = g_build_filename(vm_data_dir(s->base.vm), "console.log", NULL);
	int fd =
		open(path,
		     O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
		     0600);
	struct stat st;
	ssize_t n = -1;

	/* The directory is its owner's, who may have put a FIFO or a link there. */
	if (fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_nlink == 1)
		n = write(fd, text, len);
	backend_console(&s->base, text, len);
	/* As on a full disk, the console goes on without its log. */
	if (n >= 0)
		backend_console_at(&s->base, (uint64_t)lseek(fd, 0, SEEK_END));
	if (fd >= 0)
		close(fd);
}

static bool set_ips(SimVm *s, const char *words, GError **err)
{
	g_auto(GStrv) ips = g_strsplit(words, " ", -1);
	struct in6_addr any;

	for (unsigned i = 0; ips[i]; i++)
		if (inet_pton(AF_INET, ips[i], &any) != 1 && inet_pton(AF_INET6, ips[i], &any) != 1)
			return err_set(err, EINVAL, "'%.40s' is not an address", ips[i]);
	backend_ips(&s->base, *words ? (const char *const *)ips : NULL);
	return true;
}

static const char *option(const SimVm *s, const char *key)
{
	const Spec *spec = s->base.spec;

	return spec->sim ? g_hash_table_lookup(spec->sim, key) : NULL;
}

/* ---- the guest ---- */

static void set_agent(SimVm *s, bool up)
{
	s->agent = up;
	backend_agent(&s->base, up);
	if (!up)
		exec_lost(&s->base, "agent");
}

void sim_booted(SimVm *s)
{
	const char *ip = option(s, "ip");

	s->boot = NULL;
	set_agent(s, true);
	if (s->base.spec->cloud_init.given)
		backend_cloud_init(&s->base, "done");
	if (ip)
		(void)set_ips(s, ip, NULL);
}

static void booted(void *arg)
{
	sim_booted(arg);
}

void sim_boot(SimVm *s)
{
	const char *after = option(s, "boot");
	uint64_t ms = 0;

	timer_stop(&s->boot);
	g_clear_pointer(&s->memory, g_free);
	set_agent(s, false);
	backend_ips(&s->base, NULL);
	print(s, "sim: boot\n", strlen("sim: boot\n"));
	if (after)
		(void)specval_duration(after, MAX_MS, &ms, NULL);
	if (ms)
		s->boot = timer_start(ms, booted, s);
	else
		sim_booted(s);
}

/* ---- questions ---- */

typedef struct SimAsk {
	SimVm *s;
	Ask *ask;
	AskKind kind;
	Timer *timer; /* NULL: never */
} SimAsk;

/* One pixel, black. */
static const unsigned char picture[] = { 0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00,
					 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52, 0x00, 0x00, 0x00, 0x01,
					 0x00, 0x00, 0x00, 0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x3a,
					 0x7e, 0x9b, 0x55, 0x00, 0x00, 0x00, 0x0a, 0x49, 0x44, 0x41,
					 0x54, 0x78, 0xda, 0x63, 0x60, 0x00, 0x00, 0x00, 0x02, 0x00,
					 0x01, 0xe5, 0x27, 0xde, 0xfc, 0x00, 0x00, 0x00, 0x00, 0x49,
					 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82 };

static GBytes *counters(SimVm *s)
{
	GString *out = g_string_new(NULL);

	s->asked++;
	g_string_append_printf(out,
			       "cpu.count %u\ncpu.time_us %u\nmemory.max %" G_GUINT64_FORMAT
			       "\nmemory.rss %u\nsim.asked %u\n",
			       s->base.spec->cpus, s->asked * 1000, s->base.spec->memory, 1u << 20,
			       s->asked);
	return g_string_free_to_bytes(out);
}

/* A keyboard of letters, digits and a few names. */
static bool is_key(const char *name)
{
	static const char *const names[] = { "alt", "ctrl",  "delete", "esc", "f1",
					     "ret", "shift", "spc",    "tab", NULL };

	return (name[0] && !name[1] && g_ascii_isalnum(name[0])) || g_strv_contains(names, name);
}

static void press(SimVm *s, Ask *a)
{
	g_auto(GStrv) names = g_strsplit_set(ask_text(a), " -", -1);
	g_autofree char *line = g_strdup_printf("sim: keys %s\n", ask_text(a));

	for (unsigned i = 0; names[i]; i++)
		if (!is_key(names[i])) {
			ask_fail(a, err_new(EINVAL, "there is no key '%s'", names[i]));
			return;
		}
	print(s, line, strlen(line));
	ask_answer(a, g_bytes_new_static("", 0));
}

/* Knows two commands, and is silent on others. */
static GBytes *monitor_says(const SimVm *s, const char *line)
{
	GString *out = g_string_new(NULL);
	unsigned n = 0;

	if (!strcmp(line, "info status"))
		g_string_append_printf(out, "VM status: %s\n", vm_state_name(s->truth));
	else if (sscanf(line, "count %u", &n) == 1)
		for (unsigned i = 1; i <= MIN(n, 100000); i++)
			g_string_append_printf(out, "%u\n", i);
	return g_string_free_to_bytes(out);
}

/* Whose server is at that address is for the test to know. */
static void way_to_ssh(SimVm *s, Ask *a)
{
	const char *address = option(s, "ssh");
	char *text;

	if (!address) {
		ask_answer(a, g_bytes_new_static("", 0));
		return;
	}
	backend_fact(&s->base, "port.eth0.22", address);
	text = ssh_config(s->base.vm, address, NULL);
	ask_answer(a, g_bytes_new_take(text, strlen(text)));
}

static void answer(SimVm *s, Ask *a, AskKind kind)
{
	switch (kind) {
	case ASK_STATS:
		ask_answer(a, counters(s));
		break;
	case ASK_KEYS:
		press(s, a);
		break;
	case ASK_MONITOR:
		ask_answer(a, monitor_says(s, ask_text(a)));
		break;
	case ASK_SSH:
		way_to_ssh(s, a);
		break;
	case ASK_SCREEN:
	case ASK_NONE:
	case ASK_MAX:
		ask_answer(a, g_bytes_new_static(picture, sizeof picture));
		break;
	}
}

static void ask_end(SimAsk *w)
{
	g_queue_remove(&w->s->asks, w);
	timer_stop(&w->timer);
	g_free(w);
}

static void ask_due(void *arg)
{
	SimAsk *w = arg;
	const SimAsk due = *w;

	w->timer = NULL;
	ask_end(w);
	answer(due.s, due.ask, due.kind);
}

static void fail_asks(SimVm *s)
{
	while (s->asks.head) {
		SimAsk *w = s->asks.head->data;
		Ask *a = w->ask;

		ask_end(w);
		ask_fail(a, err_new(EIO, "the simulated machine ended before it answered"));
	}
}

static void run_ask(SimVm *s, Ask *a, AskKind kind)
{
	Fault f = s->ask_faults[kind];
	SimAsk *w;

	s->ask_faults[kind].kind = f.kind == FAULT_FAIL ? FAULT_NONE : f.kind;
	if (f.kind == FAULT_FAIL) {
		ask_fail(a,
			 err_new(f.code, "the simulated hypervisor says: %s", g_strerror(f.code)));
		return;
	}
	if (f.kind == FAULT_NONE) {
		answer(s, a, kind);
		return;
	}
	if (f.kind == FAULT_HANG) {
		g_autofree char *line = g_strdup_printf("sim: asked for %s\n", ask_name(kind));

		print(s, line, strlen(line));
	}
	w = g_new0(SimAsk, 1);
	*w = (SimAsk){ .s = s, .ask = a, .kind = kind };
	g_queue_push_tail(&s->asks, w);
	if (f.kind == FAULT_SLOW)
		w->timer = timer_start(f.ms, ask_due, w);
}

static void ask_screen(BackendVm *bv, Ask *a)
{
	run_ask(sim_from(bv), a, ASK_SCREEN);
}

static void ask_ssh(BackendVm *bv, Ask *a)
{
	run_ask(sim_from(bv), a, ASK_SSH);
}

static void ask_stats(BackendVm *bv, Ask *a)
{
	run_ask(sim_from(bv), a, ASK_STATS);
}

static void ask_keys(BackendVm *bv, Ask *a)
{
	run_ask(sim_from(bv), a, ASK_KEYS);
}

static void ask_monitor(BackendVm *bv, Ask *a)
{
	run_ask(sim_from(bv), a, ASK_MONITOR);
}

/* ---- operations ---- */

static void apply(SimVm *s, Op *op)
{
	switch (op_kind(op)) {
	case OP_START:
		if (vm_clone_is_pending(s->base.vm)) {
			sim_clone(s, op);
			return;
		}
		s->lost = false;
		sim_tell(s, VM_RUNNING, "started");
		sim_boot(s);
		break;
	case OP_STOP:
		sim_gone(s, VM_STOPPED, s->ignore_stop ? "forced" : "guest-shutdown", 0);
		break;
	case OP_KILL:
		s->lost = false;
		if (vm_saved(s->base.vm)) {
			sim_kill_memory(s, op);
			return;
		}
		sim_gone(s, VM_STOPPED, "killed", SIGKILL);
		break;
	case OP_PAUSE:
		sim_tell(s, VM_PAUSED, "paused");
		break;
	case OP_RESUME:
		sim_tell(s, VM_RUNNING, "resumed");
		break;
	case OP_REBOOT:
	case OP_RESET:
		sim_boot(s);
		break;
	case OP_SLEEP:
		sim_sleep(s, op);
		return;
	case OP_WAKE:
		sim_wake(s, op);
		return;
	case OP_SNAPSHOT:
		sim_snapshot(s, op);
		return;
	case OP_RESTORE:
		sim_restore(s, op);
		return;
	case OP_APPLY: /* the core keeps what runs */
	case OP_EXEC:
	case OP_EXEC_SIGNAL:
	case OP_UNDEFINE:
	case OP_UNMANAGE:
	case OP_REDEFINE:
	case OP_MIGRATE:
	case OP_NONE:
	case OP_ADOPT:
	case OP_MAX:
		break;
	}
	op_ok(op);
}

static void op_due(void *arg)
{
	SimVm *s = arg;
	Op *op = s->op;

	s->timer = NULL;
	s->op = NULL;
	apply(s, op);
}

static void op_cancelled(Op *op, void *ctx)
{
	SimVm *s = ctx;

	(void)op;
	timer_stop(&s->timer);
	s->op = NULL;
}

static bool is_eject(const Op *op)
{
	const SpecChange *c = op_arg(op);

	return strchr(c->key, '.') && !spec_named(c->want, c->key);
}

static bool find_images(const Spec *spec, GError **err)
{
	for (guint i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];

		if (d->image && *d->image != '/' && !images_target(d->image))
			return err_set(err, ENOENT,
				       "disks.%s.image: there is no image '%s' in .vmfs/images any "
				       "more",
				       d->name, d->image);
	}
	return true;
}

static void run_op(BackendVm *bv, Op *op)
{
	SimVm *s = sim_from(bv);
	Fault f = s->faults[op_kind(op)];
	GError *e = NULL;
	bool wait_for_guest = op_kind(op) == OP_STOP && s->ignore_stop;

	op_on_cancel(op, op_cancelled, s);
	if (f.kind == FAULT_FAIL) {
		s->faults[op_kind(op)].kind = FAULT_NONE;
		op_fail(op,
			err_new(f.code, "the simulated hypervisor says: %s", g_strerror(f.code)));
		return;
	}
	if (op_kind(op) == OP_APPLY && s->refuse_eject && is_eject(op)) {
		op_fail(op, err_new(ETIMEDOUT,
				    "%s: the simulated guest does not let go of it; it stays "
				    "attached",
				    ((const SpecChange *)op_arg(op))->key));
		return;
	}
	if (op_kind(op) == OP_START && !find_images(s->base.spec, &e)) {
		op_fail(op, e);
		return;
	}
	s->op = op;
	if (op_kind(op) == OP_STOP)
		op_accept(op);
	if (f.kind == FAULT_HANG)
		return;
	if (f.kind == FAULT_SLOW)
		s->timer = timer_start(f.ms, op_due, s);
	else if (wait_for_guest && op_seconds_ms(op))
		s->timer = timer_start(op_seconds_ms(op), op_due, s);
	else
		op_due(s);
}

static bool can_apply(const BackendVm *bv, const Spec *want, const char *key)
{
	if (!strcmp(key, "memory"))
		return want->memory <= bv->spec->max_memory;
	if (!strcmp(key, "cpus"))
		return want->cpus > bv->spec->cpus && want->cpus <= bv->spec->max_cpus;
	return spec_named(want, key) || spec_named(bv->spec, key) ||
	       g_str_has_suffix(key, ".ports");
}

/* What the former daemon had printed, and nobody read yet. */
static void catch_up(SimVm *s)
{
	Vm *vm = s->base.vm;
	uint64_t offset;
	char buf[4096];
	ssize_t n;
	int fd;

	if (!vm_console_resume(vm, &offset))
		return;
	fd = vm_open_console_log(vm);
	while (fd >= 0 && (n = pread(fd, buf, sizeof buf, (off_t)offset)) > 0) {
		offset += (uint64_t)n;
		backend_console(&s->base, buf, (size_t)n);
		backend_console_at(&s->base, offset);
	}
	if (fd >= 0)
		close(fd);
}

static void adopt(BackendVm *bv, Op *op)
{
	SimVm *s = sim_from(bv);
	GKeyFile *run = vm_run_file(bv->vm);
	g_autofree char *truth = run ? g_key_file_get_string(run, "backend", "truth", NULL) : NULL;
	VmState state = truth ? vm_state_find(truth) : VM_STATE_MAX;

	s->memory = run ? g_key_file_get_string(run, "backend", "memory", NULL) : NULL;
	catch_up(s);
	if (state == VM_RUNNING || state == VM_PAUSED) {
		sim_tell(s, state, NULL);
		sim_booted(s);
	} else if (vm_saved(bv->vm)) {
		/* If it was being woken, it has not run. */
		(void)vm_set_saved(bv->vm, SAVED_ASLEEP, NULL, NULL);
		sim_gone(s, VM_ASLEEP, "slept", -1);
	} else {
		sim_gone(s, VM_STOPPED, "undone", -1);
	}
	op_ok(op);
}

static void save(const BackendVm *bv, GKeyFile *run)
{
	const SimVm *s = (const SimVm *)bv;

	g_key_file_set_string(run, "backend", "truth", vm_state_name(s->truth));
	if (s->memory)
		g_key_file_set_string(run, "backend", "memory", s->memory);
}

static void fini(BackendVm *bv)
{
	SimVm *s = sim_from(bv);

	timer_stop(&s->timer);
	timer_stop(&s->boot);
	fail_asks(s);
	sim_saved_abandon(s);
}

/* A guest whose terminal echoes. */
static size_t console_write(BackendVm *bv, const char *data, size_t len)
{
	print(sim_from(bv), data, len);
	return len;
}

/* The guest tells of it when it has booted or is ordered to. */
static void want_cloud_init(BackendVm *bv)
{
	(void)bv;
}

static void probe(Backend *be)
{
	g_string_append(be->status, "note simulated machines, for tests; only used when named\n");
	backend_probed(be, true, NULL);
}

static bool check(Backend *be, const Spec *spec, GError **err)
{
	const char *after = spec->sim ? g_hash_table_lookup(spec->sim, "boot") : NULL;
	GHashTableIter it;
	gpointer key;
	uint64_t ms;

	(void)be;
	if (spec->sim) {
		g_hash_table_iter_init(&it, spec->sim);
		while (g_hash_table_iter_next(&it, &key, NULL))
			if (strcmp(key, "ip") && strcmp(key, "boot") && strcmp(key, "ssh"))
				return err_set(err, EINVAL,
					       "sim: unknown key '%s'; known are ip, boot and ssh",
					       (char *)key);
	}
	for (unsigned i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];

		if (strcmp(n->network, "user"))
			return err_set(err, EOPNOTSUPP,
				       "nics.%s.network: backend 'sim' has no network '%s'",
				       n->name, n->network);
	}
	if (after && !specval_duration(after, MAX_MS, &ms, err)) {
		g_prefix_error(err, "sim.boot: ");
		return false;
	}
	return true;
}

static bool cmdline(BackendVm *bv, GPtrArray *argv, GError **err)
{
	(void)err;
	g_ptr_array_add(argv, g_strdup("sim"));
	g_ptr_array_add(argv, g_strdup(vm_name(bv->vm)));
	g_ptr_array_add(argv, g_strdup_printf("cpus=%u", bv->spec->cpus));
	g_ptr_array_add(argv, g_strdup_printf("memory=%" G_GUINT64_FORMAT, bv->spec->memory));
	for (guint i = 0; i < bv->spec->disks->len; i++) {
		const SpecDisk *d = bv->spec->disks->pdata[i];

		g_ptr_array_add(argv, g_strdup_printf("disk=%s:%s", d->name,
						      d->image	? d->image
						      : d->file ? d->file
								: ""));
	}
	return true;
}

/* ---- orders ---- */

static bool set_fault(SimVm *s, char **word, unsigned n, GError **err)
{
	const Verb *v = verbs;
	AskKind asked = ASK_NONE;
	Fault f = { 0 };

	while (v->name && (n < 2 || strcmp(v->name, word[1])))
		v++;
	for (unsigned i = ASK_NONE + 1; n > 1 && i < ASK_MAX; i++)
		if (!strcmp(word[1], ask_name((AskKind)i)))
			asked = (AskKind)i;
	if (!v->name && !asked)
		return err_set(err, EINVAL, "'%s' needs a verb, or the name of a question",
			       word[0]);
	if (!strcmp(word[0], "fail")) {
		f.kind = FAULT_FAIL;
		for (int e = 1; n > 2 && !f.code && e < 134; e++)
			if (!strcmp(err_name(e), word[2]))
				f.code = e;
		if (!f.code)
			return err_set(err, EINVAL, "'fail %s' needs the name of an errno",
				       word[1]);
	} else if (!strcmp(word[0], "hang")) {
		f.kind = FAULT_HANG;
	} else if (!strcmp(word[0], "slow")) {
		f.kind = FAULT_SLOW;
		f.ms = n > 2 ? g_ascii_strtoull(word[2], NULL, 10) : 0;
		if (!f.ms || f.ms > MAX_MS)
			return err_set(err, EINVAL, "'slow %s' needs milliseconds", word[1]);
	}
	if (v->name)
		s->faults[v->kind] = f;
	else
		s->ask_faults[asked] = f;
	return true;
}

static bool lose(SimVm *s, bool lost)
{
	s->lost = lost;
	if (lost)
		backend_state(&s->base, VM_UNKNOWN, "connection-lost");
	else if (s->truth == VM_RUNNING || s->truth == VM_PAUSED)
		backend_state(&s->base, s->truth, "found");
	else
		backend_gone(&s->base, s->truth, "found", -1);
	return true;
}

static bool guest_order(SimVm *s, const char *word, const char *rest, bool *known, GError **err)
{
	*known = true;
	if (!strcmp(word, "lose") || !strcmp(word, "find"))
		return lose(s, !strcmp(word, "lose"));
	if (s->truth != VM_RUNNING && s->truth != VM_PAUSED)
		return err_set(err, ESRCH, "the simulated machine does not run");
	if (!strcmp(word, "print")) {
		g_autofree char *line = g_strconcat(rest, "\n", NULL);

		print(s, line, strlen(line));
	} else if (!strcmp(word, "remember")) {
		g_free(s->memory);
		s->memory = g_strndup(rest, MAX_WORD);
		backend_changed(&s->base);
	} else if (!strcmp(word, "recall")) {
		g_autofree char *line =
			g_strconcat("memory: ", s->memory ? s->memory : "", "\n", NULL);

		print(s, line, strlen(line));
	} else if (!strcmp(word, "ip"))
		return set_ips(s, rest, err);
	else if (!strcmp(word, "agent"))
		set_agent(s, !strcmp(rest, "up"));
	else if (!strcmp(word, "cloud-init"))
		backend_cloud_init(&s->base, !strcmp(rest, "done")    ? "done"
					     : !strcmp(rest, "error") ? "error"
								      : NULL);
	else if (!strcmp(word, "poweroff"))
		sim_gone(s, VM_STOPPED, "guest-shutdown", 0);
	else if (!strcmp(word, "reboot"))
		sim_boot(s);
	else if (!strcmp(word, "panic"))
		sim_gone(s, VM_CRASHED, "guest-panic", 0);
	else if (!strcmp(word, "die"))
		sim_gone(s, VM_CRASHED, "signal-9", SIGKILL);
	else
		*known = false;
	return true;
}

static bool control(BackendVm *bv, char *line, GError **err)
{
	SimVm *s = sim_from(bv);
	g_auto(GStrv) word = g_strsplit(line, " ", 4);
	unsigned n = g_strv_length(word);
	const char *first = n ? word[0] : "", *space = strchr(line, ' ');
	bool known;

	if (!strcmp(first, "fail") || !strcmp(first, "hang") || !strcmp(first, "slow") ||
	    !strcmp(first, "ok"))
		return set_fault(s, word, n, err);
	if (!strcmp(line, "disk full") || !strcmp(line, "disk ok")) {
		s->disk_full = !strcmp(line, "disk full");
		return true;
	}
	if (!strcmp(line, "refuse eject") || !strcmp(line, "allow eject")) {
		s->refuse_eject = *first == 'r';
		return true;
	}
	if (!strcmp(first, "ignore") && n == 2 && !strcmp(word[1], "stop")) {
		s->ignore_stop = true;
		return true;
	}
	if (!guest_order(s, first, space ? space + 1 : "", &known, err))
		return false;
	return known || err_set(err, EINVAL, "unknown order '%.40s'", first);
}

const BackendClass sim_class = {
	.name = "sim",
	.doc = "simulated machines, for tests",
	.vm_size = sizeof(SimVm),
	.hidden = true,
	.clones = true,
	.probe = probe,
	.check = check,
	.cmdline = cmdline,
	.fini = fini,
	.save = save,
	.op = {
		[OP_START] = run_op, [OP_STOP] = run_op, [OP_KILL] = run_op, [OP_PAUSE] = run_op,
		[OP_RESUME] = run_op, [OP_REBOOT] = run_op, [OP_RESET] = run_op, [OP_ADOPT] = adopt,
		[OP_APPLY] = run_op, [OP_EXEC] = sim_exec_op, [OP_EXEC_SIGNAL] = sim_exec_op,
		[OP_SLEEP] = run_op, [OP_WAKE] = run_op,
		[OP_SNAPSHOT] = run_op, [OP_RESTORE] = run_op,
	},
	.can_apply = can_apply,
	.console_write = console_write,
	.exec = &sim_exec,
	.want_cloud_init = want_cloud_init,
	.ask = { [ASK_SCREEN] = ask_screen, [ASK_STATS] = ask_stats, [ASK_KEYS] = ask_keys, [ASK_MONITOR] = ask_monitor, [ASK_SSH] = ask_ssh },
	.control = control,
};
