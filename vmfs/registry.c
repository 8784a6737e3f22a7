/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/registry.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/clone.h"
#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/home.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/node.h"
#include "vmfs/publish.h"
#include "vmfs/store.h"
#include "vmfs/waitq.h"

#define MAX_NAME      63
#define MAX_VMS	      60000
#define ADOPT_WAIT_MS 5000

static struct {
	RegistryConfig config;
	GHashTable *by_name, *by_serial, *ids;
	GPtrArray *order; /* ascending serials */
	uint32_t next_id;
	HostAttr root;
} reg;

int registry_check_name(const char *name)
{
	size_t len = strlen(name);

	if (len > MAX_NAME)
		return ENAMETOOLONG;
	if (!isascii(name[0]) || !isalnum((unsigned char)name[0]))
		return EINVAL;
	for (size_t i = 0; i < len; i++)
		if (!isascii(name[i]) ||
		    (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i])))
			return EINVAL;
	return 0;
}

/* NAME, or NAME@HOST of one that was found: '@' is in no name that somebody gave. */
static bool is_stored_name(const Vm *vm)
{
	const char *at = vm->home.foreign ? strchr(vm->name, '@') : NULL;
	g_autofree char *name = at ? g_strndup(vm->name, (gsize)(at - vm->name)) : NULL;

	return !registry_check_name(at ? name : vm->name);
}

static bool id_taken(uint32_t id)
{
	return g_hash_table_contains(reg.ids, GUINT_TO_POINTER(id));
}

/* 0 when the range is used up. Ids go round, so that one is not used again soon. */
static uint32_t new_id(void)
{
	uint32_t n = reg.config.last_id - reg.config.first_id + 1;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t id = reg.next_id;

		reg.next_id = id >= reg.config.last_id ? reg.config.first_id : id + 1;
		if (!id_taken(id))
			return id;
	}
	return 0;
}

