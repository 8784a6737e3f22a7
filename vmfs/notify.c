/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/keep.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/node.h"
#include "vmfs/proc.h"
#include "vmfs/publish.h"
#include "vmfs/registry.h"

/* A letter for what to do, and one or two strings that end with a NUL, no longer than a path. */
#define MAX_MESSAGE (2 * 4096)
#define TOUCH	    'T'
/* Each can be held up by a write that is being answered; the others go on. */
#define HELPER_THREADS 4
#define HELPER_FD      3
#define SUB_MASK       0xffffff00u /* of an inode number: one of many objects of a row */
#define RESTART_MS     1000	   /* after which one that died is replaced */

static struct {
	char *mountpoint;
	Proc *helper;
	int fd;
	Timer *restart; /* of a helper that died */
	Watch *watch;	/* waits for room in the socket; NULL: it has some */
	bool flushing;
	GQueue orders;	     /* of GBytes: messages; they go first */
	GQueue queue;	     /* of inode numbers, as pointers to keys of `pending` */
	GHashTable *pending; /* set of inode numbers */
	GHashTable *lookups; /* inode number to count, neither in memory of its own */
} notify = { .fd = -1 };

static void flush_later(void);
static void start_helper(void);

/* ---- whom it may concern ---- */

/* What is kept is a bit for each row of a VM: counts are the kernel's. */
static void keep_known(uint64_t ino, bool known)
{
	const uint64_t serial = ino >> 32;
	static const uint8_t none[256 / 8];
	g_autoptr(GBytes) old = NULL;
	uint8_t bits[256 / 8] = { 0 }, bit = (uint8_t)(1u << (ino & 7));

	if (!keep_head() || ino & SUB_MASK)
		return;
	old = keep_get(KEEP_KNOWN, serial);
	if (old)
		keep_copy(bits, sizeof bits, old);
	if (known)
		bits[(ino & 0xff) / 8] |= bit;
	else
		bits[(ino & 0xff) / 8] &= (uint8_t)~bit;
	/* Of a VM that is removed nothing is known soon. */
	if (!memcmp(bits, none, sizeof bits))
		keep_unset(KEEP_KNOWN, serial);
	else
		keep_set(KEEP_KNOWN, serial, bits, sizeof bits);
}

static guint hash_ino(gconstpointer key)
{
	const uint64_t ino = (guintptr)key;

	return (guint)(ino ^ ino >> 32);
}

static gpointer key_of(uint64_t ino)
{
	G_STATIC_ASSERT(sizeof(gpointer) >= sizeof ino);
	return (gpointer)(guintptr)ino;
}

static gsize lookups_of(uint64_t ino)
{
	return notify.lookups ? GPOINTER_TO_SIZE(g_hash_table_lookup(notify.lookups, key_of(ino)))
			      : 0;
}

void notify_looked_up(uint64_t ino)
{
	const gsize count = lookups_of(ino);

	if (!notify.lookups)
		return;
	g_hash_table_insert(notify.lookups, key_of(ino), GSIZE_TO_POINTER(count + 1));
	if (!count)
		keep_known(ino, true);
}

void notify_forgotten(uint64_t ino, uint64_t n)
{
	const gsize count = lookups_of(ino);

	if (!count)
		return;
	if (count > n) {
		g_hash_table_insert(notify.lookups, key_of(ino), GSIZE_TO_POINTER(count - n));
		return;
	}
	g_hash_table_remove(notify.lookups, key_of(ino));
	keep_known(ino, false);
}

static bool is_known(uint64_t ino)
{
	return lookups_of(ino);
}

bool notify_is_looked_up(const NodeRef *r)
{
	return is_known(node_ino(r));
}

/* ---- what to touch ---- */

static void queue_ino(uint64_t ino)
{
	uint64_t *key;

	if (g_hash_table_contains(notify.pending, &ino))
		return;
	key = g_memdup2(&ino, sizeof ino);
	g_hash_table_add(notify.pending, key);
	g_queue_push_tail(&notify.queue, key);
	keep_set(KEEP_NUDGE, ino, NULL, 0);
	flush_later();
}

