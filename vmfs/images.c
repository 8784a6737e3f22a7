/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All of it is in one file of the state directory, `images`, that is replaced as a whole; a change
 * is answered when it is on the disk, and taken back when it cannot get there.
 */
#include "vmfs/images.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/registry.h"
#include "vmfs/specval.h"
#include "vmfs/store.h"

#define PATH	   "images" /* in the state directory */
#define GROUP	   "images"
#define PREFIX	   "image " /* of a group's name */
#define MAX_IMAGES 1000
#define MAX_NUMBER 0xffffffu
#define MAX_FILE   (MAX_IMAGES * (4u * PATH_MAX + 4096)) /* escapes included */

typedef struct Image {
	uint32_t number; /* never given to another one */
	char *name, *target;
	HostAttr attr;
} Image;

static struct {
	HostAttr attr;	  /* of the directory */
	GPtrArray *order; /* of Image, by ascending number */
	uint32_t next;
} images;

/* Until it is stored: what is to be taken back if it cannot be. */
typedef struct Change {
	Image *image; /* added, renamed or given to another; NULL: none, or the directory itself */
	Image *removed;
	bool added;
	char *old_name;
	HostAttr *attr, old_attr; /* what has changed, and from what */
	NodeDone done;
	void *arg;
} Change;

static void image_free(void *arg)
{
	Image *i = arg;

	if (!i)
		return;
	g_free(i->name);
	g_free(i->target);
	g_free(i);
}

static Image *find(const char *name)
{
	for (guint i = 0; i < images.order->len; i++) {
		Image *image = images.order->pdata[i];

		if (!strcmp(image->name, name))
			return image;
	}
	return NULL;
}

/* Index of the first one whose number is greater. */
static guint position_after(uint32_t number)
{
	guint i = 0;

	while (i < images.order->len && ((Image *)images.order->pdata[i])->number <= number)
		i++;
	return i;
}

static Image *by_number(uint32_t number)
{
	const guint i = number ? position_after(number - 1) : images.order->len;
	Image *image = i < images.order->len ? images.order->pdata[i] : NULL;

	return image && image->number == number ? image : NULL;
}

static void insert(Image *image)
{
	g_ptr_array_insert(images.order, (int)position_after(image->number), image);
}

const char *images_target(const char *name)
{
	const Image *image = find(name);

	return image ? image->target : NULL;
}

/* ---- used ---- */

/* Of a disk: the file that it is based on, or NULL. */
static const char *base_of(const SpecDisk *d)
{
	return !d->image ? NULL : *d->image == '/' ? d->image : images_target(d->image);
}

static const char *written_by(const SpecDisk *d)
{
	return d->readonly ? NULL : d->file;
}

static bool same(const char *a, const char *b)
{
	g_autofree char *clean_a = NULL, *clean_b = NULL;

	if (!a || !b)
		return false;
	clean_a = g_canonicalize_filename(a, "/");
	clean_b = g_canonicalize_filename(b, "/");
	return !strcmp(clean_a, clean_b);
}

static bool check_pair(const SpecDisk *d, const Vm *other, const SpecDisk *o, GError **err)
{
	if (same(base_of(d), written_by(o)))
		return err_set(err, EBUSY,
			       "disks.%s.image: %s is written by disk '%s' of VM '%s', and a base "
			       "must not change: make that one readonly, or use a copy",
			       d->name, base_of(d), o->name, other->name);
	if (same(written_by(d), base_of(o)))
		return err_set(
			err, EBUSY,
			"disks.%s.file: %s is the base of disk '%s' of VM '%s', and must not "
			"change: make it readonly, or use it as image",
			d->name, d->file, o->name, other->name);
	return true;
}

bool images_check_writers(const Vm *vm, const Spec *spec, GError **err)
{
	const GPtrArray *all = registry_all();

	for (guint i = 0; i < spec->disks->len; i++)
		for (guint j = 0; j < all->len; j++) {
			const Vm *other = all->pdata[j];

			for (guint k = 0; other != vm && k < other->spec->disks->len; k++)
				if (!check_pair(spec->disks->pdata[i], other,
						other->spec->disks->pdata[k], err))
					return false;
		}
	return true;
}

