/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/snapshot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/clone.h"
#include "vmfs/err.h"
#include "vmfs/snapshot_internal.h"
#include "vmfs/store.h"

#define PREFIX	     "snap." /* of a directory in the data directory; no disk's file is named so */
#define TEMPLATE     "template." /* of a directory beside it */
#define MAX_NAME     63
#define LAST_NUMBER  0x3fff /* what fits into an inode number, beside the number of a file */
#define TAKE_WAIT_MS 900
#define GRACE_MS     500
#define MAX_INDEX    (1u << 20)

static const char *const state_names[] = {
	[SNAPSHOT_TAKING] = "taking",	    [SNAPSHOT_READY] = "ready",
	[SNAPSHOT_IMPORTING] = "importing", [SNAPSHOT_DAMAGED] = "damaged",
	[SNAPSHOT_DROPPING] = "dropping",
};

const char *snapshot_state_name(SnapshotState state)
{
	return state_names[state];
}

SnapshotState snapshot_state(const Snapshot *s)
{
	return s->state;
}

Vm *snapshot_vm(const Snapshot *s)
{
	return s->vm;
}

uid_t snapshot_uid(const Snapshot *s)
{
	return s->vm->uid;
}

char *snapshot_template(const Snapshot *s, uid_t uid)
{
	return store_path("vms/%u/" TEMPLATE "%u.%u", s->vm->serial, s->number, uid);
}

const char *snapshot_dir(const Snapshot *s)
{
	return s->dir;
}

const char *snapshot_name(const Snapshot *s)
{
	return s->name;
}

unsigned snapshot_number(const Snapshot *s)
{
	return s->number;
}

bool vm_has_snapshots(const Vm *vm)
{
	return vm->snapshots && vm->snapshots->len;
}

bool snapshot_is_booked(const Snapshot *s)
{
	return s->booked;
}

bool snapshot_has_memory(const Snapshot *s)
{
	return s->has_memory;
}

/* ---- all of a VM ---- */

Snapshot *snapshot_find(const Vm *vm, const char *name)
{
	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++) {
		Snapshot *s = vm->snapshots->pdata[i];

		if (s->state != SNAPSHOT_DROPPING && !strcmp(s->name, name))
			return s;
	}
	return NULL;
}

Snapshot *snapshot_by_number(const Vm *vm, uint32_t number)
{
	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++) {
		Snapshot *s = vm->snapshots->pdata[i];

		if (s->state != SNAPSHOT_DROPPING && s->number == number)
			return s;
	}
	return NULL;
}

Snapshot *snapshot_after(const Vm *vm, uint32_t number)
{
	Snapshot *best = NULL;

	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++) {
		Snapshot *s = vm->snapshots->pdata[i];

		if (s->state != SNAPSHOT_DROPPING && s->number > number &&
		    (!best || s->number < best->number))
			best = s;
	}
	return best;
}

static bool number_taken(const Vm *vm, uint32_t number)
{
	for (guint i = 0; i < vm->snapshots->len; i++)
		if (((Snapshot *)vm->snapshots->pdata[i])->number == number)
			return true;
	return false;
}

static uint32_t new_number(Vm *vm)
{
	do {
		vm->last_snapshot = vm->last_snapshot % LAST_NUMBER + 1;
	} while (number_taken(vm, vm->last_snapshot));
	return vm->last_snapshot;
}

static Snapshot *snapshot_new(Vm *vm, const char *name, uint32_t number)
{
	Snapshot *s = g_new0(Snapshot, 1);

	s->vm = vm;
	s->number = number;
	s->name = g_strdup(name);
	s->dir = g_strdup_printf("%s/" PREFIX "%u", vm_data_dir(vm), number);
	s->files = g_ptr_array_new_with_free_func(g_free);
	s->creates = g_ptr_array_new();
	if (!vm->snapshots)
		vm->snapshots = g_ptr_array_new();
	g_ptr_array_add(vm->snapshots, s);
	return s;
}

