/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM object: what it is and what it should be, and the calls by which backends report changes.
 * Commands are in command.c, what is stored in vm_store.c.
 */
#include "vmfs/vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/ask.h"
#include "vmfs/attach.h"
#include "vmfs/clone.h"
#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/exec.h"
#include "vmfs/keep.h"
#include "vmfs/list.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/scratch.h"
#include "vmfs/snapshot.h"
#include "vmfs/ssh.h"
#include "vmfs/store.h"
#include "vmfs/tty.h"
#include "vmfs/waitq.h"

#define MAX_FACTS 64
#define MAX_IPS	  32
#define MAX_ERROR 8192 /* bytes */

/* Where a place in console.log is in the stream. */
typedef struct ConsoleMark {
	uint64_t end, offset;
} ConsoleMark;

VmConfig vm_config;
VmAll vm_all;

static const char *const state_names[] = {
	[VM_STOPPED] = "stopped", [VM_STARTING] = "starting", [VM_RUNNING] = "running",
	[VM_PAUSED] = "paused",	  [VM_STOPPING] = "stopping", [VM_ASLEEP] = "asleep",
	[VM_CRASHED] = "crashed", [VM_UNKNOWN] = "unknown",
};

const char *vm_state_name(VmState state)
{
	return state_names[state];
}

VmState vm_state_find(const char *name)
{
	for (unsigned i = 0; i < VM_STATE_MAX; i++)
		if (!strcmp(state_names[i], name))
			return (VmState)i;
	return VM_STATE_MAX;
}

Vm *vm_new(uint32_t serial, uint32_t id, const char *name)
{
	Vm *vm = g_new0(Vm, 1);

	vm->refs = 1;
	vm->serial = serial;
	vm->id = id;
	vm->name = g_strdup(name);
	vm->spec = spec_default();
	vm->exit_status = -1;
	vm->created = vm->changed = vm->since = vm_now();
	vm_renew_instance_id(vm);
	return vm;
}

void vm_renew_instance_id(Vm *vm)
{
	g_free(vm->instance_id);
	vm->instance_id = g_uuid_string_random();
}

Vm *vm_ref(Vm *vm)
{
	vm->refs++;
	return vm;
}

void vm_drop_backend(Vm *vm)
{
	if (!vm->bv)
		return;
	exec_forget_all(vm);
	if (vm->bv->be->cls->fini)
		vm->bv->be->cls->fini(vm->bv);
	spec_unref(vm->bv->spec);
	g_free(vm->bv);
	vm->bv = NULL;
}

void vm_detach(Vm *vm)
{
	tty_close(vm);
	ssh_forget(vm);
	vm_drop_backend(vm);
	lifetime_fini(vm);
	ask_forget(vm);
	scratch_free_all(vm);
	snapshot_free_all(vm);
}

void vm_unref(Vm *vm)
{
	if (!vm || --vm->refs)
		return;
	vm_detach(vm);
	spec_unref(vm->spec);
	if (vm->rejected)
		g_bytes_unref(vm->rejected);
	if (vm->attrs)
		g_hash_table_unref(vm->attrs);
	if (vm->facts)
		g_ptr_array_unref(vm->facts);
	if (vm->run)
		g_key_file_unref(vm->run);
	if (vm->to_apply)
		g_ptr_array_unref(vm->to_apply);
	exec_free(vm);
	g_strfreev(vm->ips);
	g_free(vm->next_name);
	g_free(vm->home.host);
	g_free(vm->home.key);
	g_free(vm->home.name);
	stream_free(vm->console);
	stream_free(vm->events);
	keep_unset(KEEP_EVENTS, vm->serial);
	g_free(vm->name);
	g_free(vm->instance_id);
	g_free(vm->reason);
	g_free(vm->error);
	g_free(vm->data_dir);
	g_free(vm->run_dir);
	g_free(vm->asked);
	g_free(vm);
}