/* ---- stored ---- */

static void put_attr(GKeyFile *file, const char *group, const HostAttr *a)
{
	g_key_file_set_uint64(file, group, "mode", a->mode);
	g_key_file_set_uint64(file, group, "uid", a->uid);
	g_key_file_set_uint64(file, group, "gid", a->gid);
	g_key_file_set_int64(file, group, "changed", a->changed);
}

static void get_attr(GKeyFile *file, const char *group, HostAttr *ret)
{
	ret->mode = (mode_t)g_key_file_get_uint64(file, group, "mode", NULL) & 07777;
	ret->uid = (uid_t)g_key_file_get_uint64(file, group, "uid", NULL);
	ret->gid = (gid_t)g_key_file_get_uint64(file, group, "gid", NULL);
	ret->changed = g_key_file_get_int64(file, group, "changed", NULL);
}

static void load_image(GKeyFile *file, const char *group)
{
	Image *image = g_new0(Image, 1);

	image->name = g_strdup(group + strlen(PREFIX));
	image->target = g_key_file_get_string(file, group, "target", NULL);
	image->number = (uint32_t)g_key_file_get_uint64(file, group, "number", NULL);
	get_attr(file, group, &image->attr);
	if (image->target && image->number && image->number < images.next &&
	    specval_is_image_name(image->name) && !by_number(image->number)) {
		insert(image);
		return;
	}
	log_error("%s/" PATH ": the image '%s' is damaged and left out", store_dir(), image->name);
	image_free(image);
}

void images_load(void)
{
	g_autoptr(GBytes) bytes = store_get(PATH, MAX_FILE);
	g_autoptr(GKeyFile) file = g_key_file_new();
	g_auto(GStrv) groups = NULL;

	images.attr = (HostAttr){ 0755, geteuid(), getegid(), vm_now() };
	images.order = g_ptr_array_new_with_free_func(image_free);
	images.next = 1;
	if (!bytes)
		return;
	if (!g_key_file_load_from_bytes(file, bytes, G_KEY_FILE_NONE, NULL) ||
	    !g_key_file_has_group(file, GROUP)) {
		log_error("%s/" PATH " is damaged: .vmfs/images begins empty", store_dir());
		return;
	}
	get_attr(file, GROUP, &images.attr);
	images.next = (uint32_t)g_key_file_get_uint64(file, GROUP, "next", NULL);
	groups = g_key_file_get_groups(file, NULL);
	for (unsigned i = 0; groups[i]; i++)
		if (g_str_has_prefix(groups[i], PREFIX))
			load_image(file, groups[i]);
}

void images_close(void)
{
	g_ptr_array_unref(images.order);
}

static void save(StoreDone fn, void *arg)
{
	g_autoptr(GKeyFile) file = g_key_file_new();
	g_autoptr(GBytes) bytes = NULL;
	gsize len;
	char *text;

	put_attr(file, GROUP, &images.attr);
	g_key_file_set_uint64(file, GROUP, "next", images.next);
	for (guint i = 0; i < images.order->len; i++) {
		const Image *image = images.order->pdata[i];
		g_autofree char *group = g_strconcat(PREFIX, image->name, NULL);

		put_attr(file, group, &image->attr);
		g_key_file_set_uint64(file, group, "number", image->number);
		g_key_file_set_string(file, group, "target", image->target);
	}
	text = g_key_file_to_data(file, &len, NULL);
	bytes = g_bytes_new_take(text, len);
	store_put(PATH, bytes, true, fn, arg);
}

static void rename_to(Image *image, const char *name)
{
	g_free(image->name);
	image->name = g_strdup(name);
}

static void take_out(Image *image)
{
	guint i;

	if (g_ptr_array_find(images.order, image, &i))
		(void)g_ptr_array_steal_index(images.order, i);
}

static void take_back(Change *c)
{
	if (c->added) {
		take_out(c->image);
		image_free(c->image);
	}
	if (c->old_name && !find(c->old_name))
		rename_to(c->image, c->old_name);
	if (c->removed && !find(c->removed->name))
		insert(g_steal_pointer(&c->removed));
	if (c->attr)
		*c->attr = c->old_attr;
	/* What was asked for meanwhile may have been stored with it. */
	save(NULL, NULL);
}

