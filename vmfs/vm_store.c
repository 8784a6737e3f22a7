/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is stored of a VM. `meta` is its identity, `run` what a restarted daemon must know of the
 * VMM that may still run, `started.yaml` the spec of what runs once that is not spec.yaml.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/exec.h"
#include "vmfs/log.h"
#include "vmfs/node.h"
#include "vmfs/snapshot.h"
#include "vmfs/store.h"
#include "vmfs/vm.h"

#define MAX_FILE	  (1u << 20)
#define ADOPT_DEADLINE_MS 15000
#define SUM_MARK	  "#sum="
#define SUM_LEN		  16 /* digits */

static char *sum_of(const char *text, gsize len)
{
	g_autofree char *sum =
		g_compute_checksum_for_data(G_CHECKSUM_SHA256, (const guchar *)text, len);

	return g_strndup(sum, SUM_LEN);
}

/* The sum is a comment, which versions that do not know it pass over. */
static GBytes *key_file_bytes(GKeyFile *file)
{
	gsize len;
	g_autofree char *text = g_key_file_to_data(file, &len, NULL), *sum = sum_of(text, len);
	char *whole = g_strdup_printf("%s" SUM_MARK "%s\n", text, sum);

	return g_bytes_new_take(whole, strlen(whole));
}

/* False when what was stored is not what was written. The first versions wrote no sum. */
static bool has_good_sum(GBytes *bytes)
{
	gsize len;
	const char *data = g_bytes_get_data(bytes, &len);
	g_autofree char *text = data ? g_strndup(data, len) : NULL, *sum = NULL;
	const char *mark = text ? g_strrstr(text, SUM_MARK) : NULL;

	if (!mark)
		return true;
	sum = sum_of(text, (gsize)(mark - text));
	return !strncmp(mark + strlen(SUM_MARK), sum, SUM_LEN);
}

static GKeyFile *key_file_parse(GBytes *bytes)
{
	GKeyFile *file = g_key_file_new();

	if (bytes && has_good_sum(bytes) &&
	    g_key_file_load_from_bytes(file, bytes, G_KEY_FILE_NONE, NULL))
		return file;
	g_key_file_unref(file);
	return NULL;
}

static uint64_t get_number(GKeyFile *file, const char *group, const char *key, uint64_t missing)
{
	g_autoptr(GError) e = NULL;
	uint64_t v = g_key_file_get_uint64(file, group, key, &e);

	return e ? missing : v;
}

GBytes *vm_meta(const Vm *vm)
{
	g_autoptr(GKeyFile) file = g_key_file_new();
	GHashTableIter it;
	gpointer id, value;

	g_key_file_set_string(file, "vm", "name", vm->name);
	g_key_file_set_uint64(file, "vm", "id", vm->id);
	g_key_file_set_string(file, "vm", "instance-id", vm->instance_id);
	g_key_file_set_uint64(file, "vm", "uid", vm->uid);
	g_key_file_set_uint64(file, "vm", "gid", vm->gid);
	g_key_file_set_uint64(file, "vm", "mode", vm->mode);
	g_key_file_set_uint64(file, "vm", "umask", vm->umask);
	g_key_file_set_int64(file, "vm", "created", vm->created);
	if (vm->begun)
		g_key_file_set_boolean(file, "vm", "begun", true);
	if (vm->origin) {
		g_key_file_set_uint64(file, "vm", "origin", vm->origin);
		g_key_file_set_uint64(file, "vm", "origin-snapshot", vm->origin_snapshot);
	}
	lifetime_save_meta(vm, file);
	if (vm->home.be) {
		g_key_file_set_string(file, "home", "backend", vm->home.be->cls->name);
		g_key_file_set_string(file, "home", "host", vm->home.host);
		g_key_file_set_string(file, "home", "key", vm->home.key);
		g_key_file_set_string(file, "home", "name", vm->home.name);
		g_key_file_set_boolean(file, "home", "foreign", vm->home.foreign);
	}
	if (vm->attrs) {
		g_hash_table_iter_init(&it, vm->attrs);
		while (g_hash_table_iter_next(&it, &id, &value)) {
			const VmAttr *a = value;
			const Node *node = node_by_id((uint8_t)GPOINTER_TO_UINT(id));
			g_autofree char *text =
				g_strdup_printf("%d:%d:%d", (int)a->mode, (int)a->uid, (int)a->gid);

			/* By number: those of a node never change, its name may. */
			if (node) {
				g_autofree char *key = g_strdup_printf("%u", node->id);

				g_key_file_set_string(file, "attrs", key, text);
			}
		}
	}
	return key_file_bytes(file);
}

