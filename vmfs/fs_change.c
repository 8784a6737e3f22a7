/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making, removing and renaming. A directory that can be changed says how in its Dir; an editor's
 * way of replacing spec.yaml by rename or unlink is played along with here.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/fs_internal.h"
#include "vmfs/notify.h"
#include "vmfs/publish.h"
#include "vmfs/request.h"
#include "vmfs/scratch.h"
#include "vmfs/store.h"

/* A request that waits for a directory's slot to call changed(). */
typedef struct Change {
	Parked parked;
	NodeRef dir; /* holds a reference to the VM */
	char *name;  /* of what is made, to be answered with its entry; or NULL */
	bool over;   /* answered, because its caller was hit by a signal */
} Change;

static void change_free(Change *c)
{
	if (c->dir.vm)
		vm_unref(c->dir.vm);
	g_free(c->name);
	g_free(c);
}

static void change_ended(Parked *parked, int err)
{
	Change *c = (Change *)parked;

	fuse_reply_err(fs_unpark(parked), err);
	c->over = true;
}

static Change *change_new(fuse_req_t req, const NodeRef *dir, const char *name)
{
	Change *c = g_new0(Change, 1);

	c->dir = *dir;
	if (dir->vm)
		vm_ref(dir->vm);
	c->name = g_strdup(name);
	fs_park(&c->parked, req, change_ended);
	return c;
}

/* The former daemon had begun it, and it is done: nobody else can have, the kernel keeps them out.
 */
static bool is_made(const NodeRef *dir, const char *name, NodeRef *r)
{
	return request_begun(NULL) && node_lookup(dir, name, r);
}

static bool is_dropped(const NodeRef *dir, const char *name)
{
	NodeRef r;

	return request_begun(NULL) && !node_lookup(dir, name, &r);
}

static void changed(void *arg, int err)
{
	Change *c = arg;
	fuse_req_t req;
	NodeRef r;

	if (!c->over) {
		req = fs_unpark(&c->parked);
		if (err || !c->name)
			fuse_reply_err(req, err);
		else if (node_lookup(&c->dir, c->name, &r))
			fs_reply_entry(req, &r);
		else
			fuse_reply_err(req, ENOENT); /* removed again meanwhile */
	}
	change_free(c);
}

/* The slot said at once what was wrong; otherwise it has called changed(), or will. */
static void change_begun(Change *c, int err)
{
	if (err)
		changed(c, err);
}

/* The notify helper's part in what has happened already: publish.h. */
static bool take_published(fuse_req_t req, PublishKind kind, const NodeRef *dir, const char *name,
			   const char *other)
{
	NodeRef r;
	int err;

	if (!publish_take(kind, dir, name, other, fuse_req_ctx(req)->pid, &err)) {
		/* Too late, perhaps for a daemon that has died: it is nobody's wish any more. */
		if (!notify_is_helper(fuse_req_ctx(req)->pid))
			return false;
		err = ECANCELED;
	}
	if (!err && (kind == PUBLISH_MKDIR || kind == PUBLISH_SYMLINK) &&
	    node_lookup(dir, name, &r))
		fs_reply_entry(req, &r);
	else
		fuse_reply_err(req, err);
	return true;
}

void fs_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	NodeRef dir, r;
	Caller who;
	Change *c;

	if (!fs_ref_dir(req, parent, &dir) || take_published(req, PUBLISH_MKDIR, &dir, name, NULL))
		return;
	if (!dir.node->dir->make) {
		fuse_reply_err(req, EPERM);
		return;
	}
	if (is_made(&dir, name, &r)) {
		fs_reply_entry(req, &r);
		return;
	}
	if (!node_lookup(&dir, name, &r))
		request_begin(0);
	fs_caller_groups(req, &who);
	c = change_new(req, &dir, name);
	change_begun(c, dir.node->dir->make(&dir, name, mode, &who, changed, c));
	g_free(who.groups);
}