bool vm_is_asleep(const Vm *vm)
{
	return vm->pushed == VM_ASLEEP;
}

bool vm_is_live(const Vm *vm)
{
	return vm->state != VM_STOPPED && vm->state != VM_CRASHED && vm->state != VM_ASLEEP;
}

Backend *vm_backend_kind(const Vm *vm, GError **err)
{
	if (vm->home.be)
		return vm->home.be;
	if (vm->bv && (vm_is_live(vm) || vm_is_asleep(vm) || vm->op))
		return vm->bv->be;
	return backend_for(vm->spec, err);
}

const char *vm_host(const Vm *vm)
{
	if (vm->home.host)
		return vm->home.host;
	return vm->spec->host ? vm->spec->host : "local";
}

BackendVm *vm_backend(Vm *vm, GError **err)
{
	Backend *be;

	if (vm->bv && (vm_is_live(vm) || vm_is_asleep(vm) || vm->op))
		return vm->bv;
	be = vm_backend_kind(vm, err);
	if (!be)
		return NULL;
	if (vm->bv && vm->bv->be != be)
		vm_drop_backend(vm);
	if (!vm->bv) {
		vm->bv = g_malloc0(be->cls->vm_size);
		vm->bv->be = be;
		vm->bv->vm = vm;
	}
	spec_unref(vm->bv->spec);
	vm->bv->spec = spec_ref(vm->spec);
	return vm->bv;
}

void vm_all_changed(unsigned changes)
{
	for (unsigned i = 0; i < EV_COUNT; i++)
		if (changes & (1u << i))
			vm_all.versions[i]++;
	waitq_wake(&vm_all.waiters);
}

void vm_changed(Vm *vm, unsigned changes)
{
	vm->changed = vm_now();
	for (unsigned i = 0; i < EV_COUNT; i++)
		if (changes & (1u << i)) {
			vm->versions[i]++;
			vm_all.versions[i]++;
		}
	vm_keep(vm);
	/* This first: what is told below must not be read from the kernel's memory. */
	if (vm_all.changed)
		vm_all.changed(vm, changes);
	events_emit(vm, changes);
	waitq_wake(&vm->waiters);
	list_change(vm, changes);
	waitq_wake(&vm_all.waiters);
}

static bool op_state(const Vm *vm, VmState *ret)
{
	if (!vm->op || op_done(vm->op) || op_verb(vm->op)->during == VM_STATE_MAX)
		return false;
	*ret = op_verb(vm->op)->during;
	return true;
}

/* What ends with the run of a VM. Returns what that changed. */
static unsigned forget_run(Vm *vm)
{
	unsigned changes = 0;

	if (vm->ips)
		changes |= EV_IP;
	if (vm->agent)
		changes |= EV_AGENT;
	if (vm->pid)
		changes |= EV_PID;
	g_clear_pointer(&vm->ips, g_strfreev);
	g_clear_pointer(&vm->facts, g_ptr_array_unref);
	vm->agent = false;
	vm->cloud_init = NULL;
	vm->pid = 0;
	ask_forget(vm);
	return changes;
}

/* Show the state that holds now, with what else has changed: they are told of as one. */
static void refresh_state(Vm *vm, unsigned changes)
{
	VmState state = vm->pushed;
	bool was_live = vm_is_live(vm);

	(void)op_state(vm, &state);
	if (state != vm->state) {
		vm->state = state;
		vm->since = vm_now();
		/* Only a live VM can differ from its spec. */
		changes |= EV_STATE | (was_live != vm_is_live(vm) ? EV_PENDING : 0);
	}
	if (changes)
		vm_changed(vm, changes);
	if (changes & EV_STATE) {
		vm_save_run(vm);
		ssh_look_again(vm);
	}
}

void vm_refresh_state(Vm *vm)
{
	refresh_state(vm, 0);
}