static void load_attrs(Vm *vm, GKeyFile *file)
{
	g_auto(GStrv) keys = g_key_file_get_keys(file, "attrs", NULL, NULL);

	for (unsigned i = 0; keys && keys[i]; i++) {
		g_autofree char *text = g_key_file_get_string(file, "attrs", keys[i], NULL);
		g_auto(GStrv) part = text ? g_strsplit(text, ":", 3) : NULL;
		unsigned id = (unsigned)strtoul(keys[i], NULL, 10);
		VmAttr *a;

		if (!part || g_strv_length(part) != 3 || id > UINT8_MAX || !node_by_id((uint8_t)id))
			continue;
		a = g_new(VmAttr, 1);
		a->mode = (mode_t)atoi(part[0]);
		a->uid = (uid_t)atoi(part[1]);
		a->gid = (gid_t)atoi(part[2]);
		if (!vm->attrs)
			vm->attrs = g_hash_table_new_full(NULL, NULL, NULL, g_free);
		g_hash_table_insert(vm->attrs, GUINT_TO_POINTER(id), a);
	}
}

/* false: it is at home in a backend that this vmfs was built without. */
static bool load_home(Vm *vm, GKeyFile *file)
{
	g_autofree char *name = g_key_file_get_string(file, "home", "backend", NULL);

	if (!name)
		return true;
	vm->home.be = backend_find(name);
	vm->home.host = g_key_file_get_string(file, "home", "host", NULL);
	vm->home.key = g_key_file_get_string(file, "home", "key", NULL);
	vm->home.name = g_key_file_get_string(file, "home", "name", NULL);
	vm->home.foreign = g_key_file_get_boolean(file, "home", "foreign", NULL);
	return vm->home.be && vm->home.host && vm->home.key && vm->home.name;
}

bool vm_load_meta(Vm *vm, GBytes *meta)
{
	g_autoptr(GKeyFile) file = key_file_parse(meta);
	g_autofree char *name = file ? g_key_file_get_string(file, "vm", "name", NULL) : NULL;
	char *instance = file ? g_key_file_get_string(file, "vm", "instance-id", NULL) : NULL;
	uint64_t id = file ? get_number(file, "vm", "id", 0) : 0;

	if (instance) {
		g_free(vm->instance_id);
		vm->instance_id = instance;
	}
	if (!name || !id || id > UINT32_MAX)
		return false;
	g_free(vm->name);
	vm->name = g_steal_pointer(&name);
	vm->id = (uint32_t)id;
	vm->uid = (uid_t)get_number(file, "vm", "uid", 0);
	vm->gid = (gid_t)get_number(file, "vm", "gid", 0);
	vm->mode = (mode_t)get_number(file, "vm", "mode", 0700) & 07777;
	vm->umask = (mode_t)get_number(file, "vm", "umask", 077) & 0777;
	vm->created = vm->since = g_key_file_get_int64(file, "vm", "created", NULL);
	vm->begun = g_key_file_get_boolean(file, "vm", "begun", NULL);
	vm->origin = (uint32_t)get_number(file, "vm", "origin", 0);
	vm->origin_snapshot = (uint32_t)get_number(file, "vm", "origin-snapshot", 0);
	lifetime_load_meta(vm, file);
	load_attrs(vm, file);
	return load_home(vm, file);
}