static void saved(void *arg, int err)
{
	Change *c = arg;

	if (err)
		take_back(c);
	c->done(c->arg, err);
	image_free(c->removed);
	g_free(c->old_name);
	g_free(c);
}

static Change *change_new(Image *image, NodeDone done, void *arg)
{
	Change *c = g_new0(Change, 1);

	c->image = image;
	c->done = done;
	c->arg = arg;
	return c;
}

/* It is in force at once, for what follows to see it. */
static void change(Change *c)
{
	images.attr.changed = vm_now();
	save(saved, c);
}

/* ---- in the tree ---- */

static uint32_t next_image(const NodeRef *dir, uint32_t after, char name[256])
{
	const guint i = position_after(after);
	const Image *image = i < images.order->len ? images.order->pdata[i] : NULL;

	(void)dir;
	if (!image)
		return 0;
	g_strlcpy(name, image->name, 256);
	return image->number;
}

static uint32_t find_image(const NodeRef *dir, const char *name)
{
	const Image *image = find(name);

	(void)dir;
	return image ? image->number : 0;
}

static const char *target_of(const NodeRef *r)
{
	const Image *image = by_number(r->sub);

	return image ? image->target : NULL;
}

static int link_image(const NodeRef *dir, const char *name, const char *target, const Caller *who,
		      NodeDone done, void *arg)
{
	Change *c;
	Image *image;

	(void)dir;
	/* A relative target would begin here, where there are no files. */
	if (!specval_is_image_name(name) || *target != '/' || !g_utf8_validate(target, -1, NULL))
		return EINVAL;
	if (find(name))
		return EEXIST;
	if (images.order->len >= MAX_IMAGES || images.next > MAX_NUMBER)
		return ENOSPC;
	image = g_new0(Image, 1);
	image->number = images.next++;
	image->name = g_strdup(name);
	image->target = g_strdup(target);
	image->attr = (HostAttr){ 0777, who->uid, who->gid, vm_now() };
	insert(image);
	c = change_new(image, done, arg);
	c->added = true;
	change(c);
	return 0;
}

static int drop_image(const NodeRef *r, const Caller *who, NodeDone done, void *arg)
{
	Change *c = change_new(NULL, done, arg);

	(void)who;
	c->removed = by_number(r->sub);
	take_out(c->removed);
	change(c);
	return 0;
}

/* As `ln -sfn` does it: another image of that name goes in the same moment. */
static int rename_image(const NodeRef *r, const char *newname, const Caller *who, NodeDone done,
			void *arg)
{
	Image *image = by_number(r->sub), *there = find(newname);
	Change *c;

	(void)who;
	if (!specval_is_image_name(newname))
		return EINVAL;
	c = change_new(image, done, arg);
	if (there && there != image) {
		c->removed = there;
		take_out(there);
	}
	c->old_name = g_strdup(image->name);
	rename_to(image, newname);
	change(c);
	return 0;
}

static HostAttr *attr_of(const NodeRef *r)
{
	Image *image = by_number(r->sub);

	return !r->sub ? &images.attr : image ? &image->attr : NULL;
}

const HostAttr *images_attr(const NodeRef *r)
{
	return attr_of(r);
}

void images_set_attr(const NodeRef *r, const HostAttr *attr, NodeDone done, void *arg)
{
	HostAttr *own = attr_of(r);
	Change *c;

	if (!own) {
		done(arg, ESTALE);
		return;
	}
	c = change_new(by_number(r->sub), done, arg);
	c->attr = own;
	c->old_attr = *own;
	*own = *attr;
	change(c);
}

// clang-format off
static const Node image_row = {
	101, "NAME", S_IFLNK | 0777, .link = target_of, .attr = images_attr, .set_attr = images_set_attr,
	.doc = "a base image: ln -s /path NAME makes it known as `image: NAME`, rm forgets it",
};
// clang-format on

const Dir images_dir = {
	.child = &image_row,
	.next = next_image,
	.find = find_image,
	.link = link_image,
	.drop = drop_image,
	.rename = rename_image,
};
