/* SPDX-License-Identifier: Apache-2.0 */
/* Names, attributes and listings. What must reach the disk is answered when it has. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/document.h"
#include "vmfs/err.h"
#include "vmfs/fs_internal.h"
#include "vmfs/loop.h"
#include "vmfs/notify.h"
#include "vmfs/registry.h"
#include "vmfs/scratch.h"
#include "vmfs/store.h"
#include "vmfs/tty.h"

static bool is_vm(const NodeRef *r)
{
	return r->node == root_node.dir->child;
}

/*
 * `ln -sf` over a link tries symlink(2) first, for which the kernel asks us whether the name is
 * taken. So it is known a moment later what the same process means by a temporary name.
 */
static struct {
	fuse_ino_t dir;
	pid_t pid;
} met[64]; /* the last ones */

bool fs_is_met(fuse_ino_t ino, pid_t pid)
{
	for (size_t i = 0; i < G_N_ELEMENTS(met); i++)
		if (met[i].dir == ino && met[i].pid == pid)
			return true;
	return false;
}

static void link_met(fuse_ino_t dir, pid_t pid)
{
	static unsigned next;

	if (fs_is_met(dir, pid))
		return;
	met[next].dir = dir;
	met[next].pid = pid;
	next = (next + 1) % G_N_ELEMENTS(met);
}

void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	NodeRef dir, r;

	if (!node_from_ino(parent, &dir) || !dir.node->dir || !node_lookup(&dir, name, &r)) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	if (S_ISLNK(r.node->mode) && r.node == dir.node->dir->child)
		link_met(parent, fuse_req_ctx(req)->pid);
	fs_reply_entry(req, &r);
}

void fs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;
	NodeRef r;

	(void)fi;
	if (!fs_ref(req, ino, &r))
		return;
	node_stat(&r, &st);
	fuse_reply_attr(req, &st, fs_attr_timeout(&r));
}

void fs_readlink(fuse_req_t req, fuse_ino_t ino)
{
	const char *target;
	NodeRef r;

	if (!fs_ref(req, ino, &r))
		return;
	target = r.node->target ? r.node->target : r.node->link ? r.node->link(&r) : NULL;
	if (target)
		fuse_reply_readlink(req, target);
	else
		fuse_reply_err(req, ENOENT);
}

/* ---- setattr ---- */

typedef struct AttrChange {
	fuse_req_t req;
	fuse_ino_t ino;
	bool undo; /* back to these, if it cannot be stored: of the VM, or of the file */
	VmAttr old;
} AttrChange;

static void reply_attr(fuse_req_t req, fuse_ino_t ino)
{
	struct stat st;
	NodeRef r;

	if (!fs_ref(req, ino, &r))
		return;
	node_stat(&r, &st);
	fuse_reply_attr(req, &st, fs_attr_timeout(&r));
}

static void attr_saved(void *arg, int err)
{
	AttrChange *c = arg;
	NodeRef r = { 0 };

	if (err && c->undo && node_from_ino(c->ino, &r) && is_vm(&r)) {
		r.vm->mode = c->old.mode;
	} else if (err && c->undo && r.vm && r.vm->attrs) {
		g_hash_table_insert(r.vm->attrs, GUINT_TO_POINTER(r.node->id),
				    g_memdup2(&c->old, sizeof c->old));
	}
	if (err)
		fuse_reply_err(c->req, err);
	else
		reply_attr(c->req, c->ino);
	g_free(c);
}

static void attr_committed(void *arg, const GError *e)
{
	attr_saved(arg, e ? err_code(e) : 0);
}

static AttrChange *attr_change(fuse_req_t req, fuse_ino_t ino)
{
	AttrChange *c = g_new0(AttrChange, 1);

	c->req = req;
	c->ino = ino;
	return c;
}

static void log_chown(void *arg, int err)
{
	Vm *vm = arg;

	if (err) {
		g_autoptr(GError) e = err_new(err, "its files could not be given to user %u: %s",
					      vm->uid, g_strerror(err));

		vm_set_error(vm, "chown", e);
	}
	vm_unref(vm);
}

/* 0 or an errno. */
static int set_vm_attr(Vm *vm, const struct stat *attr, int valid)
{
	uid_t uid = valid & FUSE_SET_ATTR_UID ? attr->st_uid : vm->uid;
	gid_t gid = valid & FUSE_SET_ATTR_GID ? attr->st_gid : vm->gid;

	if (uid != vm->uid && geteuid() != 0)
		return EPERM;
	if ((uid != vm->uid || gid != vm->gid) && (vm_is_live(vm) || vm->op)) {
		g_autoptr(GError) e =
			err_new(EBUSY, "it runs with its owner's rights; stop it before "
				       "giving it to another");

		vm_set_error(vm, "chown", e);
		return EBUSY;
	}
	if (uid != vm->uid || gid != vm->gid) {
		vm->uid = uid;
		vm->gid = gid;
		/* The terminal was the former owner's, who may have it open. */
		tty_close(vm);
		if (geteuid() == 0)
			store_chown_vm(vm->serial, uid, gid, log_chown, vm_ref(vm));
		vm_changed(vm, EV_OWNER);
	}
	if (valid & FUSE_SET_ATTR_MODE)
		vm->mode = attr->st_mode & 07777;
	return 0;
}