/* Index of the first VM whose serial is greater. */
static unsigned position_after(uint32_t serial)
{
	unsigned low = 0, high = reg.order->len;

	while (low < high) {
		unsigned mid = (low + high) / 2;

		if (((Vm *)reg.order->pdata[mid])->serial > serial)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

static void insert(Vm *vm)
{
	g_hash_table_insert(reg.by_name, vm->name, vm);
	g_hash_table_insert(reg.by_serial, GUINT_TO_POINTER(vm->serial), vm);
	g_hash_table_add(reg.ids, GUINT_TO_POINTER(vm->id));
	g_ptr_array_insert(reg.order, (int)position_after(vm->serial), vm);
	reg.root.changed = vm_now();
}

static void take_out(Vm *vm)
{
	g_hash_table_remove(reg.by_name, vm->name);
	g_hash_table_remove(reg.by_serial, GUINT_TO_POINTER(vm->serial));
	g_hash_table_remove(reg.ids, GUINT_TO_POINTER(vm->id));
	g_ptr_array_remove_index(reg.order, position_after(vm->serial) - 1);
	reg.root.changed = vm_now();
}

Vm *registry_find(const char *name)
{
	return g_hash_table_lookup(reg.by_name, name);
}

Vm *registry_by_serial(uint32_t serial)
{
	return g_hash_table_lookup(reg.by_serial, GUINT_TO_POINTER(serial));
}

Vm *registry_after(uint32_t serial)
{
	unsigned i = position_after(serial);

	return i < reg.order->len ? reg.order->pdata[i] : NULL;
}

unsigned registry_count(void)
{
	return reg.order->len;
}

const GPtrArray *registry_all(void)
{
	return reg.order;
}

const HostAttr *registry_root(void)
{
	return &reg.root;
}

static void load_root(void)
{
	g_autoptr(GBytes) bytes = store_get("root", 4096);
	g_autoptr(GKeyFile) file = g_key_file_new();

	reg.root.mode = 0755;
	reg.root.uid = geteuid();
	reg.root.gid = getegid();
	reg.root.changed = vm_now();
	if (!bytes)
		return;
	if (!g_key_file_load_from_bytes(file, bytes, G_KEY_FILE_NONE, NULL) ||
	    !g_key_file_has_key(file, "root", "mode", NULL) ||
	    !g_key_file_has_key(file, "root", "uid", NULL) ||
	    !g_key_file_has_key(file, "root", "gid", NULL)) {
		log_error("%s/root is damaged; the mount's owner and mode are the default ones",
			  store_dir());
		return;
	}
	reg.root.mode = (mode_t)g_key_file_get_uint64(file, "root", "mode", NULL) & 07777;
	reg.root.uid = (uid_t)g_key_file_get_uint64(file, "root", "uid", NULL);
	reg.root.gid = (gid_t)g_key_file_get_uint64(file, "root", "gid", NULL);
}

void registry_set_root(const HostAttr *attr)
{
	g_autoptr(GKeyFile) file = g_key_file_new();
	g_autoptr(GBytes) bytes = NULL;
	gsize len;
	char *text;

	reg.root = *attr;
	reg.root.changed = vm_now();
	g_key_file_set_uint64(file, "root", "mode", attr->mode);
	g_key_file_set_uint64(file, "root", "uid", attr->uid);
	g_key_file_set_uint64(file, "root", "gid", attr->gid);
	text = g_key_file_to_data(file, &len, NULL);
	bytes = g_bytes_new_take(text, len);
	store_put("root", bytes, true, NULL, NULL);
}

/* Once the names and ids of all others are known. */
static void recover(Vm *vm)
{
	if (vm->home.host && !vm->home.be) {
		log_error("%s/vms/%u belongs to a backend that this vmfs was built without; it is "
			  "left alone and not shown",
			  store_dir(), vm->serial);
		vm_unref(vm);
		return;
	}
	vm->home.be = NULL;
	log_error("%s/vms/%u/meta is damaged", store_dir(), vm->serial);
	vm_recover(vm, new_id());
	if (vm->id && !registry_find(vm->name)) {
		insert(vm);
		return;
	}
	log_error("%s/vms/%u is left alone and not shown", store_dir(), vm->serial);
	vm_unref(vm);
}

void registry_load(const RegistryConfig *config)
{
	g_autoptr(GPtrArray) damaged = g_ptr_array_new();
	g_autoptr(GArray) serials = NULL;

	reg.config = *config;
	reg.next_id = config->first_id;
	reg.by_name = g_hash_table_new(g_str_hash, g_str_equal);
	reg.by_serial = g_hash_table_new(NULL, NULL);
	reg.ids = g_hash_table_new(NULL, NULL);
	reg.order = g_ptr_array_new();
	load_root();
	serials = store_list();
	for (unsigned i = 0; i < serials->len; i++) {
		Vm *vm = vm_new(g_array_index(serials, uint32_t, i), 0, "");

		if (!vm_load(vm) || !is_stored_name(vm) || registry_find(vm->name) ||
		    id_taken(vm->id)) {
			g_ptr_array_add(damaged, vm);
			continue;
		}
		insert(vm);
		if (vm->id >= reg.next_id && vm->id < config->last_id)
			reg.next_id = vm->id + 1;
	}
	for (unsigned i = 0; i < damaged->len; i++)
		recover(damaged->pdata[i]);
}

/* ---- adoption ---- */

typedef struct Adoption {
	void (*fn)(void *arg);
	void *arg;
	unsigned left;
	bool told;
	Timer *timer;
} Adoption;

static void adoption_tell(Adoption *a)
{
	if (!a->told) {
		a->told = true;
		a->fn(a->arg);
	}
}

static void adoption_late(void *arg)
{
	Adoption *a = arg;

	a->timer = NULL;
	adoption_tell(a);
}

static void adoption_less(Adoption *a)
{
	if (--a->left)
		return;
	timer_stop(&a->timer);
	adoption_tell(a);
	g_free(a);
}

static void adopted(Op *op, void *arg)
{
	(void)op;
	adoption_less(arg);
}

void registry_adopt(void (*fn)(void *arg), void *arg)
{
	Adoption *a = g_new0(Adoption, 1);

	a->fn = fn;
	a->arg = arg;
	a->left = 1;
	a->timer = timer_start(ADOPT_WAIT_MS, adoption_late, a);
	for (unsigned i = 0; i < reg.order->len; i++) {
		Vm *vm = reg.order->pdata[i];

		vm_adopt(vm);
		if (vm->op) {
			a->left++;
			(void)op_wait(vm->op, false, adopted, a);
		}
	}
	adoption_less(a);
}

void registry_close(void)
{
	for (unsigned i = 0; i < reg.order->len; i++) {
		vm_detach(reg.order->pdata[i]);
		vm_unref(reg.order->pdata[i]);
	}
	g_ptr_array_unref(reg.order);
	g_hash_table_unref(reg.by_name);
	g_hash_table_unref(reg.by_serial);
	g_hash_table_unref(reg.ids);
}

/* ---- changes ---- */

typedef struct Change {
	Vm *vm;
	char *old_name, *new_name; /* of a rename */
	RegistryDone fn;
	void *arg;
} Change;

static Change *change_new(Vm *vm, RegistryDone fn, void *arg)
{
	Change *c = g_new0(Change, 1);

	c->vm = vm_ref(vm);
	c->fn = fn;
	c->arg = arg;
	return c;
}

static void change_end(Change *c, int err)
{
	if (c->fn)
		c->fn(c->arg, err);
	vm_unref(c->vm);
	g_free(c->old_name);
	g_free(c->new_name);
	g_free(c);
}

static void forget(Vm *vm)
{
	vm->removed = true;
	take_out(vm);
	/* Waiters see that it is removed, and leave. */
	vm_changed(vm, EV_NAME);
	waitq_wake(&vm->console_writers);
	if (vm->console)
		waitq_wake(stream_queue(vm->console));
	if (vm->events)
		waitq_wake(stream_queue(vm->events));
	vm_detach(vm);
	vm_unref(vm);
}

static void made(void *arg, int err)
{
	Change *c = arg;

	if (err)
		forget(c->vm);
	else
		events_emit_word(c->vm, "created", c->vm->name);
	vm_changed(c->vm, EV_NAME);
	change_end(c, err);
}

int registry_make(const char *name, mode_t mode, const Caller *who, RegistryDone fn, void *arg)
{
	g_autoptr(GBytes) meta = NULL;
	int err = registry_check_name(name);
	uint32_t id;
	Vm *vm;

	if (err)
		return err;
	if (registry_find(name))
		return EEXIST;
	/* A daemon without root's rights cannot act for anybody but its own user. */
	if (geteuid() != 0 && who->uid != geteuid())
		return EPERM;
	id = registry_count() < MAX_VMS ? new_id() : 0;
	if (!id)
		return ENOSPC;
	vm = vm_new(store_next_serial(), id, name);
	vm->mode = mode & 07777;
	vm->umask = who->umask & 0777;
	vm->uid = who->uid;
	vm->gid = who->gid;
	/* As mkdir(2) does in a set-group-ID directory. */
	if (reg.root.mode & S_ISGID) {
		vm->gid = reg.root.gid;
		vm->mode |= S_ISGID;
	}
	insert(vm);
	meta = vm_meta(vm);
	store_make_vm(vm->serial, vm->uid, vm->gid, meta, made, change_new(vm, fn, arg));
	return 0;
}

/* It is still stored: then it is still there. */
static void bring_back(uint32_t serial)
{
	Vm *vm = vm_new(serial, 0, "");

	if (!vm_load(vm) || registry_find(vm->name) || id_taken(vm->id)) {
		vm_unref(vm);
		return;
	}
	insert(vm);
	vm_changed(vm, EV_NAME);
	vm_save_run(vm);
}

static void removed(void *arg, int err)
{
	const Change *c = arg;

	if (err)
		bring_back(c->vm->serial);
	change_end(arg, err);
}

/* Sets the VM's error, and returns its errno: 0 when it may be changed. */
static int check_idle(Vm *vm, const char *verb, const char *what)
{
	g_autoptr(GError) e = NULL;

	if (vm->state == VM_UNKNOWN && vm->home.be)
		e = err_new(EHOSTDOWN, "host %s is away; wait for it before %s it", vm_host(vm),
			    what);
	else if (vm_is_live(vm) || vm->op)
		e = err_new(EBUSY, "it is %s; stop it before %s it",
			    vm->op ? "busy" : vm_state_name(vm->state), what);
	if (e)
		vm_set_error(vm, verb, e);
	return e ? e->code : 0;
}

static void undefined(void *arg, const GError *e)
{
	Change *c = arg;
	Vm *vm = c->vm;

	if (e || vm->removed) {
		if (e)
			vm_set_error(vm, "rmdir", e);
		change_end(c, e ? err_code(e) : 0);
		return;
	}
	events_emit_word(vm, "removed", vm->name);
	forget(vm);
	store_remove_run(vm->serial);
	store_remove_vm(vm->serial, removed, c);
}

int registry_remove(Vm *vm, RegistryDone fn, void *arg)
{
	int err = check_idle(vm, "rmdir", "removing");

	if (err)
		return err;
	if (vm_is_asleep(vm) && !vm->home.foreign) {
		g_autoptr(GError) e = err_new(EBUSY, "it is asleep; 'kill' it before removing it");

		vm_set_error(vm, "rmdir", e);
		return EBUSY;
	}
	if (clone_user(vm, 0)) {
		g_autoptr(GError) e = err_new(EBUSY,
					      "the disks of VM '%s' are based on a snapshot of it; "
					      "remove that VM first",
					      clone_user(vm, 0)->name);

		vm_set_error(vm, "rmdir", e);
		return EBUSY;
	}
	if (vm->home.foreign) {
		g_autoptr(GError) e =
			err_new(EPERM,
				"vmfs did not make it: it is in the books of %s on host %s; write "
				"'undefine' to its state to have it forgotten there",
				vm->home.be->cls->name, vm_host(vm));

		vm_set_error(vm, "rmdir", e);
		return EPERM;
	}
	home_undefine(vm, undefined, change_new(vm, fn, arg));
	return 0;
}

static void set_name(Vm *vm, const char *name)
{
	g_hash_table_remove(reg.by_name, vm->name);
	g_free(vm->name);
	vm->name = g_strdup(name);
	g_hash_table_insert(reg.by_name, vm->name, vm);
	reg.root.changed = vm_now();
	vm_changed(vm, EV_NAME);
}

static void meta_saved(void *arg, int err)
{
	Change *c = arg;

	if (err && c->old_name && !c->vm->removed && !registry_find(c->old_name))
		set_name(c->vm, c->old_name);
	change_end(c, err);
}

static void save_meta(Change *c)
{
	g_autofree char *path = g_strdup_printf("vms/%u/meta", c->vm->serial);
	g_autoptr(GBytes) meta = vm_meta(c->vm);

	store_put(path, meta, true, meta_saved, c);
}

void registry_save_meta(Vm *vm, RegistryDone fn, void *arg)
{
	save_meta(change_new(vm, fn, arg));
}

static void renamed(void *arg, const GError *e)
{
	Change *c = arg;
	Vm *vm = c->vm;

	if (!e && !vm->removed && registry_find(c->new_name)) {
		change_end(c, EEXIST);
		return;
	}
	if (e || vm->removed) {
		if (e)
			vm_set_error(vm, "mv", e);
		change_end(c, e ? err_code(e) : ENOENT);
		return;
	}
	if (vm->home.be) {
		g_free(vm->home.name);
		vm->home.name = g_strdup(c->new_name);
	}
	c->old_name = g_strdup(vm->name);
	events_emit_word(vm, "renamed", c->new_name);
	set_name(vm, c->new_name);
	save_meta(c);
}

int registry_rename(Vm *vm, const char *name, RegistryDone fn, void *arg)
{
	int err = registry_check_name(name);
	Change *c;

	if (err)
		return err;
	if (registry_find(name))
		return EEXIST;
	err = check_idle(vm, "mv", "renaming");
	if (err)
		return err;
	c = change_new(vm, fn, arg);
	c->new_name = g_strdup(name);
	home_rename(vm, name, renamed, c);
	return 0;
}

/* ---- found ones ---- */

static const NodeRef root_dir = { .node = &root_node };

/* As near to what it is called as the grammar of names allows. */
static char *possible_name(const char *text)
{
	GString *s = g_string_new(NULL);

	if (!g_ascii_isalnum(text[0]))
		g_string_append_c(s, 'd');
	for (; *text && s->len < MAX_NAME; text++)
		g_string_append_c(s, g_ascii_isalnum(*text) || strchr("._-", *text) ? *text : '_');
	return g_string_free(s, FALSE);
}

static bool is_free(const char *name, const Vm *self)
{
	const Vm *vm = registry_find(name);

	return !vm || vm == self;
}

static char *free_name(const char *text, const VmHome *home, const Vm *self)
{
	char *name = possible_name(text), *plain = name;

	if (is_free(name, self))
		return name;
	name = g_strdup_printf("%s@%s", plain, home->host);
	if (!is_free(name, self)) {
		g_free(name);
		name = g_strdup_printf("%s@%s-%.8s", plain, home->host, home->key);
	}
	for (unsigned i = 2; !is_free(name, self); i++) {
		g_free(name);
		name = g_strdup_printf("%s@%s-%.8s-%u", plain, home->host, home->key, i);
	}
	g_free(plain);
	return name;
}

static bool vanished(void *arg)
{
	Vm *vm = arg;
	bool done = vm->gone && !vm->removed && !vm->op;

	if (done) {
		events_emit_word(vm, "removed", vm->name);
		forget(vm);
		store_remove_run(vm->serial);
		store_remove_vm(vm->serial, NULL, NULL);
	}
	vm_unref(vm);
	return done;
}

static bool retired(void *arg)
{
	Vm *vm = arg;
	const bool done = !vm->removed && !registry_remove(vm, NULL, NULL);

	vm_unref(vm);
	return done;
}

void registry_retire(Vm *vm)
{
	publish(PUBLISH_RMDIR, &root_dir, vm->name, NULL, retired, vm_ref(vm));
}

void registry_vanish(Vm *vm)
{
	vm->gone = true;
	/* Whoever ends the op, or has it appear, comes here again. */
	if (!vm->op && !vm->hidden)
		publish(PUBLISH_RMDIR, &root_dir, vm->name, NULL, vanished, vm_ref(vm));
}

static bool appeared(void *arg)
{
	Vm *vm = arg;

	vm->hidden = false;
	reg.root.changed = vm_now();
	events_emit_word(vm, "created", vm->name);
	vm_changed(vm, EV_NAME);
	if (vm->gone)
		registry_vanish(vm);
	vm_unref(vm);
	return true;
}

Vm *registry_appear(const VmHome *home)
{
	g_autofree char *name = free_name(home->name, home, NULL);
	uint32_t id = registry_count() < MAX_VMS ? new_id() : 0;
	g_autoptr(GBytes) meta = NULL;
	Vm *vm;

	if (!id) {
		log_error("there is no room for '%s' of host %s", home->name, home->host);
		return NULL;
	}
	vm = vm_new(store_next_serial(), id, name);
	vm->home = (VmHome){ home->be, g_strdup(home->host), g_strdup(home->key),
			     g_strdup(home->name), home->foreign };
	/* Whom libvirt tells of it, vmfs tells of it; but it is the daemon's, to whom it was told.
	 */
	vm->mode = 0755;
	vm->umask = 022;
	vm->uid = geteuid();
	vm->gid = getegid();
	vm->hidden = true;
	insert(vm);
	meta = vm_meta(vm);
	store_make_vm(vm->serial, vm->uid, vm->gid, meta, NULL, NULL);
	publish(PUBLISH_MKDIR, &root_dir, name, NULL, appeared, vm_ref(vm));
	return vm;
}

typedef struct Move {
	Vm *vm;
	char *name;
} Move;

static bool moved(void *arg)
{
	Move *m = arg;
	Vm *vm = m->vm;
	/* A later one may have overtaken it. */
	bool done = !vm->removed && !g_strcmp0(vm->next_name, m->name) && is_free(m->name, vm);

	if (done) {
		g_clear_pointer(&vm->next_name, g_free);
		events_emit_word(vm, "renamed", m->name);
		set_name(vm, m->name);
		registry_save_meta(vm, NULL, NULL);
	}
	vm_unref(vm);
	g_free(m->name);
	g_free(m);
	return done;
}

void registry_follow_name(Vm *vm, const char *text)
{
	g_autofree char *name = NULL;
	Move *m;

	/* One that had to be changed stays, also when it could be had by now. */
	if (!strcmp(vm->home.name, text))
		return;
	g_free(vm->home.name);
	vm->home.name = g_strdup(text);
	name = free_name(text, &vm->home, vm);
	g_clear_pointer(&vm->next_name, g_free);
	if (!strcmp(vm->name, name)) {
		registry_save_meta(vm, NULL, NULL);
		return;
	}
	m = g_new0(Move, 1);
	m->vm = vm_ref(vm);
	m->name = g_strdup(name);
	vm->next_name = g_strdup(name);
	publish(PUBLISH_RENAME, &root_dir, vm->name, name, moved, m);
}
