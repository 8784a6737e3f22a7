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

#include "vmfs/err.h"
#include "vmfs/loop.h"
#include "vmfs/savedir.h"
#include "vmfs/store.h"

#define PREFIX	     "snap." /* of a directory in the data directory; no disk's file is named so */
#define MAX_NAME     63
#define LAST_NUMBER  0x3fff /* what fits into an inode number, beside the number of a file */
#define TAKE_WAIT_MS 900
#define IMPORT_US    (60 * G_USEC_PER_SEC) /* that a mkdir can turn out to be of an import */
#define GRACE_MS     500
#define MAX_INDEX    (1u << 20)

struct Snapshot {
	Vm *vm; /* which outlives it */
	uint32_t number;
	char *name, *dir;
	SnapshotState state, next; /* next: as stored, or on its way there */
	GPtrArray *files;	   /* names; number - 1 is the index */
	int64_t made;
	pid_t maker; /* of the mkdir; 0: it was before the daemon started */
	Op *op;	     /* a reference, while it is taken */
	Timer *grace;
	bool import; /* what is taken is to be dropped, and files to come */
	GPtrArray *creates;
	unsigned writers;
	SaveJob *job;
	bool has_memory;
	SnapshotDone dropped;
	void *dropped_arg;
};

/* A file to be made once what was taken is gone. */
typedef struct Create {
	char *name;
	SnapshotDone done;
	void *arg;
} Create;

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

static void answer_creates(Snapshot *s, int err);

static void snapshot_free(Snapshot *s)
{
	answer_creates(s, ENOENT);
	savedir_cancel(&s->job);
	timer_stop(&s->grace);
	op_unref(s->op);
	g_ptr_array_unref(s->files);
	g_ptr_array_unref(s->creates);
	g_free(s->name);
	g_free(s->dir);
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

/*
 * Which there are, for a later daemon, with `s` in that state: it gets there when that is safe on
 * the disk, so that what a user has been told holds after a restart. One that is being taken is not
 * spoken of, and so removed by a daemon that finds it.
 */
static void store_state(Snapshot *s, SnapshotState state)
{
	Vm *vm = s->vm;
	g_autofree char *path = g_strdup_printf("vms/%u/snapshots", vm->serial);
	g_autoptr(GKeyFile) file = g_key_file_new();
	g_autoptr(GBytes) bytes = NULL;
	Stored *next = g_new(Stored, 1);
	gsize len;
	char *text;

	s->next = state;
	g_key_file_set_integer(file, "#", "last", (int)vm->last_snapshot);
	for (guint i = 0; i < vm->snapshots->len; i++) {
		const Snapshot *one = vm->snapshots->pdata[i];

		if (one->next == SNAPSHOT_DROPPING || one->next == SNAPSHOT_TAKING)
			continue;
		g_key_file_set_integer(file, one->name, "number", (int)one->number);
		g_key_file_set_string(file, one->name, "state", state_names[one->next]);
		g_key_file_set_int64(file, one->name, "made", one->made);
	}
	text = g_key_file_to_data(file, &len, NULL);
	bytes = g_bytes_new_take(text, len);
	*next = (Stored){ vm_ref(vm), s->number, state };
	store_put(path, bytes, true, stored, next);
}

static void set_state(Snapshot *s, SnapshotState state)
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

static void list_files(Snapshot *s)
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

static void drop_done(void *arg, const Manifest *m, const GError *err)
{
	Snapshot *s = arg;
	Vm *vm = s->vm;
	SnapshotDone done = s->dropped;
	void *done_arg = s->dropped_arg;

	s->job = NULL;
	g_ptr_array_remove(vm->snapshots, s);
	snapshot_free(s);
	if (done)
		done(done_arg, 0);
}

static void drop(Snapshot *s)
{
	savedir_cancel(&s->job);
	timer_stop(&s->grace);
	set_state(s, SNAPSHOT_DROPPING);
	answer_creates(s, ENOENT);
	store_state(s, SNAPSHOT_DROPPING);
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
		else if (s->state != a->state)
			set_state(s, a->state);
	}
	vm_unref(vm);
	g_free(a);
}

static int fail(Vm *vm, const char *verb, GError *take)
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
		return fail(s->vm, "rmdir",
			    err_new(EBUSY, "snapshot '%s' is being taken; wait until it is ready",
				    s->name));
	if (op && op_kind(op) == OP_RESTORE && op_arg(op) == s)
		return fail(s->vm, "rmdir",
			    err_new(EBUSY, "snapshot '%s' is being restored", s->name));
	s->dropped = done;
	s->dropped_arg = arg;
	drop(s);
	return 0;
}

/* ---- imports ---- */

static int create_file(Snapshot *s, const char *name)
{
	g_autoptr(GError) e = NULL;
	int dir, fd;

	if (!savedir_is_name(name))
		return EINVAL;
	if (snapshot_find_file(s, name))
		return EEXIST;
	if (s->files->len > SAVEDIR_MAX_FILES)
		return ENOSPC;
	dir = savedir_open(s->dir, &e);
	fd = dir < 0 ? -1 : savedir_create(dir, name, vm_uid(s->vm), vm_gid(s->vm), &e);
	if (dir >= 0)
		close(dir);
	if (fd < 0)
		return err_code(e);
	close(fd);
	g_ptr_array_add(s->files, g_strdup(name));
	vm_changed(s->vm, EV_SNAPSHOT);
	return 0;
}

