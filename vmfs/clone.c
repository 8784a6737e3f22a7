/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/clone.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/node.h"
#include "vmfs/registry.h"
#include "vmfs/savedir.h"
#include "vmfs/snapshot.h"
#include "vmfs/store.h"
#include "vmfs/yamltree.h"

bool clone_parse(const char *from, char ***ret, GError **err)
{
	char **part = g_strsplit(from, "/", 4);

	if (g_strv_length(part) == 3 && !registry_check_name(part[0]) &&
	    !strcmp(part[1], "snapshots") && savedir_is_name(part[2])) {
		char *name = part[2];

		g_free(part[1]);
		part[1] = name;
		part[2] = NULL;
		*ret = part;
		return true;
	}
	g_strfreev(part);
	return err_set(err, EINVAL,
		       "'%.100s' is not the name of a snapshot: write VM/snapshots/NAME, like "
		       "web1/snapshots/golden",
		       from);
}

/* ---- who may ---- */

static bool in_group(const Caller *who, gid_t gid)
{
	for (int i = 0; i < who->n_groups; i++)
		if (who->groups[i] == gid)
			return true;
	return who->gid == gid;
}

/* As the kernel judges it for the mounted tree. */
static bool may(const NodeRef *r, const Caller *who, mode_t want)
{
	struct stat st;
	unsigned shift;

	node_stat(r, &st);
	shift = st.st_uid == who->uid ? 6 : in_group(who, st.st_gid) ? 3 : 0;
	return !who->uid || (st.st_mode >> shift & want) == want;
}

static bool may_read(Vm *origin, const char *name, const Caller *who)
{
	const char *const path[] = { "snapshots", name, SAVEDIR_MANIFEST };
	NodeRef root = { .node = &root_node }, r;

	if (!node_lookup(&root, origin->name, &r))
		return false;
	for (size_t i = 0; i < G_N_ELEMENTS(path); i++) {
		NodeRef dir = r;

		/* What is not there is told of elsewhere, to whom may look. */
		if (!may(&dir, who, 01) || !node_lookup(&dir, path[i], &r))
			return may(&dir, who, 01);
	}
	return may(&r, who, 04);
}

/* NULL and err; the sentence has no place. */
static Snapshot *find(const Vm *vm, const char *from, const Caller *who, GError **err)
{
	g_auto(GStrv) part = NULL;
	Snapshot *s;
	Vm *origin;

	if (!clone_parse(from, &part, err))
		return NULL;
	origin = registry_find(part[0]);
	if (!origin || origin == vm) {
		(void)err_set(err, origin ? ELOOP : ENOENT,
			      origin ? "a VM cannot be made from a snapshot of itself; 'restore' "
				       "goes back to one"
				     : "there is no VM '%s'",
			      part[0]);
		return NULL;
	}
	if (who && !may_read(origin, part[1], who)) {
		(void)err_set(err, EACCES, "user %u may not read %s", who->uid, from);
		return NULL;
	}
	s = snapshot_ready(origin, part[1], err);
	if (!s || !snapshot_is_booked(s))
		return s;
	(void)err_set(err, EOPNOTSUPP,
		      "%s is in the books of the VM's hypervisor, and no VM can be made of it",
		      from);
	return NULL;
}

/* ---- the document ---- */

static const YamlLimits limits = { .depth = SPEC_MAX_DEPTH, .items = SPEC_MAX_ITEMS };

/* Where the i-th key's lines begin; the end of the text for the last one. */
static size_t line_start(const YamlNode *map, unsigned i, const char *text, size_t len)
{
	size_t at = i < yaml_pairs(map) ? yaml_key(map, i)->start : len;

	while (at && at < len && text[at - 1] != '\n')
		at--;
	return at;
}

