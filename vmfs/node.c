/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/node.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/registry.h"
#include "vmfs/scratch.h"

#define FUSE_ROOT   1
#define STATIC_ROWS 256 /* cookies up to here are rows, above they are objects */

static const Node *by_id[256];

static void check_row(const Node *n)
{
	int behaviours = !!n->show + !!n->dir + !!n->stream + !!n->target + !!n->link + !!n->file +
			 !!n->ask + !!n->fetch + n->document + n->scratch;

	if (n->store && !behaviours)
		behaviours = 1;
	g_assert(n->id && !by_id[n->id]);
	g_assert(behaviours == 1);
	g_assert(n->doc);
	g_assert(S_ISDIR(n->mode) == !!n->dir);
	g_assert(S_ISLNK(n->mode) == (n->link || n->target));
	g_assert((!n->store && !n->order) || (n->mode & 0200));
	g_assert(!n->judge || (n->order && n->show));
	by_id[n->id] = n;
}

static void init_rows(const Dir *d)
{
	const Node *rows[] = { d->child, NULL };

	for (const Node *n = d->rows; n && n->name; n++) {
		check_row(n);
		if (n->dir)
			init_rows(n->dir);
	}
	for (const Node **n = rows; *n; n++) {
		check_row(*n);
		if ((*n)->dir)
			init_rows((*n)->dir);
	}
}

void node_init(void)
{
	check_row(&root_node);
	init_rows(root_node.dir);
}

const Node *node_by_id(uint8_t id)
{
	return by_id[id];
}

uint64_t node_ino(const NodeRef *r)
{
	if (r->node == &root_node)
		return FUSE_ROOT;
	return (uint64_t)(r->vm ? r->vm->serial : 0) << 32 | (uint64_t)(r->sub & 0xffffff) << 8 |
	       r->node->id;
}

bool node_from_ino(uint64_t ino, NodeRef *ret)
{
	uint32_t serial = (uint32_t)(ino >> 32);

	*ret = (NodeRef){ .node = ino == FUSE_ROOT ? &root_node : by_id[ino & 0xff],
			  .sub = (uint32_t)(ino >> 8) & 0xffffff };
	if (!ret->node)
		return false;
	if (serial) {
		ret->vm = registry_by_serial(serial);
		if (!ret->vm)
			return false;
	}
	if (ret->node->attr && !ret->node->attr(ret))
		return false;
	return !ret->node->scratch || scratch_by_number(ret->vm, ret->sub);
}

bool node_is_present(const NodeRef *r)
{
	if (node_is_whole(r->node) && scratch_is_away(node_ino(r)))
		return false;
	return !r->node->present || r->node->present(r);
}

/* The ref of a directory's object number n. */
static NodeRef object_ref(const NodeRef *dir, uint32_t n)
{
	NodeRef r = { .node = dir->node->dir->child, .vm = dir->vm, .sub = n };

	if (dir->node == &root_node) {
		r.vm = registry_by_serial(n);
		r.sub = 0;
	}
	return r;
}

bool node_lookup(const NodeRef *dir, const char *name, NodeRef *ret)
{
	const Dir *d = dir->node->dir;
	uint32_t n;

	for (const Node *row = d->rows; row && row->name; row++) {
		if (strcmp(row->name, name))
			continue;
		*ret = (NodeRef){ .node = row, .vm = dir->vm, .sub = dir->sub };
		if (node_is_present(ret))
			return true;
		break;
	}
	n = d->find ? d->find(dir, name) : 0;
	if (!n)
		return false;
	*ret = object_ref(dir, n);
	return true;
}

/* NULL past the last: lseek(2) takes any number for a cookie. */
static const Node *row_at(const Dir *d, uint64_t n)
{
	const Node *row = d->rows;

	while (row && row->name && n--)
		row++;
	return row && row->name ? row : NULL;
}