static void set_file_attr(const NodeRef *r, const struct stat *attr, int valid)
{
	gpointer key = GUINT_TO_POINTER(r->node->id);
	VmAttr *a;

	if (!r->vm->attrs)
		r->vm->attrs = g_hash_table_new_full(NULL, NULL, NULL, g_free);
	a = g_hash_table_lookup(r->vm->attrs, key);
	if (!a) {
		a = g_new(VmAttr, 1);
		*a = (VmAttr){ (mode_t)-1, (uid_t)-1, (gid_t)-1 };
		g_hash_table_insert(r->vm->attrs, key, a);
	}
	if (valid & FUSE_SET_ATTR_MODE)
		a->mode = attr->st_mode & 07777;
	if (valid & FUSE_SET_ATTR_UID)
		a->uid = attr->st_uid;
	if (valid & FUSE_SET_ATTR_GID)
		a->gid = attr->st_gid;
}

/* What is set now: of the VM, or of one of its files. */
static VmAttr attr_of(const NodeRef *r)
{
	const VmAttr none = { (mode_t)-1, (uid_t)-1, (gid_t)-1 }, *a;

	if (is_vm(r))
		return (VmAttr){ r->vm->mode, r->vm->uid, r->vm->gid };
	a = r->vm->attrs ? g_hash_table_lookup(r->vm->attrs, GUINT_TO_POINTER(r->node->id)) : NULL;
	return a ? *a : none;
}

static void set_owner_or_mode(fuse_req_t req, const NodeRef *r, const struct stat *attr, int valid)
{
	fuse_ino_t ino = node_ino(r);
	AttrChange *c;
	VmAttr old;
	int err = 0;

	if (r->node->set_attr) {
		HostAttr a = *r->node->attr(r);

		if (valid & FUSE_SET_ATTR_MODE)
			a.mode = attr->st_mode & 07777;
		if (valid & FUSE_SET_ATTR_UID)
			a.uid = attr->st_uid;
		if (valid & FUSE_SET_ATTR_GID)
			a.gid = attr->st_gid;
		r->node->set_attr(r, &a, attr_saved, attr_change(req, ino));
		return;
	}
	if (r->node->scratch) {
		Scratch *f = scratch_by_number(r->vm, r->sub);

		if (valid & FUSE_SET_ATTR_MODE)
			f->mode = attr->st_mode & 07777;
		if (valid & FUSE_SET_ATTR_UID)
			f->uid = attr->st_uid;
		if (valid & FUSE_SET_ATTR_GID)
			f->gid = attr->st_gid;
		scratch_keep(f);
		reply_attr(req, ino);
		return;
	}
	if (!r->vm) {
		fuse_reply_err(req, EPERM);
		return;
	}
	old = attr_of(r);
	if (is_vm(r))
		err = set_vm_attr(r->vm, attr, valid);
	else
		set_file_attr(r, attr, valid);
	if (err) {
		fuse_reply_err(req, err);
		return;
	}
	c = attr_change(req, ino);
	/* Of another owner the files are on their way already. */
	c->undo = !is_vm(r) || !(valid & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID));
	c->old = old;
	registry_save_meta(r->vm, attr_saved, c);
}

static void truncate_document(fuse_req_t req, const NodeRef *r, uint64_t size)
{
	g_autoptr(GBytes) text = NULL;
	Caller who;

	if (size > g_bytes_get_size(r->vm->spec->text)) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	fs_caller_groups(req, &who);
	text = g_bytes_new_from_bytes(r->vm->spec->text, 0, size);
	document_commit(r->vm, text, &who, EINVAL, attr_committed, attr_change(req, node_ino(r)));
	g_free(who.groups);
}

void fs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int valid,
		struct fuse_file_info *fi)
{
	uint64_t size = (uint64_t)attr->st_size;
	NodeRef r;
	int err = 0;