/* Append the lines of `base` with keys that `out` lacks. False: one of both has no such lines. */
static bool append_missing(GString *out, const YamlNode *have, const YamlTree *base,
			   const char *text, size_t len, const char *from)
{
	const YamlNode *map = base->root;
	bool first = true;

	for (unsigned i = 0; map && map->kind == YAML_IS_MAPPING && i < yaml_pairs(map); i++) {
		const char *key = yaml_key(map, i)->text;
		const size_t start = line_start(map, i, text, len);

		if (!spec_is_of_machine(key) || yaml_find(have, key, NULL))
			continue;
		if (map->flow || have->flow)
			return false;
		if (out->len && out->str[out->len - 1] != '\n')
			g_string_append_c(out, '\n');
		if (first)
			g_string_append_printf(out, "# of %s:\n", from);
		first = false;
		g_string_append_len(out, text + start,
				    (gssize)(line_start(map, i + 1, text, len) - start));
	}
	return true;
}

static bool complete(GBytes **text, Spec **spec, const Spec *base, GError **err)
{
	gsize len, base_len;
	const char *data = g_bytes_get_data(*text, &len);
	const char *base_data = g_bytes_get_data(base->text, &base_len);
	g_auto(YamlTree) tree = { 0 }, base_tree = { 0 };
	GString *out = g_string_new_len(data, (gssize)len);
	Spec *whole = NULL;

	yaml_load(&tree, data, len, false, &limits);
	yaml_load(&base_tree, base_data ? base_data : "", base_len, false, &limits);
	if (append_missing(out, tree.root, &base_tree, base_data, base_len, (*spec)->from))
		whole = spec_parse(out->str, out->len, err);
	else
		(void)err_set(err, EINVAL,
			      "from: the keys of its spec.yaml cannot be added to this: write "
			      "both with a line for each key, not in brackets");
	if (whole) {
		g_bytes_unref(*text);
		spec_unref(*spec);
		*text = g_bytes_new(out->str, out->len);
		*spec = whole;
	}
	g_string_free(out, TRUE);
	return whole != NULL;
}

/* What the guest has seen of its machine must be there. */
static bool is_free(const char *key, bool has_memory)
{
	static const char *const keys[] = { "backend", "vnc", "boot", "cloud_init", "nics", NULL };
	const char *dot = strchr(key, '.');
	g_autofree char *top = dot ? g_strndup(key, (gsize)(dot - key)) : g_strdup(key);

	if (!has_memory)
		return !dot || strcmp(top, "disks") ||
		       (!g_str_has_suffix(key, ".image") && !g_str_has_suffix(key, ".file") &&
			!g_str_has_suffix(key, ".format"));
	if (!g_strv_contains(keys, top))
		return false;
	if (!strcmp(top, "nics"))
		return g_str_has_suffix(key, ".ports") || g_str_has_suffix(key, ".mac");
	return dot || !strcmp(key, "backend") || !strcmp(key, "vnc");
}

static bool check_machine(const Spec *spec, const Spec *base, bool has_memory, GError **err)
{
	g_autoptr(GPtrArray) keys = spec_diff(spec, base);

	for (guint i = 0; i < keys->len; i++)
		if (!is_free(keys->pdata[i], has_memory))
			return err_set(err, EINVAL,
				       "%s: it is not as in the spec.yaml of %s, whose %s this VM "
				       "is to begin with: make it equal, or leave it out",
				       (char *)keys->pdata[i], spec->from,
				       has_memory ? "machine" : "disks");
	return true;
}

static Spec *base_spec(const Snapshot *s, const char *backend, GError **err)
{
	Spec *base = savedir_spec(snapshot_dir(s), backend, err);

	if (!base)
		g_prefix_error(err, "from: ");
	return base;
}

static bool check_backend(const Spec *spec, GError **err)
{
	const Backend *be = backend_for(spec, err);

	if (!be)
		return false;
	return be->cls->clones ||
	       err_set(err, EOPNOTSUPP,
		       "from: backend '%s' cannot make a VM from a snapshot of another one",
		       be->cls->name);
}

/* It has run without being told from where. */
static bool has_run(Vm *vm)
{
	g_autofree char *log = g_build_filename(vm_data_dir(vm), "console.log", NULL);

	return vm->begun || vm_is_live(vm) || vm_is_asleep(vm) || vm->op ||
	       (!vm->spec->from && !access(log, F_OK));
}