bool node_list(const NodeRef *dir, uint64_t *cookie, char name[256], NodeRef *ret)
{
	const Dir *d = dir->node->dir;
	uint32_t n;

	for (; *cookie < STATIC_ROWS; (*cookie)++) {
		const Node *row = row_at(d, *cookie);

		if (!row) {
			*cookie = STATIC_ROWS;
			break;
		}
		*ret = (NodeRef){ .node = row, .vm = dir->vm, .sub = dir->sub };
		if (row->hidden || !node_is_present(ret))
			continue;
		g_strlcpy(name, row->name, 256);
		(*cookie)++;
		return true;
	}
	n = d->next ? d->next(dir, (uint32_t)(*cookie - STATIC_ROWS), name) : 0;
	if (!n)
		return false;
	*cookie = STATIC_ROWS + (uint64_t)n;
	*ret = object_ref(dir, n);
	return true;
}

static void set_times(struct stat *st, int64_t us)
{
	st->st_mtim.tv_sec = us / G_USEC_PER_SEC;
	st->st_mtim.tv_nsec = us % G_USEC_PER_SEC * 1000;
	st->st_atim = st->st_ctim = st->st_mtim;
}

static void stat_owner(const NodeRef *r, struct stat *st)
{
	const HostAttr *host = r->node->attr ? r->node->attr(r) : NULL;
	const VmAttr *a;

	if (!r->vm) {
		st->st_uid = host ? host->uid : geteuid();
		st->st_gid = host ? host->gid : getegid();
		st->st_mode = host ? (r->node->mode & S_IFMT) | host->mode : r->node->mode;
		if (host)
			set_times(st, host->changed);
		return;
	}
	st->st_uid = r->vm->uid;
	st->st_gid = r->vm->gid;
	if (r->node == root_node.dir->child)
		st->st_mode = S_IFDIR | r->vm->mode;
	else if (S_ISLNK(r->node->mode))
		st->st_mode = r->node->mode;
	else
		st->st_mode = r->node->mode & ~r->vm->umask;
	a = r->vm->attrs ? g_hash_table_lookup(r->vm->attrs, GUINT_TO_POINTER(r->node->id)) : NULL;
	if (!a)
		return;
	if (a->mode != (mode_t)-1)
		st->st_mode = (r->node->mode & S_IFMT) | a->mode;
	if (a->uid != (uid_t)-1)
		st->st_uid = a->uid;
	if (a->gid != (gid_t)-1)
		st->st_gid = a->gid;
}

/* Its own times: what reads it, as tar does, sees a change of the VM as none of the file. */
static void stat_file(const NodeRef *r, struct stat *st)
{
	struct stat own;
	int fd = r->node->file(r);

	if (fd < 0)
		return;
	if (!fstat(fd, &own)) {
		st->st_size = own.st_size;
		st->st_atim = st->st_mtim = st->st_ctim = own.st_mtim;
	}
	close(fd);
}

void node_stat(const NodeRef *r, struct stat *st)
{
	memset(st, 0, sizeof *st);
	st->st_ino = node_ino(r);
	st->st_nlink = r->node->dir ? 2 : 1;
	st->st_blksize = 4096;
	set_times(st, !r->vm	     ? registry_root()->changed
		      : r->node->dir ? r->vm->created
				     : r->vm->changed);
	stat_owner(r, st);
	if (r->node->size) {
		st->st_size = (off_t)r->node->size(r);
	} else if (r->node->show) {
		g_autoptr(GString) text = g_string_new(NULL);

		r->node->show(r, text);
		st->st_size = (off_t)text->len;
	} else if (r->node->document) {
		st->st_size = (off_t)g_bytes_get_size(r->vm->spec->text);
	} else if (r->node->target) {
		st->st_size = (off_t)strlen(r->node->target);
	} else if (r->node->link && !r->node->lazy) {
		const char *target = r->node->link(r);

		st->st_size = target ? (off_t)strlen(target) : 0;
	} else if (r->node->file) {
		stat_file(r, st);
	} else if (r->node->ask) {
		st->st_size = ask_size(r->vm, r->node->ask);
	} else if (r->node->scratch) {
		const Scratch *f = scratch_by_number(r->vm, r->sub);

		st->st_size = (off_t)f->data->len;
		st->st_mode = S_IFREG | f->mode;
		st->st_uid = f->uid;
		st->st_gid = f->gid;
		set_times(st, f->changed);
	}
	st->st_blocks = (st->st_size + 511) / 512;
}