static void snapshot_free(Snapshot *s)
{
	import_answer(s, ENOENT);
	savedir_cancel(&s->job);
	timer_stop(&s->grace);
	op_unref(s->op);
	g_ptr_array_unref(s->files);
	g_ptr_array_unref(s->creates);
	g_free(s->name);
	g_free(s->dir);
	g_free(s->spec);
	g_free(s->xml);
	g_free(s);
}

void snapshot_free_all(Vm *vm)
{
	while (vm->snapshots && vm->snapshots->len)
		snapshot_free(g_ptr_array_steal_index(vm->snapshots, 0));
	g_clear_pointer(&vm->snapshots, g_ptr_array_unref);
}

/* What an answer of the store is about. */
typedef struct Stored {
	Vm *vm; /* a reference */
	uint32_t number;
	SnapshotState state;
} Stored;

static void stored(void *arg, int err);

/* Which there are, for a later daemon. */
static void put_index(Vm *vm, StoreDone fn, void *arg)
{
	g_autofree char *path = g_strdup_printf("vms/%u/snapshots", vm->serial);
	g_autoptr(GKeyFile) file = g_key_file_new();
	g_autoptr(GBytes) bytes = NULL;
	gsize len;
	char *text;

	g_key_file_set_integer(file, "#", "last", (int)vm->last_snapshot);
	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++) {
		const Snapshot *one = vm->snapshots->pdata[i];

		if (one->next == SNAPSHOT_DROPPING)
			continue;
		g_key_file_set_integer(file, one->name, "number", (int)one->number);
		g_key_file_set_string(file, one->name, "state", state_names[one->next]);
		g_key_file_set_int64(file, one->name, "made", one->made);
		if (one->booked)
			g_key_file_set_boolean(file, one->name, "booked", true);
	}
	text = g_key_file_to_data(file, &len, NULL);
	bytes = g_bytes_new_take(text, len);
	store_put(path, bytes, true, fn, arg);
}

/*
 * `s` is to be in that state, and gets there when that is safe on the disk: so that what a user has
 * been told holds after a restart.
 */
void snapshot_store_state(Snapshot *s, SnapshotState state)
{
	Stored *next = g_new(Stored, 1);

	s->next = state;
	*next = (Stored){ vm_ref(s->vm), s->number, state };
	put_index(s->vm, stored, next);
}

void snapshot_store_all(Vm *vm)
{
	put_index(vm, NULL, NULL);
}

Snapshot *snapshot_add(Vm *vm, const char *name, SnapshotState state)
{
	Snapshot *s;

	if (!vm->snapshots)
		vm->snapshots = g_ptr_array_new();
	s = snapshot_new(vm, name, new_number(vm));
	s->state = s->next = state;
	return s;
}

void snapshot_remove(Snapshot *s)
{
	g_ptr_array_remove(s->vm->snapshots, s);
	snapshot_free(s);
}

void snapshot_set_state(Snapshot *s, SnapshotState state)
{
	s->state = s->next = state;
	vm_changed(s->vm, EV_SNAPSHOT);
}

/* ---- files ---- */

const char *snapshot_file(const Snapshot *s, uint32_t number)
{
	return number && number <= s->files->len ? s->files->pdata[number - 1] : NULL;
}

uint32_t snapshot_find_file(const Snapshot *s, const char *name)
{
	for (guint i = 0; i < s->files->len; i++)
		if (!strcmp(s->files->pdata[i], name))
			return i + 1;
	return 0;
}

uint32_t snapshot_file_after(const Snapshot *s, uint32_t number)
{
	return number < s->files->len ? number + 1 : 0;
}

static gint by_name(gconstpointer a, gconstpointer b)
{
	const char *x = *(char *const *)a, *y = *(char *const *)b;
	const int manifest = !strcmp(y, SAVEDIR_MANIFEST) - !strcmp(x, SAVEDIR_MANIFEST);

	/* The manifest first, so that an import knows from the start what is to come. */
	return manifest ? manifest : strcmp(x, y);
}

