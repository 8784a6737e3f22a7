/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disks/, nics/ and shares/ of a VM: directories of links, one an entry of that mapping in
 * spec.yaml. ln(1) and rm(1) in them edit the document.
 */
#include <errno.h>
#include <string.h>

#include "vmfs/document.h"
#include "vmfs/err.h"
#include "vmfs/node.h"
#include "vmfs/specval.h"

#define NUMBERS 0xffffffu /* what fits into an inode number */

/* A mapping of the document. */
typedef struct Attach {
	const char *section, *preset;
	size_t offset;				     /* of its GPtrArray in a Spec */
	char *(*target)(Vm *vm, const void *object); /* of the link; owned by the caller */
	/* What a link with this target means, in flow style; owned by the caller. */
	char *(*value)(Vm *vm, const char *target, GError **err);
} Attach;

/* ---- targets ---- */

/* The target as an absolute path; *inside is what follows the mount point, or NULL. */
static char *resolve(Vm *vm, const char *section, const char *target, const char **inside)
{
	const char *mount = document_mountpoint();
	const size_t len = strlen(mount);
	g_autofree char *dir = g_build_filename(mount, vm_name(vm), section, NULL);
	char *path = g_canonicalize_filename(target, dir);

	*inside = NULL;
	if (!strncmp(path, mount, len) && path[len] == '/')
		*inside = path + len + 1;
	else if (*target == '/') {
		g_free(path);
		path = g_strdup(target); /* as the user wrote it */
	}
	return path;
}

/* The NAME of .vmfs/KIND/NAME, or NULL. */
static const char *name_in(const char *inside, const char *prefix)
{
	const char *name =
		inside && g_str_has_prefix(inside, prefix) ? inside + strlen(prefix) : "";

	return *name && !strchr(name, '/') ? name : NULL;
}

static char *one_key(const char *key, const char *word)
{
	g_autofree char *quoted = yaml_quote(word);

	return g_strdup_printf("{%s: %s}", key, quoted);
}

static char *target_of_disk(Vm *vm, const void *object)
{
	const SpecDisk *d = object;

	if (d->file)
		return g_strdup(d->file);
	if (d->image && *d->image != '/')
		return g_strconcat("../../.vmfs/images/", d->image, NULL);
	return g_strdup_printf("%s/%s.qcow2", vm_data_dir(vm), d->name);
}

static char *value_of_disk(Vm *vm, const char *target, GError **err)
{
	const char *inside, *image;
	g_autofree char *path = resolve(vm, "disks", target, &inside);

	image = name_in(inside, ".vmfs/images/");
	if (image)
		return one_key("image", image);
	for (unsigned i = 0; i < vm->spec->disks->len; i++) {
		const SpecDisk *d = vm->spec->disks->pdata[i];

		if (!g_strcmp0(d->file, path)) {
			(void)err_set(err, EBUSY, "%s is attached already, as %s", path, d->name);
			return NULL;
		}
	}
	return one_key("file", path);
}

static char *target_of_nic(Vm *vm, const void *object)
{
	const SpecNic *n = object;

	(void)vm;
	return !strcmp(n->network, "user") ? g_strdup(n->network)
					   : g_strconcat("../../.vmfs/networks/", n->network, NULL);
}

static char *value_of_nic(Vm *vm, const char *target, GError **err)
{
	const char *inside, *network = target;
	g_autofree char *path = resolve(vm, "nics", target, &inside);

	if (strchr(target, '/'))
		network = name_in(inside, ".vmfs/networks/");
	if (network)
		return one_key("network", network);
	(void)err_set(err, EINVAL,
		      "'%.200s' is not a network: link to 'user', or to one in "
		      ".vmfs/networks",
		      target);
	return NULL;
}

static char *target_of_share(Vm *vm, const void *object)
{
	(void)vm;
	return g_strdup(((const SpecShare *)object)->path);
}

static char *value_of_share(Vm *vm, const char *target, GError **err)
{
	const char *inside;
	g_autofree char *path = resolve(vm, "shares", target, &inside);

	(void)err;
	return one_key("path", path);
}

static const Attach attaches[] = {
	{ "disks", NULL, offsetof(Spec, disks), target_of_disk, value_of_disk },
	{ "nics", "eth0", offsetof(Spec, nics), target_of_nic, value_of_nic },
	{ "shares", NULL, offsetof(Spec, shares), target_of_share, value_of_share },
};

/* ---- the directories ---- */

static const Attach *attach_of(const NodeRef *r)
{
	return &attaches[(r->node->id - ATTACH_ROWS) / 2];
}

static const GPtrArray *objects_of(const NodeRef *r)
{
	return *(GPtrArray *const *)((const char *)r->vm->spec + attach_of(r)->offset);
}

/*
 * The numbers of all objects, by their names: the same after a restart, and whatever else comes
 * and goes. Two names that fall on one number are as unlikely as harmless.
 */