void fs_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	NodeRef dir, r;
	Caller who;
	Change *c;

	if (!fs_ref_dir(req, parent, &dir) ||
	    take_published(req, PUBLISH_SYMLINK, &dir, name, NULL))
		return;
	if (!dir.node->dir->link) {
		fuse_reply_err(req, EPERM);
		return;
	}
	if (is_made(&dir, name, &r)) {
		fs_reply_entry(req, &r);
		return;
	}
	if (!node_lookup(&dir, name, &r))
		request_begin(0);
	fs_caller_groups(req, &who);
	who.replaces = fs_is_met(parent, who.pid);
	c = change_new(req, &dir, name);
	change_begun(c, dir.node->dir->link(&dir, name, target, &who, changed, c));
	g_free(who.groups);
}

static void refuse_recursion(const NodeRef *dir)
{
	g_autoptr(GError) e = err_new(EPERM, "whoever lists a directory while removing from it "
					     "would take all of it away; remove the links by name");

	if (dir->vm)
		vm_set_error(dir->vm, dir->node->name, e);
}

/* An object of the directory goes, by rmdir(2) or unlink(2) as its kind wants. */
static void drop(fuse_req_t req, const NodeRef *dir, const NodeRef *r)
{
	Caller who;
	Change *c;

	if (r->node != dir->node->dir->child || !dir->node->dir->drop) {
		fuse_reply_err(req, EPERM);
		return;
	}
	if (S_ISLNK(r->node->mode) && fs_is_listed(node_ino(dir), fuse_req_ctx(req)->pid)) {
		refuse_recursion(dir);
		fuse_reply_err(req, EPERM);
		return;
	}
	request_begin(0);
	fs_caller_groups(req, &who);
	c = change_new(req, dir, NULL);
	change_begun(c, dir->node->dir->drop(r, &who, changed, c));
	g_free(who.groups);
}

void fs_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	NodeRef dir, r;

	if (!fs_ref_dir(req, parent, &dir) || take_published(req, PUBLISH_RMDIR, &dir, name, NULL))
		return;
	if (!node_lookup(&dir, name, &r))
		fuse_reply_err(req, is_dropped(&dir, name) ? 0 : ENOENT);
	else if (!r.node->dir)
		fuse_reply_err(req, ENOTDIR);
	else
		drop(req, &dir, &r);
}

/* ---- spec.yaml, as editors write it ---- */

static void unlink_stored(void *arg, int err)
{
	fuse_reply_err(arg, err);
}

void fs_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	NodeRef dir, r;

	if (!fs_ref_dir(req, parent, &dir) || take_published(req, PUBLISH_UNLINK, &dir, name, NULL))
		return;
	if (!node_lookup(&dir, name, &r)) {
		fuse_reply_err(req, is_dropped(&dir, name) ? 0 : ENOENT);
	} else if (r.node->scratch) {
		scratch_remove(r.vm, scratch_by_number(r.vm, r.sub));
		fuse_reply_err(req, 0);
	} else if (node_is_whole(r.node) && dir.node->dir->scratch) {
		scratch_away(node_ino(&r));
		fuse_reply_err(req, 0);
	} else if (r.node->remove) {
		request_begin(0);
		r.node->remove(&r);
		store_barrier(unlink_stored, req);
	} else {
		drop(req, &dir, &r);
	}
}

typedef struct Replace {
	Change *change;
	uint32_t scratch;
} Replace;

static void replaced(void *arg, const GError *e)
{
	Replace *p = arg;
	Vm *vm = p->change->dir.vm;
	Scratch *f = scratch_by_number(vm, p->scratch);

	/* Kept with the answer, so that it is there if this has to be done again. */
	if (!e && f)
		scratch_remove(vm, f);
	changed(p->change, e ? err_code(e) : 0);
	g_free(p);
}

