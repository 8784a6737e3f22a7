/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state directory. The loop thread queues jobs; the store thread does them in order and posts
 * them back. Nothing is shared but the job that changes hands.
 */
#include "vmfs/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_release(p) ((void)(p))
#define __tsan_acquire(p) ((void)(p))
#endif

#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"

#define SAVE_DEPTH   1 /* of what is in a VM's data: snapshots, and its sleep */
#define FORMAT	     "1\n"
#define TMP	     ".tmp"
#define MAX_DEPTH    64 /* of directories to be removed that are open at once */
#define MAX_TURNS    10000
#define SERIAL_BATCH 256 /* serials reserved at once, so that making a VM writes no counter */
#define SYNC_MS	     500 /* after which a new VM is on the disk at the latest */

typedef enum JobKind { PUT, REMOVE, MAKE_VM, REMOVE_VM, CHOWN_VM, TIDY, BARRIER, QUIT } JobKind;

typedef struct Job {
	JobKind kind;
	char *path;
	GBytes *data;
	bool durable;
	uid_t uid;
	gid_t gid;
	int err;
	StoreDone fn;
	void *arg;
} Job;

static struct {
	char *dir;
	int fd, run_fd; /* the state directory, the runtime directory */
	GThread *thread;
	GAsyncQueue *todo, *done;
	uv_async_t async;
	unsigned busy; /* jobs not yet reported */
	/* The store thread's: paths of the new VMs that are not yet on the disk, and since when. */
	GPtrArray *unsynced;
	int64_t unsynced_since;
	uint32_t next_serial, reserved_serial;
} store;

/* ---- the hand-over ---- */

/* GLib's locks are futexes of its own, which TSan cannot see: it is told what they order. */
static void job_give(GAsyncQueue *to, Job *j)
{
	__tsan_release(j);
	g_async_queue_push(to, j);
}

static Job *job_taken(gpointer job)
{
	__tsan_acquire(job);
	return job;
}

/* ---- the store thread ---- */

static int write_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static int sync_parent(int dir_fd, const char *path)
{
	g_autofree char *dir = g_path_get_dirname(path);
	int fd = openat(dir_fd, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), err = 0;

	if (fd < 0)
		return errno;
	if (fsync(fd))
		err = errno;
	close(fd);
	return err;
}

/* Write a file that is not there yet, or is nobody's. */
static int write_file(int dir_fd, const char *path, GBytes *data, bool durable)
{
	gsize len;
	const char *bytes = g_bytes_get_data(data, &len);
	int fd = openat(dir_fd, path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	int err;

	if (fd < 0)
		return errno;
	err = write_all(fd, bytes, len);
	if (!err && durable && fsync(fd))
		err = errno;
	if (close(fd) && !err)
		err = errno;
	if (err)
		(void)unlinkat(dir_fd, path, 0);
	return err;
}

/* As a rename, but the old file stays under the new one's name, to be put back. */
static bool exchange(int dir_fd, const char *tmp, const char *path, bool *was_there)
{
	*was_there = !renameat2(dir_fd, tmp, dir_fd, path, RENAME_EXCHANGE);
	/* It was not there; or the file system cannot exchange. */
	return *was_there || !renameat(dir_fd, tmp, dir_fd, path);
}

/* Either all of it happens, or nothing that a restarted daemon could tell. */
static int put_file(int dir_fd, const char *path, GBytes *data, bool durable)
{
	g_autofree char *tmp = g_strconcat(path, TMP, NULL);
	int err = write_file(dir_fd, tmp, data, durable);
	bool was_there = false;

	if (err)
		return err;
	if (durable ? !exchange(dir_fd, tmp, path, &was_there)
		    : renameat(dir_fd, tmp, dir_fd, path)) {
		err = errno;
		(void)unlinkat(dir_fd, tmp, 0);
		return err;
	}
	err = durable ? sync_parent(dir_fd, path) : 0;
	if (err && was_there)
		(void)renameat2(dir_fd, tmp, dir_fd, path, RENAME_EXCHANGE);
	else if (err)
		(void)unlinkat(dir_fd, path, 0);
	if (was_there)
		(void)unlinkat(dir_fd, tmp, 0);
	return err;
}

static int open_dir(int at, const char *name)
{
	return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Move an entry of a directory to the top, under a name that nobody can have taken before. */
static bool move_up(int from, const char *name, int top)
{
	char fresh[32];

	g_snprintf(fresh, sizeof fresh, "deep-%08x%08x", g_random_int(), g_random_int());
	return !renameat(from, name, top, fresh);
}

/*
 * Remove what is in the directory fd (which is closed); never follows a link. Data directories are
 * as deep as their owners like: what is deeper than we go is moved to the top. Returns whether
 * something was.
 */
static bool empty_dir(int fd, int top, unsigned depth)
{
	DIR *d = fdopendir(fd);
	struct dirent *e;
	bool moved = false;

	if (!d) {
		close(fd);
		return false;
	}
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (!unlinkat(dirfd(d), e->d_name, 0))
			continue;
		if (errno == EISDIR && depth == MAX_DEPTH) {
			moved |= move_up(dirfd(d), e->d_name, top);
		} else if (errno == EISDIR) {
			int sub = open_dir(dirfd(d), e->d_name);

			if (sub >= 0)
				moved |= empty_dir(sub, top, depth + 1);
			(void)unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR);
		}
	}
	closedir(d);
	return moved;
}