void vm_push_state(Vm *vm, VmState state, const char *reason)
{
	const bool resumes =
		(vm->pushed == VM_PAUSED || vm->pushed == VM_ASLEEP) && state == VM_RUNNING;
	unsigned changes = 0;

	if (g_strcmp0(vm->reason, reason)) {
		g_free(vm->reason);
		vm->reason = g_strdup(reason);
		changes |= EV_REASON;
	}
	vm->pushed = state;
	if (state == VM_STOPPED || state == VM_CRASHED || state == VM_ASLEEP) {
		exec_end_all(vm, vm_state_name(state));
		changes |= forget_run(vm);
	}
	if (vm->saved && state != VM_ASLEEP && state != VM_UNKNOWN)
		(void)vm_set_saved(vm, SAVED_NONE, NULL, NULL);
	refresh_state(vm, changes);
	/* What the guest has to take part in has waited for it. */
	if (resumes)
		vm_apply(vm);
}

void vm_set_error(Vm *vm, const char *verb, const GError *e)
{
	g_autofree char *path = g_strdup_printf("vms/%u/error", vm->serial);
	g_autoptr(GBytes) bytes = NULL;
	GString *line;

	if (!e && !vm->error)
		return;
	g_clear_pointer(&vm->error, g_free);
	if (e) {
		int code = err_code(e);

		line = g_string_new(NULL);
		events_time(line, vm_now());
		g_string_append_printf(line, " %s %s: %s", verb, err_name(code), e->message);
		/* One line, and no book, whatever a hypervisor or a guest put into its message. */
		if (line->len > MAX_ERROR) {
			const char *end = line->str + MAX_ERROR + 1;

			g_string_truncate(
				line, (gsize)(g_utf8_find_prev_char(line->str, end) - line->str));
		}
		for (char *c = line->str; *c; c++)
			if ((unsigned char)*c < ' ')
				*c = ' ';
		vm->error = g_string_free(line, FALSE);
		bytes = g_bytes_new(vm->error, strlen(vm->error));
		store_put(path, bytes, false, NULL, NULL);
	} else {
		store_remove(path, NULL, NULL);
	}
	vm_changed(vm, EV_ERROR);
}

GPtrArray *vm_pending(const Vm *vm)
{
	const BackendClass *cls = vm->bv ? vm->bv->be->cls : NULL;
	GPtrArray *keys;

	if (!vm->bv || !(vm_is_live(vm) || vm_is_asleep(vm)))
		return g_ptr_array_new();
	keys = spec_diff(vm->spec, vm->bv->spec);
	for (unsigned i = keys->len; cls->is_open && i--;)
		if (cls->is_open(vm->spec, keys->pdata[i]))
			g_ptr_array_remove_index(keys, i);
	return keys;
}

void vm_set_spec(Vm *vm, Spec *spec)
{
	Spec *before = vm->spec;

	vm->spec = spec_ref(spec);
	attach_spec_changed(vm, before);
	spec_unref(before);
	vm_changed(vm, EV_SPEC | (vm_is_live(vm) || vm_is_asleep(vm) ? EV_PENDING : 0));
	lifetime_spec_changed(vm);
}

void vm_set_rejected(Vm *vm, GBytes *text)
{
	g_autofree char *path = g_strdup_printf("vms/%u/spec.yaml.rej", vm->serial);

	if (!text && !vm->rejected)
		return;
	if (vm->rejected)
		g_bytes_unref(vm->rejected);
	vm->rejected = text ? g_bytes_ref(text) : NULL;
	if (text)
		store_put(path, text, true, NULL, NULL);
	else
		store_remove(path, NULL, NULL);
	vm_changed(vm, EV_REJECTED);
}

int vm_open_console_log(Vm *vm)
{
	g_autofree char *path = g_build_filename(vm_data_dir(vm), "console.log", NULL);
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	struct stat st;

	/* The directory is its owner's, who could put anything there, a link to another's file too.
	 */
	if (fd >= 0 && (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_nlink != 1)) {
		close(fd);
		errno = EACCES;
		return -1;
	}
	return fd;
}

