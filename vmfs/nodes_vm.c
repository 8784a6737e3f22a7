/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a VM's directory. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/exec.h"
#include "vmfs/hosts.h"
#include "vmfs/keys.h"
#include "vmfs/node.h"
#include "vmfs/scratch.h"
#include "vmfs/snapshot.h"
#include "vmfs/tty.h"

static void show_state(const NodeRef *r, GString *out)
{
	g_string_append(out, vm_state_name(r->vm->state));
	g_string_append_c(out, '\n');
}

static bool store_state(const NodeRef *r, const char *data, size_t len, Op **op, GError **err)
{
	return vm_command(r->vm, data, len, op, err);
}

static void show_rejected(const NodeRef *r, GString *out)
{
	gsize len;
	const char *text;

	/* Removed, but still open somewhere. */
	if (!r->vm->rejected)
		return;
	text = g_bytes_get_data(r->vm->rejected, &len);
	g_string_append_len(out, text, (gssize)len);
}

static bool have_rejected(const NodeRef *r)
{
	return r->vm->rejected != NULL;
}

static void remove_rejected(const NodeRef *r)
{
	vm_set_rejected(r->vm, NULL);
}

static void show_pending(const NodeRef *r, GString *out)
{
	g_autoptr(GPtrArray) keys = vm_pending(r->vm);

	for (unsigned i = 0; i < keys->len; i++)
		g_string_append_printf(out, "%s\n", (char *)keys->pdata[i]);
}

static void show_exit(const Vm *vm, GString *out)
{
	int status = vm->exit_status;

	if (status == -1)
		return;
	if (WIFSIGNALED(status))
		g_string_append_printf(out, "exit signal %d\n", WTERMSIG(status));
	else
		g_string_append_printf(out, "exit %d\n", WEXITSTATUS(status));
}

static void show_status(const NodeRef *r, GString *out)
{
	const Vm *vm = r->vm;
	const Backend *be = vm->bv ? vm->bv->be : vm_backend_kind(vm, NULL);

	g_string_append_printf(out, "state %s\n", vm_state_name(vm->state));
	if (vm->reason)
		g_string_append_printf(out, "reason %s\n", vm->reason);
	g_string_append(out, "since ");
	events_time(out, vm->since);
	g_string_append_printf(out, "\nbackend %s\nhost %s\n", be ? be->cls->name : "none",
			       vm_host(vm));
	if (vm->pid)
		g_string_append_printf(out, "pid %d\n", (int)vm->pid);
	if (vm->op) {
		const char *step = op_step_name(vm->op);

		g_string_append_printf(out, "operation %s%s%s\n", op_verb(vm->op)->name,
				       step ? " " : "", step ? step : "");
		if (op_percent(vm->op) >= 0)
			g_string_append_printf(out, "progress %d\n", op_percent(vm->op));
	}
	snapshot_status(vm, out);
	show_exit(vm, out);
	lifetime_show(vm, out);
	for (unsigned i = 0; vm->facts && i < vm->facts->len; i++)
		g_string_append_printf(out, "%s\n", (char *)vm->facts->pdata[i]);
}

static void show_error(const NodeRef *r, GString *out)
{
	if (r->vm->error)
		g_string_append_printf(out, "%s\n", r->vm->error);
}

static void show_ip(const NodeRef *r, GString *out)
{
	for (unsigned i = 0; r->vm->ips && r->vm->ips[i]; i++)
		g_string_append_printf(out, "%s\n", r->vm->ips[i]);
}

static void show_pid(const NodeRef *r, GString *out)
{
	if (r->vm->pid)
		g_string_append_printf(out, "%d\n", (int)r->vm->pid);
}

static void show_id(const NodeRef *r, GString *out)
{
	g_string_append_printf(out, "%u\n", r->vm->id);
}

static bool is_plain(const char *word)
{
	return *word && !word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					   "0123456789@%+=:,./_-")];
}

static void append_words(GString *out, const GPtrArray *argv)
{
	for (unsigned i = 0; i < argv->len && argv->pdata[i]; i++) {
		g_autofree char *quoted = is_plain(argv->pdata[i]) ? g_strdup(argv->pdata[i])
								   : g_shell_quote(argv->pdata[i]);

		g_string_append_printf(out, "%s%s", i ? " " : "", quoted);
	}
	g_string_append_c(out, '\n');
}