static int remove_vm(const char *path)
{
	g_autofree char *meta = g_strconcat(path, "/meta", NULL);
	int fd;

	/* meta first: from here on the VM is no more, whenever we are killed. */
	if (unlinkat(store.fd, meta, 0) && errno != ENOENT)
		return errno;
	fd = openat(store.fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0) {
		if (errno != ENOENT)
			log_warning("cannot remove %s/%s: %s", store.dir, path, g_strerror(errno));
		return 0;
	}
	/* An owner who goes on making directories is not followed for ever. */
	for (unsigned turn = 0; turn < MAX_TURNS; turn++) {
		int top = open_dir(fd, ".");

		if (top < 0 || !empty_dir(top, fd, 0))
			break;
	}
	close(fd);
	/* The VM is gone; a file that could not be removed is tried again at the next start. */
	if (unlinkat(store.fd, path, AT_REMOVEDIR))
		log_warning("cannot remove %s/%s: %s", store.dir, path, g_strerror(errno));
	return 0;
}

/*
 * What is only in the page cache outlives the daemon, but not a power cut. A new VM is empty: it
 * may wait for a moment, and mostly for the first sync of something in it.
 */
static void sync_later(const char *path)
{
	if (!store.unsynced->len)
		store.unsynced_since = g_get_monotonic_time();
	g_ptr_array_add(store.unsynced, g_strdup(path));
}