void snapshot_list_files(Snapshot *s)
{
	const int fd = open(s->dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	g_ptr_array_set_size(s->files, 0);
	while (d && (e = readdir(d)) && s->files->len <= SAVEDIR_MAX_FILES)
		if (savedir_is_name(e->d_name))
			g_ptr_array_add(s->files, g_strdup(e->d_name));
	if (d)
		closedir(d);
	g_ptr_array_sort(s->files, by_name);
	s->has_memory = snapshot_find_file(s, SAVEDIR_MEMORY) != 0;
}

int snapshot_open(const Snapshot *s, uint32_t file, bool write)
{
	const char *name = snapshot_file(s, file);
	g_autoptr(GError) e = NULL;
	int dir, fd;

	if (!name || (write && s->state != SNAPSHOT_IMPORTING && s->state != SNAPSHOT_DAMAGED)) {
		errno = name ? EPERM : ENOENT;
		return -1;
	}
	dir = savedir_open(s->dir, &e);
	fd = dir < 0 ? -1 : savedir_open_file(dir, name, write, &e);
	if (dir >= 0)
		close(dir);
	if (fd < 0)
		errno = err_code(e);
	return fd;
}

/* ---- dropping ---- */

static GPtrArray *templates_of(const Vm *vm);
static uint32_t template_number(const char *name);

static void template_dropped(void *arg, const Manifest *m, const GError *err)
{
}

static void drop_templates(const Snapshot *s)
{
	g_autoptr(GPtrArray) names = templates_of(s->vm);

	for (guint i = 0; i < names->len; i++) {
		g_autofree char *path =
			store_path("vms/%u/%s", s->vm->serial, (char *)names->pdata[i]);

		if (template_number(names->pdata[i]) == s->number)
			(void)savedir_drop(path, template_dropped, NULL);
	}
}

static void drop_done(void *arg, const Manifest *m, const GError *err)
{
	Snapshot *s = arg;
	Vm *vm = s->vm;
	SnapshotDone done = s->dropped;
	void *done_arg = s->dropped_arg;

	s->job = NULL;
	drop_templates(s);
	snapshot_remove(s);
	if (done) {
		vm_set_error(vm, NULL, NULL);
		done(done_arg, 0);
	}
}

void snapshot_begin_drop(Snapshot *s)
{
	savedir_cancel(&s->job);
	timer_stop(&s->grace);
	snapshot_set_state(s, SNAPSHOT_DROPPING);
	import_answer(s, ENOENT);
	snapshot_store_state(s, SNAPSHOT_DROPPING);
}

static void stored(void *arg, int err)
{
	Stored *a = arg;
	Vm *vm = a->vm;

	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++) {
		Snapshot *s = vm->snapshots->pdata[i];

		if (s->number != a->number || s->next != a->state)
			continue;
		if (a->state == SNAPSHOT_DROPPING && !s->job)
			s->job = savedir_drop(s->dir, drop_done, s);
		else if (a->state == SNAPSHOT_TAKING && s->import && !s->op && !s->job)
			s->job = savedir_drop(s->dir, import_begin, s);
		else if (s->state != a->state && !s->grace)
			snapshot_set_state(s, a->state);
	}
	vm_unref(vm);
	g_free(a);
}

int snapshot_fail(Vm *vm, const char *verb, GError *take)
{
	const int code = err_code(take);

	vm_set_error(vm, verb, take);
	g_error_free(take);
	return code;
}