static void save_state(const Vm *vm, GKeyFile *file)
{
	g_key_file_set_string(file, "vm", "state", vm_state_name(vm->state));
	g_key_file_set_string(file, "vm", "pushed", vm_state_name(vm->pushed));
	if (vm->reason)
		g_key_file_set_string(file, "vm", "reason", vm->reason);
	g_key_file_set_int64(file, "vm", "since", vm->since);
	g_key_file_set_integer(file, "vm", "exit", vm->exit_status);
	lifetime_save_run(vm, file);
	if (vm->op && !op_done(vm->op))
		g_key_file_set_string(file, "vm", "operation", op_verb(vm->op)->name);
}

void vm_save_run(Vm *vm)
{
	g_autoptr(GKeyFile) file = NULL;
	g_autoptr(GBytes) bytes = NULL;
	guint hash;

	/* Of one that is in a hypervisor's books, that knows better; but not of its commands. */
	if (vm->removed || (vm->home.be && !vm->exec && !vm->run))
		return;
	file = g_key_file_new();
	if (!vm->home.be)
		save_state(vm, file);
	if (vm->bv && (vm_is_live(vm) || vm_is_asleep(vm))) {
		g_key_file_set_string(file, "vm", "backend", vm->bv->be->cls->name);
		if (vm->bv->be->cls->save)
			vm->bv->be->cls->save(vm->bv, file);
		exec_save(vm, file);
	}
	bytes = key_file_bytes(file);
	hash = g_bytes_hash(bytes);
	if (hash == vm->run_hash)
		return;
	vm->run_hash = hash;
	store_put_run(vm->serial, bytes);
}

void vm_save_started(Vm *vm)
{
	g_autofree char *path = g_strdup_printf("vms/%u/started.yaml", vm->serial);

	if (vm->bv && vm_is_live(vm))
		store_put(path, vm->bv->spec->text, false, NULL, NULL);
}

/* ---- asleep ---- */

static const char *const saved_words[] = {
	[SAVED_NONE] = "none",
	[SAVED_ASLEEP] = "asleep",
	[SAVED_WAKING] = "waking",
};

VmSaved vm_saved(const Vm *vm)
{
	return vm->saved;
}

struct SavedNote {
	void (*done)(void *arg, const GError *err); /* NULL: nobody waits for it any more */
	void *arg;
};

static void saved_stored(void *arg, int code)
{
	const SavedNote n = *(SavedNote *)arg;
	g_autoptr(GError) err = NULL;

	g_free(arg);
	if (code)
		err = err_new(code, "cannot write down whether it is asleep: %s", g_strerror(code));
	if (n.done)
		n.done(n.arg, err);
	else if (err)
		log_error("%s", err->message);
}

SavedNote *vm_set_saved(Vm *vm, VmSaved saved, void (*done)(void *arg, const GError *err),
			void *arg)
{
	g_autofree char *path = g_strdup_printf("vms/%u/asleep", vm->serial);
	g_autofree char *started = g_strdup_printf("vms/%u/started.yaml", vm->serial);
	g_autofree char *text =
		g_strdup_printf("%s %" G_GINT64_FORMAT "\n", saved_words[saved], vm_now());
	g_autoptr(GBytes) bytes = g_bytes_new(text, strlen(text));
	SavedNote *note = g_new(SavedNote, 1);

	*note = (SavedNote){ done, arg };
	vm->saved = saved;
	/* It must wake with what it slept with. */
	if (saved == SAVED_ASLEEP)
		store_put(started, vm->bv->spec->text, true, NULL, NULL);
	if (saved)
		store_put(path, bytes, true, saved_stored, note);
	else
		store_remove(path, saved_stored, note);
	return note;
}

void vm_saved_forget(SavedNote **note)
{
	if (*note)
		(*note)->done = NULL;
	*note = NULL;
}