static bool judge(const Vm *vm, const Caller *who, GBytes **text, Spec **spec, GError **err)
{
	const Snapshot *s = find(vm, (*spec)->from, who, err);
	g_autofree char *backend = s ? savedir_fact(snapshot_dir(s), "backend") : NULL;
	g_autoptr(Spec) base = NULL;

	if (!s) {
		g_prefix_error(err, "from: ");
		return false;
	}
	if ((*spec)->backend && !check_backend(*spec, err))
		return false;
	base = base_spec(s, (*spec)->backend ? (*spec)->backend : backend ? backend : "?", err);
	return base && complete(text, spec, base, err) && check_backend(*spec, err) &&
	       check_machine(*spec, base, snapshot_has_memory(s), err);
}

bool clone_document(Vm *vm, const Caller *who, GBytes **text, Spec **spec, GError **err)
{
	if (!(*spec)->from)
		return true;
	if (!has_run(vm))
		return judge(vm, who, text, spec, err);
	return !g_strcmp0((*spec)->from, vm->spec->from) ||
	       err_set(err, EBUSY,
		       "from: this VM has begun already, and `from` is for a new one: make one "
		       "with "
		       "mkdir, and here %s",
		       vm->spec->from ? "leave `from` as it was, or out" : "leave it out");
}

/* ---- the first start ---- */

bool clone_is_pending(const Vm *vm)
{
	return vm->spec->from && !vm->begun;
}

static void set_origin(Vm *vm, uint32_t serial, uint32_t number)
{
	if (vm->origin == serial && vm->origin_snapshot == number)
		return;
	vm->origin = serial;
	vm->origin_snapshot = number;
	registry_save_meta(vm, NULL, NULL);
}

static bool has_own_disks(const Spec *spec)
{
	for (guint i = 0; i < spec->disks->len; i++)
		if (!((const SpecDisk *)spec->disks->pdata[i])->file)
			return true;
	return false;
}

void clone_begun(Vm *vm)
{
	if (!clone_is_pending(vm))
		return;
	vm->begun = true;
	/* Memory that is mapped stays, whatever becomes of its file. */
	if (!has_own_disks(vm->spec))
		vm->origin = vm->origin_snapshot = 0;
	registry_save_meta(vm, NULL, NULL);
}

void clone_failed(Vm *vm)
{
	if (clone_is_pending(vm))
		set_origin(vm, 0, 0);
}

const Vm *clone_user(const Vm *origin, uint32_t number)
{
	const GPtrArray *all = registry_all();

	for (guint i = 0; i < all->len; i++) {
		const Vm *vm = all->pdata[i];

		if (vm->origin == origin->serial && vm != origin &&
		    (!number || vm->origin_snapshot == number))
			return vm;
	}
	return NULL;
}

bool vm_clone_source(Vm *vm, const ProcUser *owner, const Snapshot **ret, GError **err)
{
	const Caller who = {
		.uid = vm->uid,
		.gid = owner ? owner->gid : vm->gid,
		.groups = owner ? owner->groups : NULL,
		.n_groups = owner ? owner->n_groups : 0,
	};
	const Snapshot *s;
	g_autoptr(Spec) base = NULL;

	*ret = NULL;
	if (!clone_is_pending(vm))
		return true;
	s = find(vm, vm->spec->from, owner ? &who : NULL, err);
	if (!s) {
		g_prefix_error(err, "from: ");
		return false;
	}
	/* Another one may have that name by now. */
	base = base_spec(s, vm->bv->be->cls->name, err);
	if (!base || !check_machine(vm->spec, base, snapshot_has_memory(s), err))
		return false;
	set_origin(vm, snapshot_vm(s)->serial, snapshot_number(s));
	*ret = s;
	return true;
}

bool vm_clone_planned(const Vm *vm, const Snapshot **ret, GError **err)
{
	*ret = NULL;
	if (!clone_is_pending(vm))
		return true;
	*ret = find(vm, vm->spec->from, NULL, err);
	return *ret != NULL;
}

bool vm_clone_is_pending(const Vm *vm)
{
	return clone_is_pending(vm);
}

char *vm_origin_dir(const Vm *vm)
{
	return vm->origin ? store_path("vms/%u/", vm->origin) : NULL;
}

char *vm_dirs(void)
{
	return store_path("vms/");
}