static void show_cmdline(const NodeRef *r, GString *out)
{
	g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
	const bool had = r->vm->bv;
	BackendVm *bv = vm_backend(r->vm, NULL);

	if (bv && bv->be->cls->cmdline(bv, argv, NULL))
		append_words(out, argv);
	/* Most VMs of a large fleet are only ever looked at. */
	if (!had)
		vm_drop_backend(r->vm);
}

static const BackendClass *class_of(const NodeRef *r)
{
	const Backend *be = vm_backend_kind(r->vm, NULL);

	return be ? be->cls : NULL;
}

static bool have_cmdline(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->cmdline;
}

static bool have_console(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->console_write;
}

static bool have_tty(const NodeRef *r)
{
	return have_console(r) && (r->vm->tty || vm_is_live(r->vm));
}

static bool have_stats(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->ask[ASK_STATS];
}

static bool have_keys(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->ask[ASK_KEYS];
}

static bool have_monitor(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->ask[ASK_MONITOR];
}

static bool have_ssh(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->ask[ASK_SSH];
}

static bool have_screen(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->ask[ASK_SCREEN] && vm_is_live(r->vm) && r->vm->bv &&
	       spec_display(r->vm->bv->spec) != DISPLAY_NONE;
}

static bool have_exec(const NodeRef *r)
{
	return exec_is_possible(r->vm);
}

static const char *definition_of(const NodeRef *r)
{
	const BackendVm *bv = r->vm->home.be ? r->vm->bv : NULL;

	return bv && bv->be->cls->definition ? bv->be->cls->definition(bv) : NULL;
}

static bool have_definition(const NodeRef *r)
{
	return definition_of(r) != NULL;
}

static void show_definition(const NodeRef *r, GString *out)
{
	const char *text = definition_of(r);

	if (text)
		g_string_append(out, text);
}

static bool store_definition(const NodeRef *r, const char *data, size_t len, Op **op, GError **err)
{
	GError *e = NULL;

	*op = NULL;
	if (vm_order(r->vm, OP_REDEFINE, g_strndup(data, len), g_free, op, &e)) {
		op_ref(*op);
		return true;
	}
	vm_set_error(r->vm, "domain.xml", e);
	g_propagate_error(err, e);
	return false;
}

static bool have_host(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->op[OP_MIGRATE];
}

static void show_host(const NodeRef *r, GString *out)
{
	g_string_append_printf(out, "%s\n", vm_host(r->vm));
}

/* The host that it is on its way to; NULL: it is on its way to none. */
static const char *next_host(const Vm *vm)
{
	const bool moves = vm->op && !op_done(vm->op) && op_kind(vm->op) == OP_MIGRATE;

	return moves ? op_arg(vm->op) : NULL;
}

/* As with the nouns of `state`: it is to be there, whatever that takes. */
static bool be_on_host(Vm *vm, const char *name, Op **op, GError **err)
{
	const char *next = next_host(vm);

	if (!host_find(name))
		return err_set(err, EINVAL, "there is no host '%.80s'; see .vmfs/hosts", name);
	if (!next && !strcmp(name, vm_host(vm)))
		return true;
	if (!next && !vm->home.be)
		return err_set(err, ESRCH,
			       "it is made on a host when it is started for the first time; say "
			       "'host: %s' in spec.yaml",
			       name);
	if (next && !strcmp(name, vm_host(vm))) {
		op_cancel(vm->op, err_new(ECANCELED, "it was told to stay on %s", name));
		return true;
	}
	if (!next || strcmp(name, next))
		return vm_order(vm, OP_MIGRATE, g_strdup(name), g_free, op, err);
	*op = vm->op;
	return true;
}

static bool store_host(const NodeRef *r, const char *data, size_t len, Op **op, GError **err)
{
	g_autofree char *name = g_strndup(data, len);
	GError *e = NULL;

	*op = NULL;
	if (be_on_host(r->vm, g_strstrip(name), op, &e)) {
		if (*op)
			op_ref(*op);
		return true;
	}
	vm_set_error(r->vm, "migrate", e);
	g_propagate_error(err, e);
	return false;
}