static void replace_spec(fuse_req_t req, const NodeRef *dir, const NodeRef *from, const NodeRef *to)
{
	const Scratch *f = scratch_by_number(from->vm, from->sub);
	g_autoptr(GBytes) text = g_bytes_new(f->data->data, f->data->len);
	Replace *p = g_new0(Replace, 1);

	p->scratch = f->number;
	scratch_here(node_ino(to));
	p->change = change_new(req, dir, NULL);
	/* mv(1) explains EINVAL as a directory moved into itself. */
	fs_document_commit(req, to, text, EBADMSG, replaced, p);
}

/* spec.yaml to a backup: a copy as scratch file, and spec.yaml is away for a moment. */
static int back_up_spec(fuse_req_t req, const NodeRef *spec, const char *path)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	g_autoptr(GBytes) now = fs_document_text(spec);
	Scratch *f = scratch_find(spec->vm, path);
	gsize len;
	const char *text = g_bytes_get_data(now, &len);
	int err = 0;

	if (f)
		scratch_remove(spec->vm, f);
	f = scratch_new(spec->vm, path, 0600, ctx->uid, ctx->gid, &err);
	if (!f)
		return err;
	(void)scratch_write(f, text, len, 0);
	scratch_away(node_ino(spec));
	return 0;
}

/* In one directory: between spec.yaml and an editor's files. */
static int rename_here(fuse_req_t req, const NodeRef *dir, const NodeRef *from, const NodeRef *to,
		       const char *newname, bool *replied)
{
	const bool to_spec = to->node && node_is_whole(to->node);
	g_autofree char *path = dir->node->dir->scratch(dir, newname);

	if (node_is_whole(from->node) && to_spec)
		return 0;
	/* Not over a fixed file, nor in the place of one that is absent now. */
	if (to->node && !to_spec && !to->node->scratch)
		return EPERM;
	if (node_is_whole(from->node))
		return back_up_spec(req, from, path);
	if (!from->node->scratch)
		return EPERM;
	if (to_spec) {
		replace_spec(req, dir, from, to);
		*replied = true;
		return 0;
	}
	if (strlen(path) > SCRATCH_MAX_NAME)
		return ENAMETOOLONG;
	scratch_rename(from->vm, scratch_by_number(from->vm, from->sub), path);
	return 0;
}

static int rename_object(fuse_req_t req, const NodeRef *dir, const NodeRef *from,
			 const char *newname)
{
	Caller who;
	Change *c;

	if (!dir->node->dir->rename)
		return EPERM;
	request_begin(0);
	fs_caller_groups(req, &who);
	c = change_new(req, dir, NULL);
	change_begun(c, dir->node->dir->rename(from, newname, &who, changed, c));
	g_free(who.groups);
	return 0;
}

void fs_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
	       const char *newname, unsigned flags)
{
	NodeRef dir, newdir, from, to = { 0 };
	bool exists, replied = false;
	int err;

	if (!fs_ref_dir(req, parent, &dir) || !fs_ref_dir(req, newparent, &newdir))
		return;
	if (parent == newparent && take_published(req, PUBLISH_RENAME, &dir, name, newname))
		return;
	if (!node_lookup(&dir, name, &from)) {
		fuse_reply_err(req, is_made(&newdir, newname, &to) ? 0 : ENOENT);
		return;
	}
	exists = node_lookup(&newdir, newname, &to);
	if (flags & ~(unsigned)RENAME_NOREPLACE) {
		err = EINVAL;
	} else if (exists && (flags & RENAME_NOREPLACE)) {
		err = EEXIST;
	} else if (parent == newparent && !from.node->scratch &&
		   from.node == dir.node->dir->child) {
		err = rename_object(req, &dir, &from, newname);
		replied = !err;
	} else if (from.node->dir || !dir.node->dir->scratch || !newdir.node->dir->scratch) {
		err = EPERM;
	} else if (parent != newparent) {
		err = EXDEV; /* mv(1) then copies */
	} else {
		err = rename_here(req, &dir, &from, &to, newname, &replied);
	}
	if (!replied)
		fuse_reply_err(req, err);
}
