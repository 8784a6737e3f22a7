/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disks/, nics/, shares/ and devices/ of a VM: directories of links, one an entry of that mapping
 * in spec.yaml. ln(1) and rm(1) in them edit the document.
 */
#include <errno.h>
#include <string.h>

#include "vmfs/attach.h"
#include "vmfs/document.h"
#include "vmfs/err.h"
#include "vmfs/hostdev.h"
#include "vmfs/networks.h"
#include "vmfs/node.h"
#include "vmfs/notify.h"
#include "vmfs/publish.h"
#include "vmfs/scratch.h"
#include "vmfs/specval.h"
#include "vmfs/waitq.h"

#define NUMBERS 0xffffffu /* what fits into an inode number */

/* A mapping of the document. */
typedef struct Attach {
	const char *section, *preset;
	size_t offset;				     /* of its GPtrArray in a Spec */
	char *(*target)(Vm *vm, const void *object); /* of the link; owned by the caller */
	/* What a link of that name and target means, in flow style; owned by the caller. */
	char *(*value)(Vm *vm, const char *name, const char *target, GError **err);
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

static char *value_of_disk(Vm *vm, const char *name, const char *target, GError **err)
{
	const char *inside, *image;
	g_autofree char *path = resolve(vm, "disks", target, &inside);

	image = name_in(inside, ".vmfs/images/");
	if (image)
		return one_key("image", image);
	for (unsigned i = 0; i < vm->spec->disks->len; i++) {
		const SpecDisk *d = vm->spec->disks->pdata[i];

		if (!g_strcmp0(d->file, path) && strcmp(d->name, name) != 0) {
			(void)err_set(err, EBUSY, "%s is attached already, as %s", path, d->name);
			return NULL;
		}
	}
	return one_key("file", path);
}

static char *target_of_nic(Vm *vm, const void *object)
{
	const SpecNic *n = object;
	g_autofree char *label = network_label(vm_host(vm), n->network);

	return !strcmp(n->network, "user") ? g_strdup(n->network)
					   : g_strconcat("../../.vmfs/networks/", label, NULL);
}

static char *value_of_nic(Vm *vm, const char *as, const char *target, GError **err)
{
	const char *inside, *label, *at;
	g_autofree char *path = resolve(vm, "nics", target, &inside), *name = NULL;

	(void)as;
	if (!strchr(target, '/'))
		return one_key("network", target);
	label = name_in(inside, ".vmfs/networks/");
	at = label ? strchr(label, '@') : NULL;
	if (label && strcmp(at ? at + 1 : "local", vm_host(vm))) {
		(void)err_set(err, EXDEV, "network %s is on host %s, and the machine on %s", label,
			      at ? at + 1 : "local", vm_host(vm));
		return NULL;
	}
	name = at ? g_strndup(label, (size_t)(at - label)) : g_strdup(label);
	if (name)
		return one_key("network", name);
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

static char *value_of_share(Vm *vm, const char *name, const char *target, GError **err)
{
	const char *inside;
	g_autofree char *path = resolve(vm, "shares", target, &inside);

	(void)name;
	(void)err;
	return one_key("path", path);
}

static char *target_of_device(Vm *vm, const void *object)
{
	const SpecDevice *d = object;

	(void)vm;
	return g_strconcat("../../.vmfs/devices/", d->pci ? "pci/" : "usb/",
			   d->pci ? d->pci : d->usb, NULL);
}

static char *value_of_device(Vm *vm, const char *name, const char *target, GError **err)
{
	const char *inside, *pci, *usb;
	g_autofree char *path = resolve(vm, "devices", target, &inside);

	(void)name;
	pci = name_in(inside, ".vmfs/devices/pci/");
	usb = name_in(inside, ".vmfs/devices/usb/");
	if (!pci && !usb) {
		(void)err_set(err, EINVAL,
			      "'%.200s' is not a device: link to one in .vmfs/devices/pci or "
			      ".vmfs/devices/usb",
			      target);
		return NULL;
	}
	if (strcmp(vm_host(vm), "local")) {
		(void)err_set(err, EXDEV, "device %s is on this host, and the machine on %s",
			      pci ? pci : usb, vm_host(vm));
		return NULL;
	}
	if (!hostdev_find(pci ? HOSTDEV_PCI : HOSTDEV_USB, pci ? pci : usb)) {
		(void)err_set(err, ENOENT, "there is no device %s on this host; see .vmfs/devices",
			      pci ? pci : usb);
		return NULL;
	}
	return one_key(pci ? "pci" : "usb", pci ? pci : usb);
}

static const Attach attaches[] = {
	{ "disks", NULL, offsetof(Spec, disks), target_of_disk, value_of_disk },
	{ "nics", "eth0", offsetof(Spec, nics), target_of_nic, value_of_nic },
	{ "shares", NULL, offsetof(Spec, shares), target_of_share, value_of_share },
	{ "devices", NULL, offsetof(Spec, devices), target_of_device, value_of_device },
};

/* ---- the directories ---- */

static const Attach *attach_of(const NodeRef *r)
{
	return &attaches[(r->node->id - ATTACH_ROWS) / 2];
}

static const GPtrArray *objects_in(const Attach *a, const Spec *spec)
{
	return *(GPtrArray *const *)((const char *)spec + a->offset);
}

/* Of `spec`; NULL: it has none of that name. Owned by the caller. */
static char *target_in(const NodeRef *dir, const Spec *spec, const char *name)
{
	const Attach *a = attach_of(dir);
	const GPtrArray *objects = objects_in(a, spec);

	for (unsigned i = 0; i < objects->len; i++)
		if (!strcmp(*(char **)objects->pdata[i], name))
			return a->target(dir->vm, objects->pdata[i]);
	return NULL;
}

/* ---- links that are still to be as the document says ---- */

typedef struct LateLink {
	NodeRef dir; /* holds a reference to the VM */
	char *name;
	char *shown;  /* its target; NULL: it is not there */
	bool by_user; /* an ln or rm is under way, of which the kernel tells the watchers */
} LateLink;

static LateLink *late_link(const NodeRef *dir, const char *name)
{
	for (unsigned i = 0; dir->vm->late_links && i < dir->vm->late_links->len; i++) {
		LateLink *l = dir->vm->late_links->pdata[i];

		if (attach_of(&l->dir) == attach_of(dir) && !strcmp(l->name, name))
			return l;
	}
	return NULL;
}

static LateLink *late_link_new(const NodeRef *dir, const char *name)
{
	LateLink *l = g_new0(LateLink, 1);

	l->dir = *dir;
	vm_ref(dir->vm);
	l->name = g_strdup(name);
	if (!dir->vm->late_links)
		dir->vm->late_links = g_ptr_array_new();
	g_ptr_array_add(dir->vm->late_links, l);
	return l;
}

static void late_link_free(LateLink *l)
{
	Vm *vm = l->dir.vm;

	g_ptr_array_remove_fast(vm->late_links, l);
	if (!vm->late_links->len)
		g_clear_pointer(&vm->late_links, g_ptr_array_unref);
	if (!l->by_user)
		waitq_wake(&vm->waiters);
	g_free(l->name);
	g_free(l->shown);
	g_free(l);
	vm_unref(vm);
}

static bool came(void *arg);
static bool went(void *arg);

/* One step towards what the document says: another target is another link. */
static void catch_up(LateLink *l)
{
	g_autofree char *target = target_in(&l->dir, l->dir.vm->spec, l->name);

	if (!g_strcmp0(l->shown, target))
		late_link_free(l);
	else if (l->shown)
		publish(PUBLISH_UNLINK, &l->dir, l->name, NULL, went, l);
	else
		publish(PUBLISH_SYMLINK, &l->dir, l->name, target, came, l);
}

static bool came(void *arg)
{
	LateLink *l = arg;

	g_autofree char *target = target_in(&l->dir, l->dir.vm->spec, l->name);

	late_link_free(l);
	return target;
}

static bool went(void *arg)
{
	LateLink *l = arg;
	g_autofree char *target = target_in(&l->dir, l->dir.vm->spec, l->name);
	const bool goes = g_strcmp0(l->shown, target) != 0;

	if (goes)
		g_clear_pointer(&l->shown, g_free);
	catch_up(l);
	return goes;
}

static void compare(const NodeRef *dir, const char *name, const Spec *before)
{
	g_autofree char *old = target_in(dir, before, name);
	g_autofree char *target = target_in(dir, dir->vm->spec, name);
	LateLink *l;

	if (!g_strcmp0(old, target) || late_link(dir, name))
		return;
	l = late_link_new(dir, name);
	l->shown = g_steal_pointer(&old);
	catch_up(l);
}

static void compare_all(const NodeRef *dir, const Spec *of, const Spec *before)
{
	const GPtrArray *objects = objects_in(attach_of(dir), of);

	for (unsigned i = 0; i < objects->len; i++)
		compare(dir, *(char **)objects->pdata[i], before);
}

void attach_spec_changed(Vm *vm, const Spec *before)
{
	for (const Node *row = vm_dir.rows; row->name; row++) {
		const NodeRef dir = { .node = row, .vm = vm };

		if (row->id < ATTACH_ROWS || row->id >= ATTACH_ROWS + 2 * G_N_ELEMENTS(attaches) ||
		    !notify_is_looked_up(&dir))
			continue;
		compare_all(&dir, before, before);
		compare_all(&dir, vm->spec, before);
	}
}

bool attach_is_late(const Vm *vm)
{
	for (unsigned i = 0; vm->late_links && i < vm->late_links->len; i++)
		if (!((const LateLink *)vm->late_links->pdata[i])->by_user)
			return true;
	return false;
}

/* ---- the directories ---- */

/*
 * A temporary name, under which whoever replaces a link by rename(2) makes the new one. Nothing is
 * attached by that. They are scratch files, called "disks/NAME".
 */
static bool is_temporary(const char *name, const Caller *who)
{
	/* ln(1) of GNU says CuXXXXXX, which could be a word as well. */
	const char *random = g_str_has_prefix(name, "Cu") && who->replaces ? name + 2 : "";

	for (unsigned i = 0; g_ascii_isalnum(random[i]); i++)
		if (i == 5)
			return !random[i + 1];
	return *name == '.';
}

/* Its name in the directory, or NULL. */
static const char *temporary_name(const NodeRef *dir, const Scratch *f)
{
	const char *section = attach_of(dir)->section;
	const size_t len = strlen(section);

	return !strncmp(f->name, section, len) && f->name[len] == '/' ? f->name + len + 1 : NULL;
}

static Scratch *find_temporary(const NodeRef *dir, const char *name)
{
	g_autofree char *path = g_strconcat(attach_of(dir)->section, "/", name, NULL);

	return scratch_find(dir->vm, path);
}

typedef struct Link {
	const char *name;
	uint32_t number; /* in the directory; not 0 */
} Link;

/*
 * The numbers of all links, by their names: the same after a restart, and whatever else comes and
 * goes. Two names that fall on one number are as unlikely as harmless.
 */
static void add_link(GArray *links, const char *name)
{
	Link l = { name, g_str_hash(name) & NUMBERS };
	bool again = true;

	while (again) {
		again = !l.number;
		for (unsigned j = 0; j < links->len; j++)
			again |= g_array_index(links, Link, j).number == l.number;
		if (again)
			l.number = (l.number + 1) & NUMBERS;
	}
	g_array_append_val(links, l);
}

/* What is shown; freed by the caller, the names are borrowed. */
static GArray *links_of(const NodeRef *r)
{
	const GPtrArray *objects = objects_in(attach_of(r), r->vm->spec);
	const GPtrArray *late = r->vm->late_links;
	GArray *links = g_array_new(FALSE, FALSE, sizeof(Link));

	for (unsigned i = 0; i < objects->len; i++) {
		const char *name = *(char **)objects->pdata[i];
		const LateLink *l = late_link(r, name);

		if (!l || l->by_user || l->shown)
			add_link(links, name);
	}
	for (unsigned i = 0; late && i < late->len; i++) {
		const LateLink *l = late->pdata[i];
		g_autofree char *target = attach_of(&l->dir) == attach_of(r)
						  ? target_in(r, r->vm->spec, l->name)
						  : NULL;

		if (attach_of(&l->dir) == attach_of(r) && !target && l->shown)
			add_link(links, l->name);
	}
	for (const Scratch *f = scratch_after(r->vm, 0); f; f = scratch_after(r->vm, f->number))
		if (temporary_name(r, f))
			add_link(links, temporary_name(r, f));
	return links;
}

static uint32_t next(const NodeRef *dir, uint32_t after, char name[256])
{
	g_autoptr(GArray) links = links_of(dir);
	uint32_t least = 0;

	for (unsigned i = 0; i < links->len; i++) {
		const Link *l = &g_array_index(links, Link, i);

		if (l->number <= after || (least && l->number > least))
			continue;
		least = l->number;
		g_strlcpy(name, l->name, 256);
	}
	return least;
}

static uint32_t find(const NodeRef *dir, const char *name)
{
	g_autoptr(GArray) links = links_of(dir);

	for (unsigned i = 0; i < links->len; i++)
		if (!strcmp(g_array_index(links, Link, i).name, name))
			return g_array_index(links, Link, i).number;
	return 0;
}

/* NULL when it is attached no more. */
static const char *name_of(const NodeRef *r)
{
	g_autoptr(GArray) links = links_of(r);

	for (unsigned i = 0; i < links->len; i++)
		if (g_array_index(links, Link, i).number == r->sub)
			return g_array_index(links, Link, i).name;
	return NULL;
}

static bool is_attached(const NodeRef *r)
{
	return name_of(r) != NULL;
}

static char *target_of_temporary(const Scratch *f)
{
	return g_strndup((const char *)f->data->data, f->data->len);
}

static const char *link_of(const NodeRef *r)
{
	static char *target; /* until the next call */
	const char *name = name_of(r);
	const LateLink *l = name ? late_link(r, name) : NULL;
	const Scratch *f = name ? find_temporary(r, name) : NULL;

	g_free(target);
	target = !name		 ? NULL
		 : f		 ? target_of_temporary(f)
		 : l && l->shown ? g_strdup(l->shown)
				 : target_in(r, r->vm->spec, name);
	return target;
}

/* ---- ln and rm ---- */

typedef struct Pending {
	NodeDone done;
	void *arg;
	LateLink *link;
	uint32_t temporary; /* the scratch file whose place it takes; 0: none */
} Pending;

static void changed(void *arg, const GError *e)
{
	Pending *p = arg;
	Vm *vm = p->link->dir.vm;
	Scratch *f = p->temporary ? scratch_by_number(vm, p->temporary) : NULL;

	if (f && !e)
		scratch_remove(vm, f);
	late_link_free(p->link);
	p->done(p->arg, e ? err_code(e) : 0);
	g_free(p);
}

/* `temporary`: it comes in the place of one that is there, or not. */
static void change(const NodeRef *r, const char *name, const char *value, const Scratch *temporary,
		   const Caller *who, NodeDone done, void *arg)
{
	const Attach *a = attach_of(r);
	const YamlEdit edit = { .section = a->section,
				.name = name,
				.value = value,
				.preset = a->preset,
				.over = temporary };
	Pending *p = g_new(Pending, 1);

	*p = (Pending){ done, arg, late_link_new(r, name), temporary ? temporary->number : 0 };
	p->link->by_user = true;
	document_change(r->vm, &edit, who, changed, p);
}

static char *value_of(const NodeRef *dir, const char *name, const char *target, GError **err)
{
	if (g_utf8_validate(target, -1, NULL))
		return attach_of(dir)->value(dir->vm, name, target, err);
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

/* By the link, or in the place of another by a temporary one that is renamed. */
static int take(const NodeRef *dir, const char *name, const char *target, const Scratch *temporary,
		const Caller *who, NodeDone done, void *arg)
{
	g_autoptr(GError) e = NULL;
	g_autofree char *value = NULL;

	if (!specval_is_name(name)) {
		(void)err_set(&e, EINVAL,
			      "a name here has letters, digits, - and _, and at most %d of them",
			      SPECVAL_MAX_NAME);
		return refuse(dir, NULL, e);
	}
	value = value_of(dir, name, target, &e);
	if (!value)
		return refuse(dir, name, e);
	change(dir, name, value, temporary, who, done, arg);
	return 0;
}

static int make_temporary(const NodeRef *dir, const char *name, const char *target,
			  const Caller *who)
{
	g_autofree char *path = g_strconcat(attach_of(dir)->section, "/", name, NULL);
	int err = 0;
	Scratch *f = scratch_new(dir->vm, path, 0777, who->uid, who->gid, &err);

	if (f)
		(void)scratch_write(f, target, strlen(target), 0);
	return err;
}

static int attach(const NodeRef *dir, const char *name, const char *target, const Caller *who,
		  NodeDone done, void *arg)
{
	int err;

	if (find(dir, name))
		return EEXIST;
	if (!is_temporary(name, who))
		return take(dir, name, target, NULL, who, done, arg);
	err = make_temporary(dir, name, target, who);
	if (!err)
		done(arg, 0);
	return err;
}

static int move(const NodeRef *r, const char *newname, const Caller *who, NodeDone done, void *arg)
{
	const char *name = name_of(r);
	Scratch *f = name ? find_temporary(r, name) : NULL;
	g_autofree char *target = f ? target_of_temporary(f) : NULL;
	g_autofree char *there = target_in(r, r->vm->spec, newname);
	g_autoptr(GError) e = NULL;

	if (!name)
		return ENOENT;
	if (f && !g_strcmp0(target, there)) {
		scratch_remove(r->vm, f);
		done(arg, 0);
		return 0;
	}
	if (f)
		return take(r, newname, target, f, who, done, arg);
	e = err_new(EPERM, "what is attached keeps its name, by which the guest may know it; "
			   "attach it anew, or edit spec.yaml");
	return refuse(r, name, e);
}

static int detach(const NodeRef *r, const Caller *who, NodeDone done, void *arg)
{
	const char *name = name_of(r);
	Scratch *f = name ? find_temporary(r, name) : NULL;

	if (!name)
		return ENOENT;
	if (f) {
		scratch_remove(r->vm, f);
		done(arg, 0);
	} else {
		change(r, name, NULL, NULL, who, done, arg);
	}
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
	{ ATTACH_ROWS + 7, "NAME", S_IFLNK | 0777, .link = link_of, .present = is_attached,
	  .doc = "a device: its place in .vmfs/devices" },
};

#define DIR(row) { .child = &rows[row], .next = next, .find = find, .link = attach, .drop = detach, .rename = move }
const Dir disks_dir = DIR(0), nics_dir = DIR(1), shares_dir = DIR(2), devices_dir = DIR(3);
// clang-format on
