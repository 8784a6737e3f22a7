/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/publish.h"

#include <errno.h>
#include <string.h>

#include "vmfs/fs.h"
#include "vmfs/loop.h"
#include "vmfs/notify.h"

#define HELPER_MS 1000

typedef struct Publication {
	PublishKind kind;
	char *key;
	NodeRef dir; /* holds a reference to the VM */
	PublishFn fn;
	void *arg;
	Timer *timer;
} Publication;

static GHashTable *pending; /* key to Publication */

static char *key_of(PublishKind kind, const NodeRef *dir, const char *name, const char *other)
{
	bool renames = kind == PUBLISH_RENAME;

	/* No name has a slash in it. */
	return g_strdup_printf("%c%" G_GUINT64_FORMAT "/%s/%s", (char)kind, node_ino(dir), name,
			       renames ? other : "");
}

static void publication_free(Publication *p)
{
	timer_stop(&p->timer);
	if (p->dir.vm)
		vm_unref(p->dir.vm);
	g_free(p->key);
	g_free(p);
}

static bool commit(Publication *p)
{
	bool done;

	g_hash_table_steal(pending, p->key);
	done = p->fn(p->arg);
	publication_free(p);
	return done;
}

/* Without the kernel, which must not believe the list of names that it has. */
static void commit_alone(Publication *p)
{
	NodeRef dir = p->dir;

	if (dir.vm)
		vm_ref(dir.vm);
	(void)commit(p);
	fs_names_changed(&dir);
	if (dir.vm)
		vm_unref(dir.vm);
}

static void late(void *arg)
{
	Publication *p = arg;

	p->timer = NULL;
	commit_alone(p);
}

void publish(PublishKind kind, const NodeRef *dir, const char *name, const char *other,
	     PublishFn fn, void *arg)
{
	Publication *p = g_new0(Publication, 1), *before;

	if (!pending)
		pending = g_hash_table_new(g_str_hash, g_str_equal);
	p->kind = kind;
	p->key = key_of(kind, dir, name, other);
	p->dir = *dir;
	if (dir->vm)
		vm_ref(dir->vm);
	p->fn = fn;
	p->arg = arg;
	before = g_hash_table_lookup(pending, p->key);
	if (before)
		commit_alone(before);
	g_hash_table_insert(pending, p->key, p);
	if (fs_is_serving() && notify_order((char)kind, dir, name, other))
		p->timer = timer_start(HELPER_MS, late, p);
	else
		commit_alone(p);
}

bool publish_take(PublishKind kind, const NodeRef *dir, const char *name, const char *other,
		  pid_t pid, int *err)
{
	g_autofree char *key = NULL;
	Publication *p;

	if (!pending || !g_hash_table_size(pending))
		return false;
	key = key_of(kind, dir, name, other);
	p = g_hash_table_lookup(pending, key);
	if (!p)
		return false;
	/* A user who makes the same thing is told that it is there; who removes it, has. */
	if ((kind == PUBLISH_MKDIR || kind == PUBLISH_SYMLINK) && !notify_is_helper(pid)) {
		*err = EEXIST;
		return true;
	}
	*err = commit(p) ? 0 : EBUSY;
	return true;
}

void publish_withdraw(PublishKind kind, const NodeRef *dir, const char *name)
{
	g_autofree char *key = key_of(kind, dir, name, NULL);
	Publication *p = pending ? g_hash_table_lookup(pending, key) : NULL;

	if (!p)
		return;
	g_hash_table_remove(pending, key);
	publication_free(p);
}

void publish_stop(void)
{
	GHashTableIter it;
	gpointer p;

	while (pending && g_hash_table_size(pending)) {
		g_hash_table_iter_init(&it, pending);
		(void)g_hash_table_iter_next(&it, NULL, &p);
		commit_alone(p);
	}
	g_clear_pointer(&pending, g_hash_table_unref);
}