static void number(const GPtrArray *objects, uint32_t *ret)
{
	for (unsigned i = 0; i < objects->len; i++) {
		bool again = true;

		ret[i] = g_str_hash(*(char **)objects->pdata[i]) & NUMBERS;
		while (again) {
			again = !ret[i];
			for (unsigned j = 0; j < i; j++)
				again |= ret[j] == ret[i];
			if (again)
				ret[i] = (ret[i] + 1) & NUMBERS;
		}
	}
}

static uint32_t next(const NodeRef *dir, uint32_t after, char name[256])
{
	const GPtrArray *objects = objects_of(dir);
	uint32_t numbers[SPEC_MAX_ITEMS], least = 0;

	number(objects, numbers);
	for (unsigned i = 0; i < objects->len; i++) {
		if (numbers[i] <= after || (least && numbers[i] > least))
			continue;
		least = numbers[i];
		g_strlcpy(name, *(char **)objects->pdata[i], 256);
	}
	return least;
}

static uint32_t find(const NodeRef *dir, const char *name)
{
	const GPtrArray *objects = objects_of(dir);
	uint32_t numbers[SPEC_MAX_ITEMS];

	number(objects, numbers);
	for (unsigned i = 0; i < objects->len; i++)
		if (!strcmp(*(char **)objects->pdata[i], name))
			return numbers[i];
	return 0;
}

/* NULL when it is attached no more. */
static const void *object_of(const NodeRef *r)
{
	const GPtrArray *objects = objects_of(r);
	uint32_t numbers[SPEC_MAX_ITEMS];

	number(objects, numbers);
	for (unsigned i = 0; i < objects->len; i++)
		if (numbers[i] == r->sub)
			return objects->pdata[i];
	return NULL;
}

static bool is_attached(const NodeRef *r)
{
	return object_of(r) != NULL;
}

static const char *link_of(const NodeRef *r)
{
	static char *target; /* until the next call */
	const void *object = object_of(r);

	g_free(target);
	target = object ? attach_of(r)->target(r->vm, object) : NULL;
	return target;
}

/* ---- ln and rm ---- */

typedef struct Pending {
	NodeDone done;
	void *arg;
} Pending;

static void changed(void *arg, const GError *e)
{
	Pending *p = arg;

	p->done(p->arg, e ? err_code(e) : 0);
	g_free(p);
}

static void change(const NodeRef *r, const char *name, const char *value, const Caller *who,
		   NodeDone done, void *arg)
{
	const Attach *a = attach_of(r);
	const YamlEdit edit = {
		.section = a->section, .name = name, .value = value, .preset = a->preset
	};
	Pending *p = g_new(Pending, 1);

	*p = (Pending){ done, arg };
	document_change(r->vm, &edit, who, changed, p);
}

static char *value_of(const NodeRef *dir, const char *target, GError **err)
{
	if (g_utf8_validate(target, -1, NULL))
		return attach_of(dir)->value(dir->vm, target, err);
	(void)err_set(err, EILSEQ, "the target is not UTF-8, as spec.yaml must be");
	return NULL;
}

static int refuse(const NodeRef *dir, const char *name, const GError *e)
{
	const char *section = attach_of(dir)->section;
	g_autofree char *place = name ? g_strdup_printf("%s/%s", section, name) : g_strdup(section);

	vm_set_error(dir->vm, place, e);
	return err_code(e);
}

static int attach(const NodeRef *dir, const char *name, const char *target, const Caller *who,
		  NodeDone done, void *arg)
{
	g_autoptr(GError) e = NULL;
	g_autofree char *value = NULL;

	if (find(dir, name))
		return EEXIST;
	if (!specval_is_name(name)) {
		(void)err_set(&e, EINVAL,
			      "a name here has letters, digits, - and _, and at most %d of them",
			      SPECVAL_MAX_NAME);
		return refuse(dir, NULL, e);
	}
	value = value_of(dir, target, &e);
	if (!value)
		return refuse(dir, name, e);
	change(dir, name, value, who, done, arg);
	return 0;
}

static int detach(const NodeRef *r, const Caller *who, NodeDone done, void *arg)
{
	const void *object = object_of(r);

	if (!object)
		return ENOENT;
	change(r, *(char *const *)object, NULL, who, done, arg);
	return 0;
}

// clang-format off
static const Node rows[] = {
	{ ATTACH_ROWS + 1, "NAME", S_IFLNK | 0777, .link = link_of, .present = is_attached,
	  .doc = "a disk, by its name in spec.yaml: its file, or image" },
	{ ATTACH_ROWS + 3, "NAME", S_IFLNK | 0777, .link = link_of, .present = is_attached,
	  .doc = "an interface: the network it is connected to" },
	{ ATTACH_ROWS + 5, "NAME", S_IFLNK | 0777, .link = link_of, .present = is_attached,
	  .doc = "a share: the host's directory" },
};

#define DIR(row) { .child = &rows[row], .next = next, .find = find, .link = attach, .drop = detach }
const Dir disks_dir = DIR(0), nics_dir = DIR(1), shares_dir = DIR(2);
// clang-format on