static bool have_sim(const NodeRef *r)
{
	const BackendClass *cls = class_of(r);

	return cls && cls->control;
}

static bool store_sim(const NodeRef *r, const char *data, size_t len, Op **op, GError **err)
{
	GError *e = NULL;
	BackendVm *bv = vm_backend(r->vm, &e);
	g_autofree char *line = g_strndup(data, len);

	*op = NULL;
	if (!bv || !bv->be->cls->control(bv, g_strstrip(line), &e)) {
		vm_set_error(r->vm, "sim", e);
		g_propagate_error(err, e);
		return false;
	}
	return true;
}

static const char *link_tty(const NodeRef *r)
{
	return tty_path(r->vm);
}

static int file_console_log(const NodeRef *r)
{
	return vm_open_console_log(r->vm);
}

static uint32_t next_scratch(const NodeRef *dir, uint32_t after, char name[256])
{
	const Scratch *f = scratch_after(dir->vm, after);

	/* Those of its directories are theirs: nodes_attach.c. */
	while (f && strchr(f->name, '/'))
		f = scratch_after(dir->vm, f->number);
	if (!f)
		return 0;
	g_strlcpy(name, f->name, 256);
	return f->number;
}

static uint32_t find_scratch(const NodeRef *dir, const char *name)
{
	const Scratch *f = scratch_find(dir->vm, name);

	return f ? f->number : 0;
}

static char *name_scratch(const NodeRef *dir, const char *name)
{
	(void)dir;
	return g_strdup(name);
}

#define REG(mode) (S_IFREG | (mode))
#define LNK	  (S_IFLNK | 0777)