static void queue_rows(const NodeRef *parent, unsigned changes)
{
	bool dir_known = is_known(node_ino(parent));

	for (const Node *row = parent->node->dir->rows; row->name; row++) {
		NodeRef r = { .node = row, .vm = parent->vm, .sub = parent->sub };
		uint64_t ino;

		if (!(row->events & changes))
			continue;
		ino = node_ino(&r);
		if (dir_known || is_known(ino))
			queue_ino(ino);
	}
}

void notify_change(Vm *vm, unsigned changes)
{
	NodeRef dir = { .node = root_node.dir->child, .vm = vm };
	NodeRef host = { .node = &host_rows[0] };

	if (notify.fd < 0)
		return;
	if (!vm->removed)
		queue_rows(&dir, changes);
	queue_rows(&host, changes);
}

void notify_object_change(const NodeRef *dir, unsigned changes)
{
	if (notify.fd >= 0)
		queue_rows(dir, changes);
}

/* Where below `dir` the file is; by its name there and by those of the directories between. */
static bool append_path(GString *path, const NodeRef *dir, const NodeRef *to)
{
	const size_t len = path->len;
	const Dir *d = dir->node->dir;
	NodeRef r = *dir;
	char name[256];

	for (const Node *row = d->rows; row && row->name; row++) {
		r.node = row;
		g_string_append_printf(path, "/%s", row->name);
		if (row == to->node || (row->dir && append_path(path, &r, to)))
			return true;
		g_string_truncate(path, len);
	}
	if (!d->child || !to->sub || dir->sub || d->next(dir, to->sub - 1, name) != to->sub)
		return false;
	r = (NodeRef){ .node = d->child, .vm = dir->vm, .sub = to->sub };
	g_string_append_printf(path, "/%s", name);
	if (r.node == to->node || (r.node->dir && append_path(path, &r, to)))
		return true;
	g_string_truncate(path, len);
	return false;
}

/* NULL when it is no more. */
static char *path_of(uint64_t ino)
{
	NodeRef r, dir = { .node = &host_rows[0] };
	GString *path;

	if (!node_from_ino(ino, &r) || !node_is_present(&r))
		return NULL;
	if (r.vm)
		dir = (NodeRef){ .node = root_node.dir->child, .vm = r.vm };
	path = g_string_new(notify.mountpoint);
	g_string_append_printf(path, "/%s", r.vm ? r.vm->name : dir.node->name);
	return g_string_free(path, !append_path(path, &dir, &r));
}

static bool is_held(uint64_t ino)
{
	NodeRef r;

	return node_from_ino(ino, &r) && r.vm && r.vm->commands && r.node->store;
}

/* ---- sending ---- */

static void on_room(void *arg, int status, int events)
{
	(void)arg;
	(void)status;
	(void)events;
	watch_stop(&notify.watch, false);
	flush_later();
}

static void restart(void *arg)
{
	notify.restart = NULL;
	start_helper();
}

static void drop_helper(void)
{
	if (notify.watch)
		watch_stop(&notify.watch, false);
	/* The end of its input ends it. */
	close(notify.fd);
	notify.fd = -1;
	proc_free(notify.helper);
	notify.helper = NULL;
	g_queue_clear_full(&notify.orders, (GDestroyNotify)g_bytes_unref);
	while (notify.queue.length) {
		uint64_t *key = g_queue_pop_head(&notify.queue);

		keep_unset(KEEP_NUDGE, *key);
	}
	g_hash_table_remove_all(notify.pending);
}

static void helper_lost(int err)
{
	log_error(
		"the notify helper is gone (%s); inotify watchers are told of nothing until there "
		"is another",
		g_strerror(err));
	drop_helper();
	notify.restart = timer_start(RESTART_MS, restart, NULL);
}