static void answer_creates(Snapshot *s, int err)
{
	while (s->creates->len) {
		Create *c = g_ptr_array_steal_index(s->creates, 0);

		c->done(c->arg, err ? err : create_file(s, c->name));
		g_free(c->name);
		g_free(c);
	}
}

/* What was taken is gone: an empty directory, to be filled through the mount. */
static void begin_import(void *arg, const Manifest *m, const GError *err)
{
	Snapshot *s = arg;
	g_autoptr(GError) e = NULL;
	int dir;

	s->job = NULL;
	s->import = false;
	s->has_memory = false;
	g_ptr_array_set_size(s->files, 0);
	dir = savedir_make(s->dir, vm_uid(s->vm), vm_gid(s->vm), &e);
	if (dir >= 0)
		close(dir);
	set_state(s, SNAPSHOT_IMPORTING);
	store_state(s, SNAPSHOT_IMPORTING);
	answer_creates(s, e ? err_code(e) : 0);
}

int snapshot_create(Snapshot *s, const char *name, pid_t maker, SnapshotDone done, void *arg)
{
	Create *c;
	int err;

	if (s->state == SNAPSHOT_IMPORTING || s->state == SNAPSHOT_DAMAGED) {
		err = create_file(s, name);
		if (!err)
			done(arg, 0);
		return err;
	}
	if (s->maker != maker || vm_now() - s->made > IMPORT_US)
		return fail(s->vm, "snapshot",
			    err_new(EPERM,
				    "snapshot '%s' is %s; files can only be made in one "
				    "that is imported, by whoever made its directory",
				    s->name, state_names[s->state]));
	c = g_new0(Create, 1);
	*c = (Create){ g_strdup(name), done, arg };
	g_ptr_array_add(s->creates, c);
	if (s->import)
		return 0;
	s->import = true;
	timer_stop(&s->grace);
	if (s->op)
		op_cancel(s->op, err_new(ECANCELED, "it is imported instead"));
	else
		s->job = savedir_drop(s->dir, begin_import, s);
	return 0;
}

static void verified(void *arg, const Manifest *m, const GError *err)
{
	Snapshot *s = arg;

	s->job = NULL;
	if (err) {
		g_autoptr(GError) e =
			err_new(err_code(err), "snapshot '%s': %s", s->name, err->message);
		vm_set_error(s->vm, "import", e);
		store_state(s, SNAPSHOT_DAMAGED);
		return;
	}
	/* What its manifest does not speak of is no part of it. */
	for (guint i = s->files->len; i-- > 0;) {
		const char *name = s->files->pdata[i];

		if (strcmp(name, SAVEDIR_MANIFEST) && !manifest_file(m, name)) {
			g_autofree char *path = g_build_filename(s->dir, name, NULL);
			(void)unlink(path);
		}
	}
	list_files(s);
	store_state(s, SNAPSHOT_READY);
}

/* What the manifest says, once it is all there; NULL before. */
static Manifest *imported_manifest(const Snapshot *s, GError **err)
{
	const int dir = savedir_open(s->dir, err);
	g_autoptr(GBytes) text = NULL;
	Manifest *m = NULL;

	if (dir < 0)
		return NULL;
	text = savedir_get(dir, SAVEDIR_MANIFEST, SAVEDIR_MAX_MANIFEST, err);
	close(dir);
	if (text)
		m = manifest_parse(g_bytes_get_data(text, NULL), g_bytes_get_size(text), err);
	return m;
}

static bool is_complete(const Snapshot *s, const Manifest *m)
{
	for (guint i = 0; i < m->files->len; i++)
		if (!snapshot_find_file(s, ((SavedFile *)m->files->pdata[i])->name))
			return false;
	return true;
}

/* Bytes there are, of those there will be. */
static unsigned import_percent(const Snapshot *s)
{
	g_autoptr(Manifest) m = imported_manifest(s, NULL);
	uint64_t have = 0, total = 0;
	struct stat st;

	for (guint i = 0; m && i < m->files->len; i++) {
		const SavedFile *f = m->files->pdata[i];
		g_autofree char *path = g_build_filename(s->dir, f->name, NULL);

		if (f->size > (1ull << 50))
			continue;
		total += f->size;
		if (!lstat(path, &st))
			have += MIN((uint64_t)st.st_size, f->size);
	}
	return total ? (unsigned)(have * 100 / total) : 0;
}

void snapshot_opened(Snapshot *s)
{
	s->writers++;
	/* What is written again is looked at again. */
	savedir_cancel(&s->job);
	if (s->state != SNAPSHOT_IMPORTING || s->next != SNAPSHOT_IMPORTING) {
		set_state(s, SNAPSHOT_IMPORTING);
		store_state(s, SNAPSHOT_IMPORTING);
	}
}