	if (!fs_ref(req, ino, &r))
		return;
	if (valid & FUSE_SET_ATTR_SIZE) {
		if (node_is_whole(r.node) && fi) {
			err = fs_truncate_handle(fi->fh, size);
		} else if (r.node->document) {
			truncate_document(req, &r, size);
			return;
		} else if (r.node->scratch) {
			err = scratch_truncate(scratch_by_number(r.vm, r.sub), size);
		} else if (r.node->edit) {
			err = fs_truncate_blob(&r, attr->st_size);
		}
	}
	if (err)
		fuse_reply_err(req, err);
	else if (valid & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
		set_owner_or_mode(req, &r, attr, valid);
	else
		reply_attr(req, ino); /* times are ours to tell: touch(1) is a no-op */
}

/* ---- listing ---- */

#define DOTS 2 /* the cookies of "." and ".." come before those of node_list() */

/* "." and ".." are told without an inode for the kernel to remember: fuse_direntplus_link(). */
static size_t add_dot(fuse_req_t req, char *buf, size_t size, uint64_t cookie, const NodeRef *dir,
		      bool plus)
{
	struct fuse_entry_param e = { .attr = { .st_ino = node_ino(dir), .st_mode = S_IFDIR } };
	const char *name = cookie == 0 ? "." : "..";

	if (plus)
		return fuse_add_direntry_plus(req, buf, size, name, &e, (off_t)cookie + 1);
	return fuse_add_direntry(req, buf, size, name, &e.attr, (off_t)cookie + 1);
}

static size_t add_entry(fuse_req_t req, char *buf, size_t size, uint64_t cookie, const char *name,
			const NodeRef *r, bool plus)
{
	struct fuse_entry_param e = { .attr = { .st_ino = node_ino(r), .st_mode = r->node->mode } };

	if (!plus)
		return fuse_add_direntry(req, buf, size, name, &e.attr, (off_t)cookie);
	/* Without room this only tells the size, and the kernel takes no reference. */
	if (fuse_add_direntry_plus(req, NULL, 0, name, NULL, 0) <= size)
		fs_fill_entry(r, &e);
	return fuse_add_direntry_plus(req, buf, size, name, &e, (off_t)cookie);
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, bool plus)
{
	g_autofree char *buf = g_malloc(size);
	uint64_t at = (uint64_t)off, cookie = at < DOTS ? 0 : at - DOTS;
	size_t used = 0, n = 0;
	char name[256];
	NodeRef dir, r;

	if (!fs_ref_dir(req, ino, &dir))
		return;
	for (; at < DOTS; at++, used += n) {
		n = add_dot(req, buf + used, size - used, at, &dir, plus);
		if (n > size - used)
			break;
	}
	while (at >= DOTS && node_list(&dir, &cookie, name, &r)) {
		n = add_entry(req, buf + used, size - used, cookie + DOTS, name, &r, plus);
		if (n > size - used)
			break;
		used += n;
	}
	fuse_reply_buf(req, buf, used);
}

/*
 * Whoever removes links from a directory that they hold open means all that is in it: rm -r, which
 * must do no harm. Such directories are remembered with their readers.
 */
typedef struct Listing {
	fuse_ino_t ino;
	pid_t pid;
} Listing;

static GHashTable *listings; /* number to Listing */

static void listing_begun(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	static uint64_t last;
	Listing *l;
	NodeRef dir;

	if (!node_from_ino(ino, &dir) || !dir.node->dir || !dir.node->dir->drop ||
	    !S_ISLNK(dir.node->dir->child->mode))
		return;
	if (!listings)
		listings = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
	l = g_malloc(sizeof *l + sizeof last);
	*l = (Listing){ ino, fuse_req_ctx(req)->pid };
	fi->fh = ++last;
	/* One block is both key and value. */
	memcpy(l + 1, &last, sizeof last);
	g_hash_table_insert(listings, l + 1, l);
}

bool fs_is_listed(fuse_ino_t ino, pid_t pid)
{
	GHashTableIter it;
	gpointer value;

	if (!listings)
		return false;
	g_hash_table_iter_init(&it, listings);
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		const Listing *l = value;

		if (l->ino == ino && l->pid == pid)
			return true;
	}
	return false;
}

void fs_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	if (listings)
		g_hash_table_remove(listings, &fi->fh);
	fuse_reply_err(req, 0);
}

/* An opendir(3) that waits for a directory's look(). */
typedef struct Opening {
	Parked parked;
	struct fuse_file_info fi;
	bool over; /* answered, because its caller was hit by a signal */
} Opening;

static void opening_ended(Parked *parked, int err)
{
	fuse_reply_err(fs_unpark(parked), err);
	((Opening *)parked)->over = true;
}

static void looked(void *arg, int err)
{
	Opening *o = arg;

	(void)err;
	if (!o->over)
		fuse_reply_open(fs_unpark(&o->parked), &o->fi);
	g_free(o);
}

void fs_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	Opening *o;
	NodeRef dir;

	listing_begun(req, ino, fi);
	/* Machines come and go through the mount, so the kernel knows when its list is old. */
	fi->cache_readdir = fi->keep_cache = ino == FUSE_ROOT_ID;
	if (!node_from_ino(ino, &dir) || !dir.node->dir || !dir.node->dir->look) {
		fuse_reply_open(req, fi);
		return;
	}
	o = g_new0(Opening, 1);
	o->fi = *fi;
	fs_park(&o->parked, req, opening_ended);
	dir.node->dir->look(&dir, looked, o);
}

void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, off, false);
}

void fs_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, off, true);
}