static void sync_vms(void)
{
	for (unsigned i = 0; i < store.unsynced->len; i++) {
		g_autofree char *meta = g_strconcat(store.unsynced->pdata[i], "/meta", NULL);
		int fd = openat(store.fd, meta, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

		/*
		 * On Linux's journalling file systems a synced new file has its name and its
		 * directories, so that one sync does for all of it.
		 */
		if (fd < 0 || fsync(fd))
			log_error("cannot sync %s/%s: %s", store.dir, meta, g_strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	g_ptr_array_set_size(store.unsynced, 0);
}

static void forget_unsynced(const char *path)
{
	unsigned i;

	if (g_ptr_array_find_with_equal_func(store.unsynced, path, g_str_equal, &i))
		g_ptr_array_remove_index(store.unsynced, i);
}

static int make_vm(const Job *j)
{
	g_autofree char *data = g_strconcat(j->path, "/data", NULL);
	g_autofree char *meta = g_strconcat(j->path, "/meta", NULL);
	int err;

	/* Searchable by all, so that an owner's VMM gets to its data directory. */
	if (mkdirat(store.fd, j->path, 0711))
		return errno;
	if (mkdirat(store.fd, data, 0700) ||
	    (geteuid() == 0 && fchownat(store.fd, data, j->uid, j->gid, AT_SYMLINK_NOFOLLOW)))
		err = errno;
	else
		/* Not by rename: while it is empty the VM is not there. */
		err = write_file(store.fd, meta, j->data, false);
	if (err)
		(void)remove_vm(j->path);
	else
		sync_later(j->path);
	return err;
}

static int chown_dir(int fd, const Job *j, unsigned below);

static int chown_entry(int at, const char *name, const Job *j, unsigned below)
{
	const int fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	int err = 0;

	if (fd < 0)
		return 0; /* its owner has taken it away */
	if (fstat(fd, &st))
		err = errno;
	else if (S_ISDIR(st.st_mode) && below)
		err = chown_dir(open_dir(fd, "."), j, below - 1);
	/* A hard link to a file of somebody else's must not be given away. */
	else if ((S_ISDIR(st.st_mode) || st.st_nlink == 1) &&
		 fchownat(fd, "", j->uid, j->gid, AT_EMPTY_PATH))
		err = errno;
	close(fd);
	return err;
}

/* The directory fd (which is closed), what is in it, and in directories there. 0 or an errno. */
static int chown_dir(int fd, const Job *j, unsigned below)
{
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	int err = 0;

	if (!d)
		return errno;
	while ((e = readdir(d))) {
		const int failed = strcmp(e->d_name, ".") && strcmp(e->d_name, "..")
					   ? chown_entry(dirfd(d), e->d_name, j, below)
					   : 0;

		err = failed ? failed : err;
	}
	/* Last: until then the former owner can go on, if we do not. */
	if (fchown(dirfd(d), j->uid, j->gid))
		err = errno;
	closedir(d);
	return err;
}

static int chown_data(const Job *j)
{
	g_autofree char *data = g_strconcat(j->path, "/data", NULL);

	return chown_dir(open_dir(store.fd, data), j, SAVE_DEPTH);
}

/* Remove what a write that was cut off has left beside its file. */
static void tidy_dir(const char *path)
{
	int fd = open_dir(store.fd, path);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (g_str_has_suffix(e->d_name, TMP))
			(void)unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
}

/* The first job, so that nothing is being written. */
static int tidy(void)
{
	int fd = open_dir(store.fd, "vms");
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	tidy_dir(".");
	while (d && (e = readdir(d))) {
		g_autofree char *path = g_strconcat("vms/", e->d_name, NULL);

		if (e->d_name[0] != '.')
			tidy_dir(path);
	}
	if (d)
		closedir(d);
	return 0;
}

static int do_job(Job *j)
{
	switch (j->kind) {
	case PUT:
		return put_file(store.fd, j->path, j->data, j->durable);
	case REMOVE:
		return unlinkat(store.fd, j->path, 0) && errno != ENOENT ? errno : 0;
	case MAKE_VM:
		return make_vm(j);
	case REMOVE_VM:
		forget_unsynced(j->path);
		return remove_vm(j->path);
	case CHOWN_VM:
		return chown_data(j);
	case TIDY:
		return tidy();
	case BARRIER:
	case QUIT:
		return 0;
	}
	return EINVAL;
}

/* The next job; what is to be synced is when its time has come, or before a sync of anything else.
 */
static Job *next_job(void)
{
	Job *j;

	for (;;) {
		int64_t left = store.unsynced_since + SYNC_MS * 1000 - g_get_monotonic_time();

		if (!store.unsynced->len)
			return job_taken(g_async_queue_pop(store.todo));
		j = left > 0 ? g_async_queue_timeout_pop(store.todo, (guint64)left) : NULL;
		if (j)
			j = job_taken(j);
		if (!j || j->kind == QUIT || (j->kind == PUT && j->durable))
			sync_vms();
		if (j)
			return j;
	}
}

static void *store_thread(void *arg)
{
	for (;;) {
		Job *j = next_job();
		bool quit = j->kind == QUIT;

		j->err = do_job(j);
		job_give(store.done, j);
		if (quit)
			return arg;
		(void)uv_async_send(&store.async);
	}
}

/* ---- the loop thread ---- */

static void job_free(Job *j)
{
	g_free(j->path);
	if (j->data)
		g_bytes_unref(j->data);
	g_free(j);
}

static void report_jobs(void)
{
	Job *j;

	while ((j = g_async_queue_try_pop(store.done))) {
		j = job_taken(j);
		store.busy--;
		if (j->err && !j->fn && j->kind != QUIT)
			log_error("cannot write %s/%s: %s", store.dir, j->path, g_strerror(j->err));
		if (j->fn)
			j->fn(j->arg, j->err);
		job_free(j);
	}
}

static void on_async(uv_async_t *handle)
{
	(void)handle;
	report_jobs();
}

static void queue_job(JobKind kind, char *path, GBytes *data, bool durable, uid_t uid, gid_t gid,
		      StoreDone fn, void *arg)
{
	Job *j = g_new0(Job, 1);

	j->kind = kind;
	j->path = path;
	j->data = data ? g_bytes_ref(data) : NULL;
	j->durable = durable;
	j->uid = uid;
	j->gid = gid;
	j->fn = fn;
	j->arg = arg;
	store.busy++;
	job_give(store.todo, j);
}

static char *vm_path(uint32_t serial)
{
	return g_strdup_printf("vms/%u", serial);
}

bool store_busy(void)
{
	return store.busy;
}

void store_put(const char *path, GBytes *data, bool durable, StoreDone fn, void *arg)
{
	queue_job(PUT, g_strdup(path), data, durable, 0, 0, fn, arg);
}

void store_remove(const char *path, StoreDone fn, void *arg)
{
	queue_job(REMOVE, g_strdup(path), NULL, false, 0, 0, fn, arg);
}

void store_make_vm(uint32_t serial, uid_t uid, gid_t gid, GBytes *meta, StoreDone fn, void *arg)
{
	queue_job(MAKE_VM, vm_path(serial), meta, true, uid, gid, fn, arg);
}

void store_remove_vm(uint32_t serial, StoreDone fn, void *arg)
{
	queue_job(REMOVE_VM, vm_path(serial), NULL, true, 0, 0, fn, arg);
}

void store_chown_vm(uint32_t serial, uid_t uid, gid_t gid, StoreDone fn, void *arg)
{
	queue_job(CHOWN_VM, vm_path(serial), NULL, false, uid, gid, fn, arg);
}

void store_barrier(StoreDone fn, void *arg)
{
	if (store.busy)
		queue_job(BARRIER, NULL, NULL, false, 0, 0, fn, arg);
	else
		fn(arg, 0);
}

const char *store_dir(void)
{
	return store.dir;
}

char *store_path(const char *fmt, ...)
{
	va_list ap;
	g_autofree char *rel = NULL;

	va_start(ap, fmt);
	rel = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	return g_build_filename(store.dir, rel, NULL);
}

static GBytes *get_file(int dir_fd, const char *path, size_t max)
{
	int fd = openat(dir_fd, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	g_autofree char *buf = NULL;
	struct stat st;
	ssize_t n;

	if (fd < 0) {
		if (errno != ENOENT)
			log_error("cannot read %s: %s", path, g_strerror(errno));
		return NULL;
	}
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > max) {
		log_error("%s is not a file of at most %zu bytes", path, max);
		close(fd);
		return NULL;
	}
	buf = g_malloc((size_t)st.st_size + 1);
	n = read(fd, buf, (size_t)st.st_size);
	close(fd);
	if (n != st.st_size) {
		log_error("cannot read all of %s", path);
		return NULL;
	}
	return g_bytes_new_take(g_steal_pointer(&buf), (size_t)n);
}

GBytes *store_get(const char *path, size_t max)
{
	return get_file(store.fd, path, max);
}

static char *run_name(uint32_t serial)
{
	return g_strdup_printf("%u.run", serial);
}

void store_put_run(uint32_t serial, GBytes *data)
{
	g_autofree char *name = run_name(serial);
	int err = put_file(store.run_fd, name, data, false);

	if (err)
		log_error("cannot write %s in the runtime directory: %s", name, g_strerror(err));
}

GBytes *store_get_run(uint32_t serial, size_t max)
{
	g_autofree char *name = run_name(serial);

	return get_file(store.run_fd, name, max);
}

void store_remove_run(uint32_t serial)
{
	g_autofree char *name = run_name(serial);

	if (unlinkat(store.run_fd, name, 0) && errno != ENOENT)
		log_warning("cannot remove %s from the runtime directory: %s", name,
			    g_strerror(errno));
}

static int compare_serials(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static bool is_unfinished(const char *meta)
{
	struct stat st;

	if (fstatat(store.fd, meta, &st, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT;
	return st.st_size == 0;
}

GArray *store_list(void)
{
	GArray *list = g_array_new(FALSE, FALSE, sizeof(uint32_t));
	int fd = openat(store.fd, "vms", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		char *end;
		unsigned long n = strtoul(e->d_name, &end, 10);
		uint32_t serial = (uint32_t)n;
		g_autofree char *path = NULL, *meta = NULL;

		if (end == e->d_name || *end || !n || n > UINT32_MAX)
			continue;
		path = vm_path(serial);
		meta = g_strconcat(path, "/meta", NULL);
		if (is_unfinished(meta))
			(void)remove_vm(path);
		else
			g_array_append_val(list, serial);
		if (serial >= store.next_serial)
			store.next_serial = serial + 1;
	}
	if (d)
		closedir(d);
	g_array_sort(list, compare_serials);
	return list;
}

uint32_t store_next_serial(void)
{
	if (store.next_serial >= store.reserved_serial) {
		g_autofree char *text = NULL;
		g_autoptr(GBytes) bytes = NULL;

		store.reserved_serial = store.next_serial + SERIAL_BATCH;
		text = g_strdup_printf("%u\n", store.reserved_serial);
		bytes = g_bytes_new(text, strlen(text));
		/* In order before the VM that gets the serial, so never given out twice. */
		store_put("next", bytes, true, NULL, NULL);
	}
	return store.next_serial++;
}

static bool check_format(GError **err)
{
	g_autoptr(GBytes) have = store_get("format", 64), want = g_bytes_new_static(FORMAT, 2);
	int e;

	if (have && !g_bytes_equal(have, want))
		return err_set(err, ENOTSUP,
			       "%s was written by another version of vmfs (its `format` is not 1); "
			       "use that version, or another --state-dir",
			       store.dir);
	if (have)
		return true;
	e = put_file(store.fd, "format", want, true);
	return !e || err_set(err, e, "cannot write %s/format: %s", store.dir, g_strerror(e));
}

static int open_dir_at(const char *dir, const char *what, GError **err)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		(void)err_set(err, errno, "cannot open the %s directory %s: %s", what, dir,
			      g_strerror(errno));
	return fd;
}

/* Make a directory if need be, and lock it against others. */
static bool lock_dir(const char *dir, const char *what, const char *option, int *ret, GError **err)
{
	int fd, lock;

	/* Other users' VMMs have to get through root's; nobody else through a user's. */
	if (g_mkdir_with_parents(dir, geteuid() == 0 ? 0711 : 0700))
		return err_set(err, errno, "cannot make the %s directory %s: %s", what, dir,
			       g_strerror(errno));
	fd = open_dir_at(dir, what, err);
	if (fd < 0)
		return false;
	lock = openat(fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	close(fd);
	if (lock < 0)
		return err_set(err, errno, "cannot write to the %s directory %s: %s", what, dir,
			       g_strerror(errno));
	*ret = lock;
	if (!flock(lock, LOCK_EX | LOCK_NB))
		return true;
	close(lock);
	return err_set(err, EBUSY,
		       "another vmfs uses the %s directory %s; stop it first, or give another "
		       "one with %s",
		       what, dir, option);
}

bool store_lock(const char *state_dir, const char *runtime_dir, int ret_fds[2], GError **err)
{
	return lock_dir(state_dir, "state", "--state-dir", &ret_fds[0], err) &&
	       lock_dir(runtime_dir, "runtime", "--runtime-dir", &ret_fds[1], err);
}

static bool open_dirs(const char *dir, const char *runtime_dir, GError **err)
{
	store.fd = open_dir_at(dir, "state", err);
	if (store.fd < 0)
		return false;
	store.run_fd = open_dir_at(runtime_dir, "runtime", err);
	if (store.run_fd < 0)
		return false;
	store.dir = realpath(dir, NULL);
	if (!store.dir || (mkdirat(store.fd, "vms", 0711) && errno != EEXIST))
		return err_set(err, errno, "cannot make %s/vms: %s", dir, g_strerror(errno));
	return true;
}

bool store_open(const char *state_dir, const char *runtime_dir, GError **err)
{
	g_autoptr(GBytes) next = NULL;

	if (!open_dirs(state_dir, runtime_dir, err) || !check_format(err))
		return false;
	next = store_get("next", 64);
	store.next_serial = 1;
	if (next) {
		g_autofree char *text =
			g_strndup(g_bytes_get_data(next, NULL), g_bytes_get_size(next));

		store.next_serial = (uint32_t)MAX(1, strtoul(text, NULL, 10));
	}
	store.reserved_serial = store.next_serial;
	store.todo = g_async_queue_new();
	store.done = g_async_queue_new();
	store.unsynced = g_ptr_array_new_with_free_func(g_free);
	(void)uv_async_init(loop_get(), &store.async, on_async);
	store.thread = g_thread_new("store", store_thread, NULL);
	queue_job(TIDY, NULL, NULL, false, 0, 0, NULL, NULL);
	return true;
}

void store_close(void)
{
	if (!store.thread)
		return;
	queue_job(QUIT, NULL, NULL, false, 0, 0, NULL, NULL);
	(void)g_thread_join(store.thread);
	store.thread = NULL;
	report_jobs();
	g_async_queue_unref(store.todo);
	g_async_queue_unref(store.done);
	g_ptr_array_unref(store.unsynced);
	uv_close((uv_handle_t *)&store.async, NULL);
	close(store.fd);
	close(store.run_fd);
	free(store.dir);
}