int snapshot_drop(Snapshot *s, SnapshotDone done, void *arg)
{
	const Op *op = s->vm->op;

	if (s->state == SNAPSHOT_TAKING)
		return snapshot_fail(s->vm, "rmdir",
				     err_new(EBUSY,
					     "snapshot '%s' is being taken; wait until it is ready",
					     s->name));
	if (op && op_kind(op) == OP_RESTORE && op_arg(op) == s)
		return snapshot_fail(s->vm, "rmdir",
				     err_new(EBUSY, "snapshot '%s' is being restored", s->name));
	if (clone_user(s->vm, s->number))
		return snapshot_fail(
			s->vm, "rmdir",
			err_new(EBUSY,
				"VM '%s' is made from snapshot '%s' and needs it; remove that VM "
				"first",
				clone_user(s->vm, s->number)->name, s->name));
	if (s->booked)
		return booked_drop(s, done, arg);
	s->dropped = done;
	s->dropped_arg = arg;
	snapshot_begin_drop(s);
	return 0;
}

/* ---- taking ---- */

typedef struct Taking {
	Op *op; /* a reference */
	OpWaiter *waiter;
	Timer *timer;
	SnapshotDone done;
	void *arg;
} Taking;

static void taking_answer(Taking *t, int err)
{
	timer_stop(&t->timer);
	op_unref(t->op);
	t->done(t->arg, err);
	g_free(t);
}

static void taking_woken(Op *op, void *arg)
{
	const GError *e = op_done(op) ? op_error(op) : NULL;

	taking_answer(arg, e ? err_code(e) : 0);
}

static void taking_late(void *arg)
{
	Taking *t = arg;

	t->timer = NULL;
	op_unwait(t->op, t->waiter);
	taking_answer(t, 0);
}

static void settle(void *arg)
{
	Snapshot *s = arg;

	s->grace = NULL;
	if (!s->booked)
		snapshot_list_files(s);
	snapshot_store_state(s, SNAPSHOT_READY);
}

/* mkdir(1) has ended by now. Another program may be about to make files in its directory. */
static bool maker_is_there(const Snapshot *s)
{
	return !kill(s->maker, 0) || errno == EPERM;
}

/* The op has ended: with a snapshot, or with nothing. */
static void taken(Op *op, void *arg)
{
	Snapshot *s = arg;
	const bool ok = !op_error(op);

	op_unref(s->op);
	s->op = NULL;
	if (s->import) {
		vm_set_error(s->vm, NULL, NULL);
		s->job = savedir_drop(s->dir, import_begin, s);
	} else if (ok && !s->booked && maker_is_there(s)) {
		/* A daemon that comes after us need not wait for the maker. */
		s->grace = timer_start(GRACE_MS, settle, s);
		snapshot_store_state(s, SNAPSHOT_READY);
	} else if (ok) {
		settle(s);
	} else {
		snapshot_begin_drop(s);
	}
}

bool snapshot_is_name(const char *name)
{
	return strlen(name) <= MAX_NAME && savedir_is_name(name);
}

void snapshot_follow(Snapshot *s, Op *op)
{
	s->op = op_ref(op);
	(void)op_wait(op, false, taken, s);
}

static int check_new(Vm *vm, const char *name)
{
	if (strlen(name) > MAX_NAME)
		return ENAMETOOLONG;
	if (!snapshot_is_name(name))
		return EINVAL;
	if (snapshot_find(vm, name))
		return EEXIST;
	if (vm->snapshots && vm->snapshots->len >= SNAPSHOT_MAX)
		return snapshot_fail(vm, "snapshot",
				     err_new(ENOSPC,
					     "a VM has at most %d snapshots; remove one with rmdir",
					     SNAPSHOT_MAX));
	return 0;
}