static GBytes *get_file(const Vm *vm, const char *name)
{
	g_autofree char *path = g_strdup_printf("vms/%u/%s", vm->serial, name);

	return store_get(path, MAX_FILE);
}

static Spec *load_spec(Vm *vm, const char *name,
		       Spec *(*parse)(const char *text, size_t len, GError **err), GError **err)
{
	g_autoptr(GBytes) text = get_file(vm, name);
	gsize len;
	const char *data;

	if (!text)
		return NULL;
	data = g_bytes_get_data(text, &len);
	return parse(data ? data : "", len, err);
}

void vm_load_started(Vm *vm)
{
	Spec *started = load_spec(vm, "started.yaml", spec_restore, NULL);

	if (!started)
		return;
	spec_unref(vm->bv->spec);
	vm->bv->spec = started;
}

static void load_run(Vm *vm)
{
	g_autoptr(GBytes) bytes = store_get_run(vm->serial, MAX_FILE);
	GKeyFile *file = key_file_parse(bytes);
	g_autofree char *state = NULL, *pushed = NULL;
	VmState s;

	if (!file)
		return;
	vm->run = file;
	if (!g_key_file_has_key(file, "vm", "state", NULL))
		return;
	state = g_key_file_get_string(file, "vm", "state", NULL);
	pushed = g_key_file_get_string(file, "vm", "pushed", NULL);
	s = state ? vm_state_find(state) : VM_STATE_MAX;
	if (s != VM_STATE_MAX)
		vm->state = s;
	s = pushed ? vm_state_find(pushed) : VM_STATE_MAX;
	vm->pushed = s != VM_STATE_MAX ? s : vm->state;
	vm->reason = g_key_file_get_string(file, "vm", "reason", NULL);
	vm->since = g_key_file_get_int64(file, "vm", "since", NULL);
	vm->exit_status = g_key_file_get_integer(file, "vm", "exit", NULL);
	lifetime_load_run(vm, file);
}

/* After load_run(). Nothing runs after a restart of the host, and what ran is not known then. */
static void load_saved(Vm *vm)
{
	g_autoptr(GBytes) bytes = get_file(vm, "asleep");
	g_autofree char *text = NULL;

	if (!bytes)
		return;
	text = g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
	vm->saved = g_str_has_prefix(text, "asleep ") ? SAVED_ASLEEP : SAVED_WAKING;
	if (vm->run || vm->saved != SAVED_ASLEEP)
		return;
	vm->state = vm->pushed = VM_ASLEEP;
	vm->since = g_ascii_strtoll(text + strlen("asleep "), NULL, 10);
}

bool vm_load(Vm *vm)
{
	g_autoptr(GBytes) meta = get_file(vm, "meta"), error = get_file(vm, "error");
	g_autoptr(GError) e = NULL;
	Spec *spec;

	const bool ok = meta && vm_load_meta(vm, meta);

	load_run(vm);
	load_saved(vm);
	vm->rejected = get_file(vm, "spec.yaml.rej");
	if (error)
		vm->error = g_strndup(g_bytes_get_data(error, NULL), g_bytes_get_size(error));
	snapshot_load(vm);
	spec = load_spec(vm, "spec.yaml", spec_parse, &e);
	if (spec) {
		spec_unref(vm->spec);
		vm->spec = spec;
	} else if (e) {
		/* Kept as refused text, so that nothing starts which the user did not mean. */
		if (!vm->rejected)
			vm->rejected = get_file(vm, "spec.yaml");
		g_prefix_error(&e, "the stored spec.yaml cannot be used: ");
		vm_set_error(vm, "load", e);
	}
	return ok;
}

void vm_recover(Vm *vm, uint32_t id)
{
	g_autoptr(GError) e =
		err_new(EBADMSG,
			"its meta in %s/vms/%u is damaged: its name, modes and id are "
			"lost, its owner is that of its data; give it a name with mv",
			store_dir(), vm->serial);
	struct stat st;

	g_free(vm->name);
	vm->name = g_strdup_printf("damaged-%u", vm->serial);
	vm->id = id;
	vm->mode = 0700;
	vm->umask = 077;
	vm->uid = geteuid();
	vm->gid = getegid();
	if (!stat(vm_data_dir(vm), &st)) {
		vm->uid = st.st_uid;
		vm->gid = st.st_gid;
	}
	vm_set_error(vm, "load", e);
}

