/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files are opened relative to the open directory, never by a path that its owner could bend. What
 * reads them whole runs in the pool, on a job of its own.
 */
#include "vmfs/savedir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/digest.h"
#include "vmfs/err.h"
#include "vmfs/grow.h"
#include "vmfs/loop.h"

#define CHUNK	 (1u << 20)
#define MAX_JOBS 64 /* at once */

/* ---- files ---- */

int savedir_open(const char *path, GError **err)
{
	const int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		(void)err_set(err, errno, "cannot open %s: %s", path, g_strerror(errno));
	return fd;
}

int savedir_make(const char *path, uid_t uid, gid_t gid, GError **err)
{
	int fd;

	if (mkdir(path, 0700)) {
		(void)err_set(err, errno, "cannot make %s: %s", path, g_strerror(errno));
		return -1;
	}
	fd = savedir_open(path, err);
	if (fd >= 0 && geteuid() == 0 && fchown(fd, uid, gid)) {
		(void)err_set(err, errno, "cannot give %s away: %s", path, g_strerror(errno));
		close(fd);
		return -1;
	}
	return fd;
}

int savedir_create(int dir, const char *name, uid_t uid, gid_t gid, GError **err)
{
	const int fd = openat(dir, name,
			      O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC, 0600);

	if (fd < 0) {
		(void)err_set(err, errno, "cannot make '%s': %s", name, g_strerror(errno));
		return -1;
	}
	if (geteuid() == 0 && fchown(fd, uid, gid)) {
		(void)err_set(err, errno, "cannot give '%s' away: %s", name, g_strerror(errno));
		close(fd);
		return -1;
	}
	return fd;
}

int savedir_open_file(int dir, const char *name, bool write, GError **err)
{
	const int fd = openat(dir, name,
			      (write ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY |
				      O_CLOEXEC);
	struct stat st;

	if (fd < 0) {
		(void)err_set(err, errno, "'%s': %s", name, g_strerror(errno));
		return -1;
	}
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_nlink != 1) {
		(void)err_set(err, EACCES, "'%s' is not a file of its own", name);
		close(fd);
		return -1;
	}
	return fd;
}