int snapshot_take(Vm *vm, const char *name, pid_t maker, SnapshotDone done, void *arg)
{
	const int err = check_new(vm, name);
	const Backend *be = vm_backend_kind(vm, NULL);
	GError *e = NULL;
	Snapshot *s;
	Taking *t;
	Op *op;

	if (err)
		return err;
	/* tar(1) makes the directory again that is gone from under its hands. */
	if (vm->full_for && vm->full_for == maker)
		return ENOSPC;
	vm->full_for = 0;
	s = snapshot_add(vm, name, SNAPSHOT_TAKING);
	s->made = vm_now();
	s->maker = maker;
	s->booked = be && be->cls->snapshot_drop;
	vm_changed(vm, EV_SNAPSHOT);
	if (!vm_order(vm, OP_SNAPSHOT, s, NULL, &op, &e)) {
		snapshot_remove(s);
		vm_changed(vm, EV_SNAPSHOT);
		return snapshot_fail(vm, "snapshot", e);
	}
	/* A daemon that finds it like this tells that it is no more. */
	snapshot_store_state(s, SNAPSHOT_TAKING);
	t = g_new0(Taking, 1);
	*t = (Taking){ .op = op_ref(op), .done = done, .arg = arg };
	if (op_done(op)) {
		const int code = op_error(op) ? err_code(op_error(op)) : 0;

		s->op = op_ref(op);
		taken(op, s);
		taking_answer(t, code);
		return 0;
	}
	snapshot_follow(s, op);
	t->timer = timer_start(TAKE_WAIT_MS, taking_late, t);
	if (op_accepted(op)) {
		taking_answer(t, 0);
		return 0;
	}
	t->waiter = op_wait(op, true, taking_woken, t);
	return 0;
}

/* ---- restoring ---- */

Snapshot *snapshot_ready(const Vm *vm, const char *name, GError **err)
{
	Snapshot *s = snapshot_find(vm, name);
	g_autoptr(GString) names = NULL;

	if (s && s->state == SNAPSHOT_READY)
		return s;
	if (s) {
		(void)err_set(err, s->state == SNAPSHOT_DAMAGED ? EBADMSG : EBUSY,
			      "snapshot '%s' is %s", name, state_names[s->state]);
		return NULL;
	}
	names = g_string_new(NULL);
	snapshot_list(vm, names);
	(void)err_set(err, ENOENT, "there is no snapshot '%.63s'; there are: %s", name, names->str);
	return NULL;
}

/* ---- telling ---- */

void snapshot_list(const Vm *vm, GString *out)
{
	const Snapshot *s = snapshot_after(vm, 0);

	if (!s)
		g_string_append_c(out, '-');
	for (bool first = true; s; s = snapshot_after(vm, s->number), first = false)
		g_string_append_printf(out, "%s%s %s", first ? "" : " ", s->name,
				       state_names[s->state]);
}

void snapshot_status(const Vm *vm, GString *out)
{
	for (const Snapshot *s = snapshot_after(vm, 0); s; s = snapshot_after(vm, s->number)) {
		if (s->state == SNAPSHOT_READY)
			continue;
		g_string_append_printf(out, "snapshot.%s %s", s->name, state_names[s->state]);
		if (s->state == SNAPSHOT_IMPORTING)
			g_string_append_printf(out, " %u%%%s", import_percent(s),
					       s->job ? " verifying" : "");
		g_string_append_c(out, '\n');
	}
}

bool snapshot_any_unsettled(const Vm *vm)
{
	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++) {
		const Snapshot *s = vm->snapshots->pdata[i];

		if (s->state == SNAPSHOT_TAKING || (s->state == SNAPSHOT_IMPORTING && s->job))
			return true;
	}
	return false;
}

/* ---- at start ---- */

GError *snapshot_unfinished(const char *name)
{
	return err_new(ECANCELED,
		       "the snapshot '%.63s' was not finished when vmfs was restarted, and is no "
		       "more",
		       name);
}

Snapshot *snapshot_carry_on(const Vm *vm, const char *name, Op *op, GError **err)
{
	Snapshot *s = snapshot_find(vm, name);

	if (!s || !s->booked || s->state != SNAPSHOT_TAKING) {
		g_propagate_error(err, snapshot_unfinished(name));
		return NULL;
	}
	snapshot_follow(s, op);
	return s;
}