/* The recent past, as the former daemon had it: readers find their places again. */
static void restore_console(Vm *vm)
{
	g_autoptr(GBytes) value = keep_get(KEEP_CONSOLE, vm->serial);
	g_autofree char *buf = NULL;
	ConsoleMark mark;
	uint64_t past;
	ssize_t n;
	int fd;

	if (!value)
		return;
	keep_copy(&mark, sizeof mark, value);
	past = MIN(VM_CONSOLE_KEEP, MIN(mark.end, mark.offset));
	buf = g_malloc(past + 1);
	fd = vm_open_console_log(vm);
	n = fd < 0 ? -1 : pread(fd, buf, past, (off_t)(mark.offset - past));
	if (fd >= 0)
		close(fd);
	if (n == (ssize_t)past) {
		stream_begin(vm->console, mark.end - past);
		stream_append(vm->console, buf, past);
	} else {
		stream_begin(vm->console, mark.end);
	}
	vm->console_mark = mark.offset;
}

Stream *vm_console(Vm *vm)
{
	if (!vm->console) {
		vm->console = stream_new(VM_CONSOLE_KEEP);
		restore_console(vm);
	}
	return vm->console;
}

ssize_t vm_type(Vm *vm, const char *data, size_t len)
{
	size_t n;

	if (vm->pushed != VM_RUNNING && vm->pushed != VM_PAUSED)
		return -ESRCH;
	n = vm->bv->be->cls->console_write(vm->bv, data, len);
	return n || !len ? (ssize_t)n : -EAGAIN;
}

/* ---- what backends ask ---- */

uint32_t vm_serial(const Vm *vm)
{
	return vm->serial;
}

const char *vm_name(const Vm *vm)
{
	return vm->name;
}

const Spec *vm_spec(const Vm *vm)
{
	return vm->spec;
}

const char *vm_instance_id(const Vm *vm)
{
	return vm->instance_id;
}

unsigned vm_id(const Vm *vm)
{
	return vm->id;
}

uid_t vm_uid(const Vm *vm)
{
	return vm->uid;
}

gid_t vm_gid(const Vm *vm)
{
	return vm->gid;
}

VmState vm_state(const Vm *vm)
{
	return vm->state;
}

const char *vm_data_dir(Vm *vm)
{
	if (!vm->data_dir)
		vm->data_dir = store_path("vms/%u/data", vm->serial);
	return vm->data_dir;
}

const char *vm_run_dir(Vm *vm)
{
	if (!vm->run_dir)
		vm->run_dir = g_strdup_printf("%s/%u", vm_config.runtime_dir, vm->serial);
	return vm->run_dir;
}

GKeyFile *vm_run_file(Vm *vm)
{
	return vm->run;
}