/* Returns false when there is no room now. */
static bool send_message(const GBytes *message)
{
	size_t len = g_bytes_get_size((GBytes *)message);
	const char *data = g_bytes_get_data((GBytes *)message, NULL);
	int err;

	if (len > MAX_MESSAGE || send(notify.fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return true;
	err = errno;
	if (err == EAGAIN) {
		/* Another number for the watch: one descriptor can be watched once. */
		notify.watch = watch_start(notify.fd, UV_WRITABLE, on_room, NULL);
		return false;
	}
	helper_lost(err);
	return false;
}

static GBytes *message_new(char kind, const char *path, const char *other)
{
	GString *s = g_string_new(NULL);

	g_string_append_c(s, kind);
	g_string_append_len(s, path, (gssize)strlen(path) + 1);
	if (other)
		g_string_append_len(s, other, (gssize)strlen(other) + 1);
	return g_string_free_to_bytes(s);
}

static void flush_orders(void)
{
	while (notify.orders.head && notify.fd >= 0 && !notify.watch) {
		GBytes *message = g_queue_pop_head(&notify.orders);

		if (send_message(message) || notify.fd < 0)
			g_bytes_unref(message);
		else
			g_queue_push_head(&notify.orders, message);
	}
}

static void flush(void *arg)
{
	unsigned n = notify.queue.length;

	(void)arg;
	notify.flushing = false;
	flush_orders();
	while (n-- && notify.fd >= 0 && !notify.watch) {
		uint64_t *key = g_queue_pop_head(&notify.queue);
		g_autoptr(GBytes) message = NULL;
		g_autofree char *path = NULL;

		if (is_held(*key)) {
			g_queue_push_tail(&notify.queue, key);
			continue;
		}
		path = path_of(*key);
		message = path ? message_new(TOUCH, path, NULL) : NULL;
		if (message && !send_message(message)) {
			if (notify.fd >= 0)
				g_queue_push_head(&notify.queue, key);
			return;
		}
		keep_unset(KEEP_NUDGE, *key);
		g_hash_table_remove(notify.pending, key);
	}
}

static void flush_later(void)
{
	if (notify.flushing || notify.watch)
		return;
	notify.flushing = true;
	/* Later: what else this handler changes is merged. */
	loop_defer(flush, NULL);
}

/* The path of a directory that holds objects: the root, one of a VM, or of the host. */
static char *dir_path(const NodeRef *dir)
{
	if (dir->node == &root_node)
		return g_strdup(notify.mountpoint);
	if (!dir->vm)
		return path_of(node_ino(dir));
	return g_strconcat(notify.mountpoint, "/", dir->vm->name, "/", dir->node->name, NULL);
}

bool notify_order(char kind, const NodeRef *dir, const char *name, const char *other)
{
	g_autofree char *parent = NULL, *path = NULL, *second = NULL;

	if (notify.fd < 0)
		return false;
	parent = dir_path(dir);
	if (!parent)
		return false;
	path = g_strconcat(parent, "/", name, NULL);
	second = kind == PUBLISH_RENAME ? g_strconcat(parent, "/", other, NULL) : g_strdup(other);
	g_queue_push_tail(&notify.orders, message_new(kind, path, second));
	flush_later();
	return true;
}

bool notify_is_helper(pid_t pid)
{
	const KeepHead *head = keep_head();

	for (unsigned i = 0; head && i < G_N_ELEMENTS(head->helpers); i++) {
		char path[64];

		/* Of a request the kernel tells the thread. */
		g_snprintf(path, sizeof path, "/proc/%d/task/%d", head->helpers[i], (int)pid);
		if (head->helpers[i] && !access(path, F_OK))
			return true;
	}
	return false;
}

static void note_helper(pid_t pid)
{
	KeepHead *head = keep_head();

	memmove(head->helpers + 1, head->helpers, sizeof head->helpers - sizeof head->helpers[0]);
	head->helpers[0] = pid;
}

void notify_hold(Vm *vm)
{
	if (vm)
		vm->commands++;
}

void notify_release(Vm *vm)
{
	if (vm)
		vm->commands--;
	if (vm && !vm->commands && notify.queue.length)
		flush_later();
}

/* ---- the helper ---- */

static void on_helper_exit(void *arg, int status)
{
	(void)arg;
	(void)status;
	if (notify.fd >= 0)
		helper_lost(ECHILD);
}

static void start_helper(void)
{
	char *argv[] = { (char *)"/proc/self/exe", (char *)"--notify-helper", NULL };
	g_autoptr(GError) e = NULL;
	int fds[2];
	ProcSpec spec = { .argv = argv, .out_fd = -1, .err_fd = -1, .fds = &fds[1], .n_fds = 1 };

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds)) {
		log_error("cannot make a socket: %s", g_strerror(errno));
		return;
	}
	notify.helper = proc_spawn(&spec, on_helper_exit, NULL, &e);
	close(fds[1]);
	if (notify.helper) {
		notify.fd = fds[0];
		note_helper(proc_pid(notify.helper));
	} else {
		close(fds[0]);
		log_error("cannot start the notify helper: %s", e->message);
	}
}