/* False: it was being taken, and is no more. */
static bool load_one(Vm *vm, GKeyFile *file, const char *name)
{
	g_autofree char *word = g_key_file_get_string(file, name, "state", NULL);
	const int number = g_key_file_get_integer(file, name, "number", NULL);
	const bool booked = g_key_file_get_boolean(file, name, "booked", NULL);
	SnapshotState state = SNAPSHOT_TAKING;
	Snapshot *s;

	while (word && state < SNAPSHOT_DROPPING && strcmp(word, state_names[state]))
		state++;
	if (word && state == SNAPSHOT_TAKING && !booked) {
		g_autoptr(GError) e = snapshot_unfinished(name);

		vm_set_error(vm, "snapshot", e);
		return false;
	}
	if (!word || state == SNAPSHOT_DROPPING || !savedir_is_name(name) || number <= 0 ||
	    number > LAST_NUMBER || snapshot_find(vm, name) ||
	    snapshot_by_number(vm, (uint32_t)number))
		return true;
	s = snapshot_new(vm, name, (uint32_t)number);
	s->state = s->next = state;
	s->made = g_key_file_get_int64(file, name, "made", NULL);
	s->booked = booked;
	/* What has become of it, its hypervisor says. */
	if (booked)
		return true;
	snapshot_list_files(s);
	/* Its import may have been complete, and not looked at yet. */
	import_look(s);
	return true;
}

/* Names of the directories with what backends have made of snapshots. */
static GPtrArray *templates_of(const Vm *vm)
{
	g_autofree char *path = store_path("vms/%u", vm->serial);
	GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
	GDir *d = g_dir_open(path, 0, NULL);
	const char *name;

	while (d && (name = g_dir_read_name(d)))
		if (g_str_has_prefix(name, TEMPLATE))
			g_ptr_array_add(names, g_strdup(name));
	if (d)
		g_dir_close(d);
	return names;
}

static uint32_t template_number(const char *name)
{
	return (uint32_t)strtoul(name + strlen(TEMPLATE), NULL, 10);
}

/* Of snapshots that are gone, and those that were not finished. */
static void remove_templates(const Vm *vm)
{
	g_autoptr(GPtrArray) names = templates_of(vm);

	for (guint i = 0; i < names->len; i++) {
		const char *name = names->pdata[i];
		g_autofree char *path = store_path("vms/%u/%s", vm->serial, name);

		if (!snapshot_by_number(vm, template_number(name)) ||
		    g_str_has_suffix(name, SNAPSHOT_UNFINISHED))
			savedir_remove(path);
	}
}

/* Of those that were being taken, or removed. */
static void remove_leftovers(Vm *vm)
{
	GDir *d = g_dir_open(vm_data_dir(vm), 0, NULL);
	const char *name;

	while (d && (name = g_dir_read_name(d))) {
		g_autofree char *path = g_build_filename(vm_data_dir(vm), name, NULL);

		if (g_str_has_prefix(name, PREFIX) &&
		    !snapshot_by_number(vm, (uint32_t)atoi(name + strlen(PREFIX))))
			savedir_remove(path);
	}
	if (d)
		g_dir_close(d);
}

static void load_all(Vm *vm, GKeyFile *file)
{
	g_auto(GStrv) names = g_key_file_get_groups(file, NULL);
	bool all = true;

	vm->last_snapshot =
		(uint32_t)CLAMP(g_key_file_get_integer(file, "#", "last", NULL), 0, LAST_NUMBER);
	for (unsigned i = 0; names[i]; i++)
		all &= load_one(vm, file, names[i]);
	if (!all)
		put_index(vm, NULL, NULL);
}

void snapshot_load(Vm *vm)
{
	g_autofree char *path = g_strdup_printf("vms/%u/snapshots", vm->serial);
	g_autoptr(GBytes) bytes = store_get(path, MAX_INDEX);
	g_autoptr(GKeyFile) file = g_key_file_new();

	if (bytes && g_key_file_load_from_bytes(file, bytes, G_KEY_FILE_NONE, NULL))
		load_all(vm, file);
	remove_leftovers(vm);
	remove_templates(vm);
}