/* Only plain entries can be in it; the owner could have put a link in its place, so by fd. */
static bool remove_run_dir(const char *dir)
{
	const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *entry;

	if (!d) {
		if (fd >= 0)
			close(fd);
		return errno == ENOENT;
	}
	while ((entry = readdir(d)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			(void)unlinkat(fd, entry->d_name, 0);
	closedir(d);
	return !rmdir(dir) || errno == ENOENT;
}

bool vm_make_run_dir(Vm *vm, GError **err)
{
	const char *dir = vm_run_dir(vm);

	if (!remove_run_dir(dir))
		return err_set(err, errno, "cannot empty %s: %s", dir, g_strerror(errno));
	if (mkdir(dir, 0700) || (geteuid() == 0 && chown(dir, vm->uid, vm->gid)))
		return err_set(err, errno, "cannot make %s: %s", dir, g_strerror(errno));
	return true;
}

void vm_remove_run_dir(Vm *vm)
{
	const char *dir = vm_run_dir(vm);

	if (!remove_run_dir(dir))
		log_warning("cannot remove %s: %s", dir, g_strerror(errno));
}

/* ---- what backends report ---- */

void backend_state(BackendVm *bv, VmState state, const char *reason)
{
	Vm *vm = bv->vm;

	/* Found as it was left: then the reason for that holds as well. */
	if (!reason && vm->run && state == vm->pushed)
		reason = vm->reason;
	if (state == VM_RUNNING)
		clone_begun(vm);
	vm_push_state(bv->vm, state, reason);
}

void backend_gone(BackendVm *bv, VmState state, const char *reason, int exit_status)
{
	Vm *vm = bv->vm;

	vm->exit_status = exit_status;
	if (vm->pushed != VM_STOPPED && vm->pushed != VM_CRASHED && vm->pushed != VM_ASLEEP)
		log_info("%s: %s (%s)", vm->name, vm_state_name(state), reason ? reason : "-");
	vm_push_state(vm, state, reason);
	lifetime_ended(vm, state, reason);
	vm_save_run(vm);
}

void backend_ips(BackendVm *bv, const char *const *ips)
{
	Vm *vm = bv->vm;
	GPtrArray *copy;

	if (!ips && !vm->ips)
		return;
	if (ips && vm->ips && g_strv_equal(ips, (const char *const *)vm->ips))
		return;
	g_clear_pointer(&vm->ips, g_strfreev);
	if (ips && ips[0]) {
		copy = g_ptr_array_new();
		for (unsigned i = 0; ips[i] && i < MAX_IPS; i++)
			g_ptr_array_add(copy, g_strdup(ips[i]));
		g_ptr_array_add(copy, NULL);
		vm->ips = (char **)g_ptr_array_free(copy, FALSE);
	}
	vm_changed(vm, EV_IP);
}

void backend_agent(BackendVm *bv, bool up)
{
	if (bv->vm->agent == up)
		return;
	bv->vm->agent = up;
	/* Until it is asked again: the next agent may be that of another boot. */
	bv->vm->cloud_init = NULL;
	vm_changed(bv->vm, EV_AGENT);
}

void backend_cloud_init(BackendVm *bv, const char *result)
{
	bv->vm->cloud_init = result;
	waitq_wake(&bv->vm->waiters);
}

void backend_console(BackendVm *bv, const char *data, size_t len)
{
	stream_append(vm_console(bv->vm), data, len);
}

void backend_console_at(BackendVm *bv, uint64_t offset)
{
	const ConsoleMark mark = { stream_end(vm_console(bv->vm)), offset };

	keep_set(KEEP_CONSOLE, bv->vm->serial, &mark, sizeof mark);
}

bool vm_console_resume(Vm *vm, uint64_t *offset)
{
	(void)vm_console(vm);
	*offset = vm->console_mark;
	vm->console_mark = 0;
	return *offset != 0;
}

void backend_console_room(BackendVm *bv)
{
	waitq_wake(&bv->vm->console_writers);
}

void backend_fact(BackendVm *bv, const char *key, const char *value)
{
	Vm *vm = bv->vm;
	size_t len = strlen(key);

	if (!vm->facts)
		vm->facts = g_ptr_array_new_with_free_func(g_free);
	for (unsigned i = 0; i < vm->facts->len; i++) {
		const char *fact = vm->facts->pdata[i];

		if (!strncmp(fact, key, len) && fact[len] == ' ') {
			g_ptr_array_remove_index(vm->facts, i);
			break;
		}
	}
	if (value && vm->facts->len < MAX_FACTS)
		g_ptr_array_add(vm->facts, g_strdup_printf("%s %s", key, value));
	vm_changed(vm, EV_FACTS);
}

void backend_changed(BackendVm *bv)
{
	vm_save_run(bv->vm);
}

void backend_pid(BackendVm *bv, pid_t pid)
{
	if (bv->vm->pid == pid)
		return;
	bv->vm->pid = pid;
	vm_changed(bv->vm, EV_PID);
}