static void adopt_jobs(Vm *vm, bool live)
{
	if (vm->run)
		exec_adopt(vm, vm->run, live);
	g_clear_pointer(&vm->run, g_key_file_unref);
	vm_save_run(vm);
}

void backend_found(BackendVm *bv)
{
	if (bv->vm->run)
		adopt_jobs(bv->vm, vm_is_live(bv->vm));
}

static const Verb adopt_verb = {
	.name = "adopt",
	.kind = OP_ADOPT,
	.during = VM_STATE_MAX,
	.after = VM_STATE_MAX,
	.deadline_ms = ADOPT_DEADLINE_MS,
};

static void adopt_ended(Op *op)
{
	Vm *vm = op_vm(op);
	g_autofree char *verb =
		vm->run ? g_key_file_get_string(vm->run, "vm", "operation", NULL) : NULL;
	const GError *e = op_error(op);
	const bool ok = !e;

	vm->op = NULL;
	if (e) {
		vm_push_state(vm, VM_UNKNOWN, "no-answer");
		vm_set_error(vm, "adopt", e);
	} else if (verb && strcmp(verb, "adopt") && !vm->next_op) {
		g_autoptr(GError) cut = err_new(
			ECANCELED, "'%s' was under way when vmfs was restarted; the VM is %s now",
			verb, vm_state_name(vm->pushed));

		vm_set_error(vm, verb, cut);
	}
	vm_refresh_state(vm);
	/* Else their backend says when it knows. */
	if (!vm->home.be)
		adopt_jobs(vm, !e && vm_is_live(vm));
	op_unref(op);
	vm_run_next(vm);
	/* What its predecessor had begun. */
	if (ok)
		vm_apply(vm);
	vm_unref(vm);
}

static void run_adopt(void *bv, Op *op)
{
	BackendVm *b = bv;

	b->be->cls->op[OP_ADOPT](b, op);
}

void vm_adopt(Vm *vm)
{
	g_autofree char *name =
		vm->run ? g_key_file_get_string(vm->run, "vm", "backend", NULL) : NULL;
	Backend *be;
	Spec *started;
	bool idle;

	if (vm->bv) { /* found before it was looked for */
		vm_run_next(vm);
		return;
	}
	/* The directory is made before anything runs and removed after: a mark that is never late.
	 */
	idle = !vm_is_live(vm) && access(vm_run_dir(vm), F_OK);
	if (idle && vm->saved == SAVED_WAKING)
		(void)vm_set_saved(vm, SAVED_NONE, NULL, NULL);
	if (idle && !vm_is_asleep(vm)) {
		vm_run_next(vm);
		return;
	}
	started = load_spec(vm, "started.yaml", spec_restore, NULL);
	if (!started)
		started = spec_ref(vm->spec);
	be = name ? backend_find(name) : vm->home.be ? vm->home.be : backend_for(started, NULL);
	if (!be) {
		g_autoptr(GError) e = err_new(
			EOPNOTSUPP, "it ran on backend '%s', which this vmfs was built without",
			name ? name : "?");

		vm_set_error(vm, "adopt", e);
		vm_push_state(vm, VM_UNKNOWN, "no-backend");
		spec_unref(started);
		return;
	}
	vm->bv = g_malloc0(be->cls->vm_size);
	vm->bv->be = be;
	vm->bv->vm = vm;
	vm->bv->spec = started;
	if (idle)
		return;
	vm_ref(vm);
	vm->op = op_new(vm, &adopt_verb, 0, NULL, NULL);
	op_start(vm->op, run_adopt, vm->bv, adopt_ended);
}