void snapshot_wrote(Snapshot *s, int err)
{
	g_autoptr(GError) e = NULL;

	if (err != ENOSPC && err != EDQUOT)
		return;
	e = err_new(err, "snapshot '%s' does not fit and is dropped: %s", s->name, g_strerror(err));
	vm_set_error(s->vm, "import", e);
	s->vm->full_for = s->maker;
	drop(s);
}

/* All of it may be there. */
static void look(Snapshot *s)
{
	g_autoptr(Manifest) m = NULL;

	if (s->writers || s->job || s->state != SNAPSHOT_IMPORTING ||
	    !snapshot_find_file(s, SAVEDIR_MANIFEST))
		return;
	m = imported_manifest(s, NULL);
	/* One that cannot be read will not get better by what follows. */
	if (!m || is_complete(s, m))
		s->job = savedir_verify(s->dir, verified, s);
}

void snapshot_closed(Snapshot *s)
{
	if (s->writers)
		s->writers--;
	look(s);
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
	list_files(s);
	store_state(s, SNAPSHOT_READY);
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
		s->job = savedir_drop(s->dir, begin_import, s);
	} else if (ok && maker_is_there(s)) {
		s->grace = timer_start(GRACE_MS, settle, s);
	} else if (ok) {
		settle(s);
	} else {
		drop(s);
	}
}

static int check_new(Vm *vm, const char *name)
{
	if (strlen(name) > MAX_NAME)
		return ENAMETOOLONG;
	if (!savedir_is_name(name))
		return EINVAL;
	if (snapshot_find(vm, name))
		return EEXIST;
	if (vm->snapshots && vm->snapshots->len >= SNAPSHOT_MAX)
		return fail(vm, "snapshot",
			    err_new(ENOSPC, "a VM has at most %d snapshots; remove one with rmdir",
				    SNAPSHOT_MAX));
	return 0;
}

int snapshot_take(Vm *vm, const char *name, pid_t maker, SnapshotDone done, void *arg)
{
	const int err = check_new(vm, name);
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
	if (!vm->snapshots)
		vm->snapshots = g_ptr_array_new();
	s = snapshot_new(vm, name, new_number(vm));
	s->made = vm_now();
	s->maker = maker;
	set_state(s, SNAPSHOT_TAKING);
	if (!vm_order(vm, OP_SNAPSHOT, s, NULL, &op, &e)) {
		g_ptr_array_remove(vm->snapshots, s);
		snapshot_free(s);
		vm_changed(vm, EV_SNAPSHOT);
		return fail(vm, "snapshot", e);
	}
	t = g_new0(Taking, 1);
	*t = (Taking){ .op = op_ref(op), .done = done, .arg = arg };
	s->op = op_ref(op);
	if (op_done(op)) {
		const int code = op_error(op) ? err_code(op_error(op)) : 0;

		taken(op, s);
		taking_answer(t, code);
		return 0;
	}
	(void)op_wait(op, false, taken, s);
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

bool snapshot_any_taking(const Vm *vm)
{
	for (guint i = 0; vm->snapshots && i < vm->snapshots->len; i++)
		if (((Snapshot *)vm->snapshots->pdata[i])->state == SNAPSHOT_TAKING)
			return true;
	return false;
}

/* ---- at start ---- */

static void load_one(Vm *vm, GKeyFile *file, const char *name)
{
	g_autofree char *word = g_key_file_get_string(file, name, "state", NULL);
	const int number = g_key_file_get_integer(file, name, "number", NULL);
	SnapshotState state = SNAPSHOT_TAKING;
	Snapshot *s;

	while (word && state < SNAPSHOT_DROPPING && strcmp(word, state_names[state]))
		state++;
	if (!word || state == SNAPSHOT_TAKING || state == SNAPSHOT_DROPPING ||
	    !savedir_is_name(name) || number <= 0 || number > LAST_NUMBER ||
	    snapshot_find(vm, name) || snapshot_by_number(vm, (uint32_t)number))
		return;
	s = snapshot_new(vm, name, (uint32_t)number);
	s->state = s->next = state;
	s->made = g_key_file_get_int64(file, name, "made", NULL);
	list_files(s);
	/* Its import may have been complete, and not looked at yet. */
	look(s);
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

	vm->last_snapshot =
		(uint32_t)CLAMP(g_key_file_get_integer(file, "#", "last", NULL), 0, LAST_NUMBER);
	for (unsigned i = 0; names[i]; i++)
		load_one(vm, file, names[i]);
}

void snapshot_load(Vm *vm)
{
	g_autofree char *path = g_strdup_printf("vms/%u/snapshots", vm->serial);
	g_autoptr(GBytes) bytes = store_get(path, MAX_INDEX);
	g_autoptr(GKeyFile) file = g_key_file_new();

	if (bytes && g_key_file_load_from_bytes(file, bytes, G_KEY_FILE_NONE, NULL))
		load_all(vm, file);
	remove_leftovers(vm);
}