// clang-format off
static const Node vm_rows[] = {
	{ 10, "state", REG(0664), .exact = true, .show = show_state, .store = store_state, .events = EV_STATE,
	  .doc = "one noun: stopped starting running paused stopping asleep crashed unknown; write a verb, or the noun it is to be" },
	{ 11, "spec.yaml", REG(0660), .document = true, .events = EV_SPEC,
	  .doc = "what the VM should be; a bad document changes nothing" },
	{ 12, "spec.yaml.rej", REG(0440), .show = show_rejected, .present = have_rejected,
	  .remove = remove_rejected, .events = EV_REJECTED,
	  .doc = "the last document, when it was refused; 'start' is refused until it is removed or a good one is written" },
	{ 13, "pending", REG(0444), .exact = true, .show = show_pending, .events = EV_PENDING | EV_SPEC | EV_STATE,
	  .doc = "keys of spec.yaml that the running VM does not have yet; empty when they agree" },
	{ 14, "status", REG(0444), .show = show_status,
	  .events = EV_STATE | EV_REASON | EV_PID | EV_OPERATION | EV_FACTS | EV_SNAPSHOT | EV_HOST,
	  .doc = "'key value' lines: state, reason, since, backend, host, pid, operation, progress, destination, exit, restarts, restart, expires, snapshots, ports, shares, clock, identity" },
	{ 15, "error", REG(0444), .exact = true, .show = show_error, .events = EV_ERROR,
	  .doc = "the last failure: time, verb, errno and a sentence; empty after a success" },
	{ 18, "ip", REG(0444), .exact = true, .show = show_ip, .events = EV_IP,
	  .doc = "the guest's addresses, one a line, best first; empty while unknown" },
	{ 19, "pid", REG(0444), .exact = true, .show = show_pid, .events = EV_PID,
	  .doc = "process id of the VMM; empty when none runs here" },
	{ 20, "id", REG(0444), .exact = true, .show = show_id,
	  .doc = "a small number, unique on this host; MAC addresses derive from it" },
	{ 21, "cmdline", REG(0440), .show = show_cmdline, .present = have_cmdline, .events = EV_SPEC,
	  .doc = "the command line that a start would run" },
	{ 22, "console", LNK, .target = ".io/console", .present = have_console,
	  .doc = "stream: the serial console; what is written to it is typed" },
	{ 23, "console.log", REG(0440), .file = file_console_log, .present = have_console,
	  .doc = "all that the console printed, its newest 64 MiB" },
	{ 24, "tty", LNK, .link = link_tty, .lazy = true, .present = have_tty,
	  .doc = "the console as a terminal, for screen or picocom, while the VM runs" },
	{ 130, "screen.png", REG(0440), .ask = ASK_SCREEN, .present = have_screen,
	  .doc = "a picture of what the display shows when it is opened, while the VM runs" },
	{ 132, "keys", REG(0220), .store = keys_store, .present = have_keys,
	  .doc = "write names of keys to press them: 'ctrl-alt-delete', or 'r o o t ret' one after the other" },
	{ 133, "monitor", LNK, .target = ".io/monitor", .present = have_monitor,
	  .doc = "stream: the VMM's own monitor, its owner's only: write a line, read the answer and the end of it on the same descriptor" },
	{ 131, "stats", REG(0444), .ask = ASK_STATS, .present = have_stats,
	  .doc = "'key value' lines: counters of cpu, memory and block (and net where it is counted), as they are when it is opened; empty when it does not run" },
	{ ATTACH_ROWS, "disks", S_IFDIR | 0770, .dir = &disks_dir,
	  .doc = "what is attached; ln -s FILE makes it a disk, rm takes it away: live when the VM runs" },
	{ ATTACH_ROWS + 2, "nics", S_IFDIR | 0770, .dir = &nics_dir,
	  .doc = "network interfaces; ln -s user NAME adds one" },
	{ ATTACH_ROWS + 4, "shares", S_IFDIR | 0770, .dir = &shares_dir,
	  .doc = "host directories; ln -s DIRECTORY NAME shares one, and the guest mounts it by that name" },
	{ ATTACH_ROWS + 6, "devices", S_IFDIR | 0770, .dir = &devices_dir,
	  .doc = "devices of the host; ln -s /vm/.vmfs/devices/usb/1-2 NAME gives it one" },
	{ 16, "events", LNK, .target = ".io/events",
	  .doc = "stream: the present values, then a line a change: TIME NAME KEY VALUE..." },
	{ 17, "wait", LNK, .target = ".io/wait",
	  .doc = "streams that answer once something is true" },
	{ 123, "ssh_config", REG(0440), .ask = ASK_SSH, .present = have_ssh,
	  .doc = "for ssh -F, scp, rsync -e: the way to port 22 of the guest and the VM's own key, both made when it is first read; empty when it does not run, or has no nic" },
	{ 110, "exec", S_IFDIR | 0775, .dir = &exec_dir, .present = have_exec,
	  .doc = "commands in the guest: mkdir exec/j; echo 'uname -a' > exec/j/cmd; cat exec/j/stdout" },
	{ 122, "domain.xml", REG(0660), .show = show_definition, .store = store_definition,
	  .present = have_definition, .events = EV_SPEC,
	  .doc = "libvirt VMs only: the domain's XML; write a whole one, in one write, to define it so" },
	{ 70, "host", REG(0664), .exact = true, .show = show_host, .store = store_host,
	  .present = have_host, .events = EV_HOST | EV_SPEC,
	  .doc = "libvirt VMs only: the host it is on; another one's name moves it there, live when it runs, and its own name ends such a move" },
	{ 25, "sim", REG(0660), .store = store_sim, .present = have_sim,
	  .doc = "sim VMs only: write what the simulated guest and hypervisor are to do" },
	{ 161, "snapshots", S_IFDIR | 0770, .dir = &snapshots_dir, .present = snapshots_present,
	  .doc = "snapshots of memory, devices and disks; 'restore NAME' goes back to one" },
	{ 26, ".io", S_IFDIR | 0755, .dir = &io_dir, .hidden = true,
	  .doc = "where the streams are; not listed, so that recursive tools do not block on them" },
	{ 0 },
};

static const Node scratch_row = {
	40, "*", REG(0600), .scratch = true,
	.doc = "scratch files of editors: in memory, few and small, with no meaning until renamed to spec.yaml",
};
// clang-format on

const Dir vm_dir = {
	.rows = vm_rows,
	.child = &scratch_row,
	.next = next_scratch,
	.find = find_scratch,
	.scratch = name_scratch,
};