static int write_all(int fd, const char *data, size_t len)
{
	while (len) {
		const ssize_t n = write(fd, data, len);

		if (n < 0 && errno != EINTR)
			return errno;
		if (n > 0) {
			data += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

bool savedir_put(int dir, const char *name, GBytes *data, uid_t uid, gid_t gid, GError **err)
{
	gsize len;
	const char *bytes = g_bytes_get_data(data, &len);
	const int fd = savedir_create(dir, name, uid, gid, err);
	int code;

	if (fd < 0)
		return false;
	code = write_all(fd, bytes, len);
	if (!code && fsync(fd))
		code = errno;
	if (close(fd) && !code)
		code = errno;
	return !code || err_set(err, code, "cannot write '%s': %s", name, g_strerror(code));
}

GBytes *savedir_get(int dir, const char *name, size_t max, GError **err)
{
	const int fd = savedir_open_file(dir, name, false, err);
	g_autofree char *buf = NULL;
	size_t len = 0;
	ssize_t n = 0;

	if (fd < 0)
		return NULL;
	buf = g_malloc(max + 1);
	while (len <= max && (n = read(fd, buf + len, max + 1 - len)) > 0)
		len += (size_t)n;
	close(fd);
	if (n < 0 || len > max) {
		(void)err_set(err, n < 0 ? errno : EFBIG, "'%s': %s", name,
			      n < 0 ? g_strerror(errno) : "it is too large");
		return NULL;
	}
	return g_bytes_new_take(g_steal_pointer(&buf), len);
}

static Manifest *read_manifest(int dir, GError **err)
{
	g_autoptr(GBytes) text = savedir_get(dir, SAVEDIR_MANIFEST, SAVEDIR_MAX_MANIFEST, err);

	return text ? manifest_parse(g_bytes_get_data(text, NULL), g_bytes_get_size(text), err)
		    : NULL;
}

static Spec *read_spec(int dir, const char *backend, GError **err)
{
	g_autoptr(Manifest) m = read_manifest(dir, err);
	g_autoptr(GBytes) text = NULL;
	const char *made_by;

	if (!m)
		return NULL;
	made_by = manifest_fact(m, "backend");
	if (g_strcmp0(made_by, backend)) {
		(void)err_set(err, EINVAL, "it was made by backend '%.20s', and this is '%s'",
			      made_by ? made_by : "?", backend);
		return NULL;
	}
	text = savedir_get(dir, SAVEDIR_SPEC, SAVEDIR_MAX_SPEC, err);
	return text ? spec_restore(g_bytes_get_data(text, NULL), g_bytes_get_size(text), err)
		    : NULL;
}

Spec *savedir_spec(const char *path, const char *backend, GError **err)
{
	const int dir = savedir_open(path, err);
	Spec *spec;

	if (dir < 0)
		return NULL;
	spec = read_spec(dir, backend, err);
	close(dir);
	return spec;
}

char *savedir_fact(const char *path, const char *key)
{
	const int dir = savedir_open(path, NULL);
	g_autoptr(Manifest) m = dir < 0 ? NULL : read_manifest(dir, NULL);

	if (dir >= 0)
		close(dir);
	return m ? g_strdup(manifest_fact(m, key)) : NULL;
}

#define MAX_TURNS 10 /* for a job that was cancelled and makes one more file */

static bool remove_once(const char *path)
{
	const int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			(void)unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
	return !rmdir(path) || (errno != ENOTEMPTY && errno != EEXIST);
}

void savedir_remove(const char *path)
{
	for (unsigned turn = 0; turn < MAX_TURNS && !remove_once(path); turn++)
		;
}

/* ---- the pool ---- */

typedef enum SaveKind { SEAL, VERIFY, DROP, COPY, PUBLISH } SaveKind;

struct SaveJob {
	SaveKind kind;
	char *path, *to; /* to: PUBLISH */
	uid_t uid;
	gid_t gid;
	Manifest *manifest; /* SEAL: with the facts */
	int written;	    /* SEAL: an eventfd; or -1 */
	int file;	    /* SEAL: the one of the moment */
	GError *err;
	gint cancelled, complete; /* atomic */
	GPtrArray *pairs;	  /* COPY */
	SaveDone done;
	void *arg;
};

static bool goes_on(void *arg, GError **err)
{
	SaveJob *j = arg;

	return !g_atomic_int_get(&j->cancelled) || err_set(err, ECANCELED, "cancelled");
}

static bool hash_end(Digest *d, const char *name, char sha256[DIGEST_HEX + 1], uint64_t *size,
		     GError **err)
{
	g_autoptr(GError) e = NULL;

	return digest_end(d, sha256, size, &e) ||
	       err_set(err, err_code(e), "cannot read '%s': %s", name, e->message);
}

/* The disk has as much to do with a file as its checksum, and can at the same time. */
static void *flush(void *arg)
{
	const SaveJob *j = arg;

	return GINT_TO_POINTER(grow_flush(j->file, j->written));
}

static bool seal_file(SaveJob *j, int fd, SavedFile *f, GError **err)
{
	g_autoptr(Digest) d = digest_new(fd, goes_on, j);
	GThread *thread;
	bool ok;
	int code;

	j->file = fd;
	thread = g_thread_try_new("flush", flush, j, NULL);
	digest_follow(d, j->written);
	ok = hash_end(d, f->name, f->sha256, &f->size, err);
	code = GPOINTER_TO_INT(thread ? g_thread_join(thread) : flush(j));
	if (!ok)
		return false;
	return !code || err_set(err, code, "'%s': %s", f->name, g_strerror(code));
}

static bool seal_name(SaveJob *j, int dir, SavedFile *f, GError **err)
{
	const int fd = savedir_open_file(dir, f->name, false, err);
	const bool ok = fd >= 0 && seal_file(j, fd, f, err);

	if (fd >= 0)
		close(fd);
	return ok;
}

static gint by_name(gconstpointer a, gconstpointer b)
{
	const SavedFile *x = *(SavedFile *const *)a, *y = *(SavedFile *const *)b;

	return strcmp(x->name, y->name);
}

static bool list_files(SaveJob *j, int dir, GError **err)
{
	const int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	if (!d)
		return err_set(err, errno, "%s: %s", j->path, g_strerror(errno));
	while ((e = readdir(d)) && j->manifest->files->len < SAVEDIR_MAX_FILES)
		if (savedir_is_name(e->d_name) && strcmp(e->d_name, SAVEDIR_MANIFEST))
			manifest_add(j->manifest, e->d_name);
	closedir(d);
	g_ptr_array_sort(j->manifest->files, by_name);
	return true;
}

static bool seal_all(SaveJob *j, int dir, const SavedFile *memory, GError **err)
{
	if (!list_files(j, dir, err))
		return false;
	for (guint i = 0; i < j->manifest->files->len; i++) {
		SavedFile *f = j->manifest->files->pdata[i];

		if (memory && !strcmp(f->name, memory->name)) {
			f->size = memory->size;
			g_strlcpy(f->sha256, memory->sha256, sizeof(f->sha256));
		} else if (!seal_name(j, dir, f, err)) {
			return false;
		}
	}
	return true;
}

/* Memory first: it may still be being written, and is sealed as it comes. */
static bool seal(SaveJob *j, int dir, GError **err)
{
	SavedFile memory = { .name = (char *)SAVEDIR_MEMORY };
	g_autoptr(GBytes) text = NULL;
	const bool has_memory = !faccessat(dir, memory.name, F_OK, AT_SYMLINK_NOFOLLOW);

	if (!has_memory)
		grow_wait(j->written);
	else if (!seal_name(j, dir, &memory, err))
		return false;
	/* The facts are there as well, unless it was cancelled. */
	if (!goes_on(j, err) || !g_atomic_int_get(&j->complete) ||
	    !seal_all(j, dir, has_memory ? &memory : NULL, err))
		return false;
	text = manifest_text(j->manifest);
	if (!savedir_put(dir, SAVEDIR_MANIFEST, text, j->uid, j->gid, err))
		return false;
	return !fsync(dir) || err_set(err, errno, "%s: %s", j->path, g_strerror(errno));
}

static bool verify_file(SaveJob *j, int dir, const SavedFile *f, GError **err)
{
	char sha256[DIGEST_HEX + 1] = "";
	uint64_t size;
	const int fd = savedir_open_file(dir, f->name, false, err);
	g_autoptr(Digest) d = NULL;
	bool ok;

	if (fd < 0) {
		if (err && err_code(*err) == ENOENT) {
			g_clear_error(err);
			return err_set(err, EBADMSG, "'%s' is missing", f->name);
		}
		return false;
	}
	d = digest_new(fd, goes_on, j);
	ok = hash_end(d, f->name, sha256, &size, err);
	close(fd);
	if (!ok)
		return false;
	if (f->size != UINT64_MAX && size != f->size)
		return err_set(err, EBADMSG,
			       "'%s' has %" G_GUINT64_FORMAT " bytes, not the %" G_GUINT64_FORMAT
			       " that its manifest says",
			       f->name, size, f->size);
	return !strcmp(sha256, f->sha256) ||
	       err_set(err, EBADMSG, "'%s' is damaged: its checksum is not that of the manifest",
		       f->name);
}

static bool verify(SaveJob *j, int dir, GError **err)
{
	g_autoptr(GBytes) text = savedir_get(dir, SAVEDIR_MANIFEST, SAVEDIR_MAX_MANIFEST, err);
	gsize len;
	const char *data;

	if (!text)
		return false;
	data = g_bytes_get_data(text, &len);
	j->manifest = manifest_parse(data ? data : "", len, err);
	if (!j->manifest)
		return false;
	for (guint i = 0; i < j->manifest->files->len; i++)
		if (!verify_file(j, dir, j->manifest->files->pdata[i], err))
			return false;
	return true;
}

/* ---- copies ---- */

static bool copy_range(SaveJob *j, int from, int to, off_t at, off_t end, GError **err)
{
	off_t out = at;

	while (at < end) {
		const ssize_t n = copy_file_range(from, &at, to, &out,
						  MIN((size_t)(end - at), 16u * CHUNK), 0);

		if (n < 0 && errno != EINTR)
			return err_set(err, errno, "%s", g_strerror(errno));
		if (!n)
			return true;
		if (!goes_on(j, err))
			return false;
	}
	return true;
}

static bool copy_data(SaveJob *j, int from, int to, GError **err)
{
	struct stat st;
	off_t data, hole = 0;

	if (!ioctl(to, FICLONE, from))
		return true;
	if (fstat(from, &st) || ftruncate(to, st.st_size))
		return err_set(err, errno, "%s", g_strerror(errno));
	while ((data = lseek(from, hole, SEEK_DATA)) >= 0) {
		hole = lseek(from, data, SEEK_HOLE);
		if (hole < 0 || !copy_range(j, from, to, data, hole, err))
			return hole >= 0 ? false : err_set(err, errno, "%s", g_strerror(errno));
	}
	return errno == ENXIO || err_set(err, errno, "%s", g_strerror(errno));
}

static bool copy_file(SaveJob *j, const char *from, const char *to, GError **err)
{
	g_autofree char *in_dir = g_path_get_dirname(from), *in = g_path_get_basename(from);
	g_autofree char *out_dir = g_path_get_dirname(to), *out = g_path_get_basename(to);
	const int a = savedir_open(in_dir, err), b = a < 0 ? -1 : savedir_open(out_dir, err);
	const int source = b < 0 ? -1 : savedir_open_file(a, in, false, err);
	int target = -1;
	bool ok = false;

	if (source >= 0) {
		(void)unlinkat(b, out, 0);
		target = savedir_create(b, out, j->uid, j->gid, err);
	}
	if (target >= 0) {
		ok = copy_data(j, source, target, err);
		if (ok && fdatasync(target))
			ok = err_set(err, errno, "%s", g_strerror(errno));
		if (!ok && err)
			g_prefix_error(err, "cannot copy '%s': ", in);
		close(target);
	}
	for (size_t i = 0; i < 3; i++) {
		const int fd = i == 0 ? source : i == 1 ? b : a;

		if (fd >= 0)
			close(fd);
	}
	return ok;
}

#define FRESH ".copy"

static void copy(SaveJob *j)
{
	guint i;

	for (i = 0; i + 1 < j->pairs->len && !j->err; i += 2) {
		g_autofree char *fresh = g_strconcat(j->pairs->pdata[i + 1], FRESH, NULL);
		(void)copy_file(j, j->pairs->pdata[i], fresh, &j->err);
	}
	for (i = 0; i + 1 < j->pairs->len; i += 2) {
		const char *to = j->pairs->pdata[i + 1];
		g_autofree char *fresh = g_strconcat(to, FRESH, NULL);

		if (j->err)
			(void)unlink(fresh);
		else if (rename(fresh, to))
			j->err = err_new(errno, "cannot replace %s: %s", to, g_strerror(errno));
	}
}

/* ---- a name for what is complete ---- */

static bool sync_file(int dir, const char *name, GError **err)
{
	const int fd = savedir_open_file(dir, name, false, err);
	bool ok;

	if (fd < 0)
		return false;
	ok = !fdatasync(fd) || err_set(err, errno, "'%s': %s", name, g_strerror(errno));
	close(fd);
	return ok;
}

static bool publish(SaveJob *j, int dir, GError **err)
{
	j->manifest = manifest_new();
	if (!list_files(j, dir, err))
		return false;
	for (guint i = 0; i < j->manifest->files->len; i++)
		if (!sync_file(dir, ((SavedFile *)j->manifest->files->pdata[i])->name, err))
			return false;
	if (fsync(dir) || rename(j->path, j->to))
		return err_set(err, errno, "cannot make %s: %s", j->to, g_strerror(errno));
	return true;
}

static void work(void *arg)
{
	SaveJob *j = arg;
	int dir;

	if (j->err)
		return;
	if (j->kind == COPY) {
		copy(j);
		return;
	}

	if (j->kind == DROP) {
		savedir_remove(j->path);
		return;
	}
	dir = savedir_open(j->path, &j->err);
	if (dir < 0)
		return;
	(void)(j->kind == SEAL	    ? seal(j, dir, &j->err)
	       : j->kind == PUBLISH ? publish(j, dir, &j->err)
				    : verify(j, dir, &j->err));
	close(dir);
}

static void worked(void *arg)
{
	SaveJob *j = arg;

	if (!g_atomic_int_get(&j->cancelled))
		j->done(j->arg, j->err ? NULL : j->manifest, j->err);
	g_clear_error(&j->err);
	if (j->manifest)
		manifest_unref(j->manifest);
	if (j->pairs)
		g_ptr_array_unref(j->pairs);
	if (j->written >= 0)
		close(j->written);
	g_free(j->path);
	g_free(j->to);
	g_free(j);
}

static SaveJob *job_new(SaveKind kind, const char *path, SaveDone done, void *arg)
{
	SaveJob *j = g_new0(SaveJob, 1);

	j->kind = kind;
	j->path = g_strdup(path);
	j->written = -1;
	j->done = done;
	j->arg = arg;
	return j;
}

static void begin(SaveJob *j)
{
	static Pool *pool;

	/* A large file, or one that is long being written, keeps nobody else waiting. */
	if (!pool)
		pool = pool_new(MAX_JOBS);
	pool_work(pool, work, worked, j);
}

SaveJob *savedir_seal(const char *path, uid_t uid, gid_t gid, SaveDone done, void *arg)
{
	SaveJob *j = job_new(SEAL, path, done, arg);

	j->uid = uid;
	j->gid = gid;
	j->manifest = manifest_new();
	j->written = eventfd(0, EFD_CLOEXEC);
	if (j->written < 0)
		(void)err_set(&j->err, errno, "%s: %s", path, g_strerror(errno));
	begin(j);
	return j;
}

static void wake_up(const SaveJob *j)
{
	if (j->written >= 0)
		(void)eventfd_write(j->written, 1);
}

void savedir_written(SaveJob *j, const GPtrArray *facts)
{
	for (guint i = 0; i < facts->len; i++)
		g_ptr_array_add(j->manifest->facts, g_strdup(facts->pdata[i]));
	g_atomic_int_set(&j->complete, 1);
	wake_up(j);
}

SaveJob *savedir_verify(const char *path, SaveDone done, void *arg)
{
	SaveJob *j = job_new(VERIFY, path, done, arg);

	begin(j);
	return j;
}

SaveJob *savedir_publish(const char *path, const char *to, SaveDone done, void *arg)
{
	SaveJob *j = job_new(PUBLISH, path, done, arg);

	j->to = g_strdup(to);
	begin(j);
	return j;
}

SaveJob *savedir_drop(const char *path, SaveDone done, void *arg)
{
	SaveJob *j = job_new(DROP, path, done, arg);

	begin(j);
	return j;
}

SaveJob *savedir_copy(const GPtrArray *pairs, uid_t uid, gid_t gid, SaveDone done, void *arg)
{
	SaveJob *j = job_new(COPY, NULL, done, arg);

	j->uid = uid;
	j->gid = gid;
	j->pairs = g_ptr_array_new_with_free_func(g_free);
	for (guint i = 0; i < pairs->len; i++)
		g_ptr_array_add(j->pairs, g_strdup(pairs->pdata[i]));
	begin(j);
	return j;
}

void savedir_cancel(SaveJob **job)
{
	if (*job) {
		g_atomic_int_set(&(*job)->cancelled, 1);
		wake_up(*job);
	}
	*job = NULL;
}