static void restore_known(uint64_t serial, GBytes *value)
{
	uint8_t bits[256 / 8];

	if (serial && !registry_by_serial((uint32_t)serial)) {
		keep_unset(KEEP_KNOWN, serial);
		return;
	}
	keep_copy(bits, sizeof bits, value);
	for (unsigned row = 0; row < 256; row++)
		if (bits[row / 8] & (1u << (row & 7)))
			notify_looked_up(serial << 32 | row);
}

static void restore_nudge(uint64_t ino, GBytes *value)
{
	(void)value;
	queue_ino(ino);
}

void notify_start(const char *mountpoint)
{
	notify.mountpoint = g_strdup(mountpoint);
	notify.pending = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
	notify.lookups = g_hash_table_new(hash_ino, NULL);
	keep_each(KEEP_KNOWN, restore_known);
	keep_each(KEEP_NUDGE, restore_nudge);
	start_helper();
}

void notify_stop(void)
{
	timer_stop(&notify.restart);
	if (notify.fd >= 0)
		drop_helper();
	g_clear_pointer(&notify.pending, g_hash_table_unref);
	g_clear_pointer(&notify.lookups, g_hash_table_unref);
	g_clear_pointer(&notify.mountpoint, g_free);
}

static void touch(const char *path)
{
	/* A change of the contents, to inotify: IN_MODIFY. */
	static const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT },
						  { .tv_nsec = UTIME_NOW } };

	(void)utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
}

/* Nothing of this needs to work: what is gone by now is nobody's to be told of. */
static void obey(char kind, const char *path, const char *other)
{
	switch (kind) {
	case TOUCH:
		touch(path);
		break;
	case PUBLISH_MKDIR:
		(void)!mkdir(path, 0755);
		break;
	case PUBLISH_SYMLINK:
		(void)!symlink(other, path);
		break;
	case PUBLISH_RMDIR:
		(void)!rmdir(path);
		break;
	case PUBLISH_UNLINK:
		(void)!unlink(path);
		break;
	case PUBLISH_RENAME:
		(void)!rename(path, other);
		break;
	}
}

static void *obey_orders(void *arg)
{
	char message[MAX_MESSAGE + 1];

	for (;;) {
		ssize_t n = recv(HELPER_FD, message, MAX_MESSAGE, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 2)
			_exit(0);
		message[n - 1] = message[n] = 0;
		obey(message[0], message + 1, message + 1 + strlen(message + 1) + 1);
	}
	return arg;
}

int notify_helper_main(void)
{
	GThread *thread = NULL;

	for (int i = 1; i < HELPER_THREADS; i++)
		thread = g_thread_new("touch", obey_orders, thread);
	(void)obey_orders(thread);
	return 0;
}
