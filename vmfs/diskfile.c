/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/diskfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/document.h"
#include "vmfs/err.h"
#include "vmfs/images.h"
#include "vmfs/qcow2.h"

#define MAX_CHAIN 64 /* images that are based on each other */
#define MAX_HEAD  512

/*
 * How QEMU tells others what it does with an image: locks of bytes of the file
 * (block/file-posix.c). One byte says that its holder writes, another that nobody else may.
 */
#define LOCK_WRITES    101
#define LOCK_NO_WRITER 201

/* ---- names ---- */

const char *diskfile_format(const SpecDisk *d)
{
	if (d->image)
		return "qcow2";
	if (d->format)
		return d->format;
	return !d->file || g_str_has_suffix(d->file, ".qcow2") ? "qcow2" : "raw";
}

char *diskfile_path(const char *data_dir, const SpecDisk *d)
{
	if (d->file)
		return g_strdup(d->file);
	return g_strdup_printf("%s/%s.%s", data_dir, d->name, diskfile_format(d));
}

char *diskfile_record(const char *data_dir, const SpecDisk *d)
{
	return g_strdup_printf("%s/%s.image", data_dir, d->name);
}

DiskFile *diskfile_new(const char *data_dir, const SpecDisk *d)
{
	DiskFile *f = g_new0(DiskFile, 1);

	f->key = g_strdup_printf("disks.%s", d->name);
	f->path = diskfile_path(data_dir, d);
	f->format = g_strdup(d->image ? d->format : diskfile_format(d));
	f->size = d->size;
	f->own = !d->file;
	f->readonly = d->readonly;
	f->mount = g_strdup(document_mountpoint());
	if (d->image) {
		f->record = diskfile_record(data_dir, d);
		f->said = g_strdup(d->image);
		f->image = g_strdup(*d->image == '/' ? d->image : images_target(d->image));
	}
	return f;
}

void diskfile_free(DiskFile *f)
{
	g_free(f->key);
	g_free(f->path);
	g_free(f->record);
	g_free(f->said);
	g_free(f->image);
	g_free(f->format);
	g_free(f->mount);
	g_free(f->origin);
	g_free(f->base);
	g_free(f->restored);
	g_free(f);
}

/* ---- looking ---- */

typedef struct Found {
	const char *format; /* "qcow2" or "raw" */
	uint64_t size;	    /* of the disk */
} Found;

/* Raw is what has no other form; by the first bytes of those that QEMU knows. */
static const char *foreign_format(const char *head, size_t len)
{
	static const struct {
		const char *bytes, *name;
	} rows[] = {
		{ "KDMV", "VMDK" }, { "COWD", "VMDK" },		{ "# Disk Descr", "VMDK" },
		{ "<<< ", "VDI" },  { "conectix", "VHD" },	{ "vhdxfile", "VHDX" },
		{ "QED", "QED" },   { "LUKS\xba\xbe", "LUKS" }, { "Withou", "Parallels" },
	};

	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		const size_t n = strlen(rows[i].bytes);

		if (len >= n && !memcmp(head, rows[i].bytes, n))
			return rows[i].name;
	}
	return NULL;
}

static bool is_locked(int fd, off_t byte)
{
	struct flock lock = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1
	};

	/* A file system without locks cannot tell. */
	return !fcntl(fd, F_OFD_GETLK, &lock) && lock.l_type != F_UNLCK;
}

static bool check_users(int fd, bool write, GError **err)
{
	if (is_locked(fd, LOCK_WRITES))
		return err_set(err, EBUSY,
			       "another machine or program has it open for writing: stop that "
			       "first");
	if (write && is_locked(fd, LOCK_NO_WRITER))
		return err_set(err, EBUSY,
			       "another machine or program has it open, and must not see it "
			       "change: stop that first, or make it readonly here");
	return true;
}

static bool check_kind(int fd, const char *mount, GError **err)
{
	g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
	g_autofree char *real = g_file_read_link(link, NULL);
	struct stat st;

	if (fstat(fd, &st))
		return err_set(err, errno, "%s", g_strerror(errno));
	if (S_ISDIR(st.st_mode))
		return err_set(err, EISDIR, "it is a directory");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return err_set(err, EINVAL, "it is neither a file nor a disk");
	/* QEMU must not wait for vmfs. */
	if (real && mount && document_is_below(real, mount))
		return err_set(err, EINVAL, "it is inside of %s itself", mount);
	return true;
}

static bool check_file(const char *path, const char *format, bool write, const char *mount,
		       unsigned depth, Found *ret, GError **err);

/* As QEMU finds it: a relative name begins where the image is. */
static bool check_backing(const char *path, const Qcow2 *q, const char *mount, unsigned depth,
			  GError **err)
{
	const char *colon = strchr(q->backing, ':'), *slash = strchr(q->backing, '/');
	g_autofree char *dir = g_path_get_dirname(path), *backing = NULL;
	Found found;

	if (colon && (!slash || colon < slash))
		return err_set(err, EOPNOTSUPP, "it is based on '%.40s', which is not a file",
			       q->backing);
	if (depth == MAX_CHAIN)
		return err_set(err, ELOOP, "it is based on more than %d others", MAX_CHAIN);
	backing =
		*q->backing == '/' ? g_strdup(q->backing) : g_build_filename(dir, q->backing, NULL);
	if (check_file(backing, *q->backing_format ? q->backing_format : NULL, false, mount,
		       depth + 1, &found, err))
		return true;
	g_prefix_error(err, "it is based on %s: ", backing);
	return false;
}

static bool check_qcow2(int fd, const char *path, const char *mount, unsigned depth, Found *ret,
			GError **err)
{
	g_autofree Qcow2 *q = g_new(Qcow2, 1);

	if (!qcow2_read(fd, q, err))
		return false;
	if (q->truncated)
		return err_set(err, EINVAL,
			       "it is truncated: it ends before the last part that it tells of "
			       "(see qemu-img check)");
	ret->format = "qcow2";
	ret->size = q->size;
	return !*q->backing || check_backing(path, q, mount, depth, err);
}

static bool check_content(int fd, const char *path, const char *format, const char *mount,
			  unsigned depth, Found *ret, GError **err)
{
	char head[MAX_HEAD];
	const off_t end = lseek(fd, 0, SEEK_END);
	const ssize_t n = end < 0 ? -1 : pread(fd, head, sizeof head, 0);
	const char *foreign;

	if (n < 0)
		return err_set(err, errno, "it cannot be read: %s", g_strerror(errno));
	if (format ? !strcmp(format, "qcow2") : qcow2_is(head, (size_t)n))
		return check_qcow2(fd, path, mount, depth, ret, err);
	foreign = format ? NULL : foreign_format(head, (size_t)n);
	if (foreign)
		return err_set(err, EINVAL,
			       "it is a %s image, and only raw and qcow2 can be used: convert it "
			       "with qemu-img convert -O qcow2, or say format: raw",
			       foreign);
	ret->format = "raw";
	ret->size = ((uint64_t)end + 511) & ~511ull;
	return true;
}

/* Sentences say what is the matter with it, without its name. */
static bool check_file(const char *path, const char *format, bool write, const char *mount,
		       unsigned depth, Found *ret, GError **err)
{
	const int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return err_set(err, errno, "the VM's owner cannot open it: %s", g_strerror(errno));
	ok = check_kind(fd, mount, err) && check_users(fd, write, err) &&
	     check_content(fd, path, format, mount, depth, ret, err);
	close(fd);
	return ok;
}

static bool check_image(const DiskFile *f, const char *path, const char *format, Found *ret,
			GError **err)
{
	if (check_file(path, format, false, f->mount, 0, ret, err))
		return true;
	g_prefix_error(err, "%s.image: %s: ", f->key, path);
	return false;
}

/* ---- making ---- */

bool diskfile_make(const char *path, const char *what, DiskFill fill, const void *arg, GError **err)
{
	g_autofree char *fresh = g_strconcat(path, ".new", NULL);
	int fd;
	bool ok;

	/* Of somebody who was killed. */
	(void)unlink(fresh);
	fd = open(fresh, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_set(err, errno, "%s: cannot make %s: %s", what, path, g_strerror(errno));
	ok = fill(fd, arg, err);
	if (!ok)
		g_prefix_error(err, "%s: cannot make %s: ", what, path);
	if (close(fd) && ok)
		ok = err_set(err, errno, "%s: cannot make %s: %s", what, path, g_strerror(errno));
	if (ok && rename(fresh, path))
		ok = err_set(err, errno, "%s: cannot make %s: %s", what, path, g_strerror(errno));
	if (!ok)
		(void)unlink(fresh);
	return ok;
}

typedef struct Blank {
	uint64_t size;
	const char *backing, *backing_format;
} Blank;

static bool fill_qcow2(int fd, const void *arg, GError **err)
{
	const Blank *b = arg;

	return qcow2_write(fd, b->size, b->backing, b->backing_format, err);
}

static bool fill_raw(int fd, const void *arg, GError **err)
{
	const Blank *b = arg;

	return !ftruncate(fd, (off_t)b->size) || err_set(err, errno, "%s", g_strerror(errno));
}

static bool make_on(const DiskFile *f, const Blank *blank, GError **err)
{
	/* First, for the overlay is complete with its name. */
	if (f->record && ((unlink(f->record) && errno != ENOENT) || symlink(f->said, f->record)))
		return err_set(err, errno, "%s: cannot make %s: %s", f->key, f->record,
			       g_strerror(errno));
	if (diskfile_make(f->path, f->key, fill_qcow2, blank, err))
		return true;
	if (f->record)
		(void)unlink(f->record);
	return false;
}

static bool make_overlay(DiskFile *f, GError **err)
{
	g_autofree char *real = NULL;
	Blank blank = { 0 };
	Found found;

	if (!f->image)
		return err_set(err, ENOENT,
			       "%s.image: there is no image '%s' in .vmfs/images any more", f->key,
			       f->said);
	/* What links stand for may change, and an overlay is of one file for good. */
	real = realpath(f->image, NULL);
	if (!real)
		return err_set(err, errno, "%s.image: the VM's owner cannot open %s: %s", f->key,
			       f->image, g_strerror(errno));
	if (!check_image(f, real, f->format, &found, err))
		return false;
	if (f->size && f->size < found.size)
		return err_set(err, EINVAL,
			       "%s.size: its image has %" G_GUINT64_FORMAT
			       " bytes; a disk cannot be smaller than that",
			       f->key, found.size);
	blank.size = f->size ? f->size : found.size;
	blank.backing = real;
	blank.backing_format = found.format;
	return make_on(f, &blank, err);
}

/* Of the disk in a snapshot, which is one of the same image. */
static bool make_clone(DiskFile *f, GError **err)
{
	Blank blank = { .backing = f->base, .backing_format = "qcow2" };
	Found found;

	if (!check_file(f->base, "qcow2", false, f->mount, 0, &found, err)) {
		g_prefix_error(err, "%s: %s: ", f->key, f->base);
		return false;
	}
	if (f->size && f->size < found.size)
		return err_set(err, EINVAL,
			       "%s.size: the disk in the snapshot has %" G_GUINT64_FORMAT
			       " bytes and cannot be made smaller",
			       f->key, found.size);
	blank.size = f->size ? f->size : found.size;
	return make_on(f, &blank, err);
}

/* A private disk is in the other format already. */
static bool check_other_format(const DiskFile *f, GError **err)
{
	const bool is_raw = !strcmp(f->format, "raw");
	g_autofree char *stem = g_strndup(f->path, strlen(f->path) - strlen(f->format));
	g_autofree char *other = g_strconcat(stem, is_raw ? "qcow2" : "raw", NULL);

	if (faccessat(AT_FDCWD, other, F_OK, AT_SYMLINK_NOFOLLOW))
		return true;
	return err_set(err, EINVAL, "%s.format: it is a %s disk already; remove %s to begin afresh",
		       f->key, is_raw ? "qcow2" : "raw", other);
}

static bool make_empty(const DiskFile *f, GError **err)
{
	const Blank blank = { .size = f->size };

	return check_other_format(f, err) &&
	       diskfile_make(f->path, f->key, strcmp(f->format, "raw") ? fill_qcow2 : fill_raw,
			     &blank, err);
}

/* ---- what is there ---- */

static bool check_size(DiskFile *f, uint64_t has, GError **err)
{
	if (f->size && f->size < has)
		return err_set(err, EINVAL,
			       "%s.size: the disk has %" G_GUINT64_FORMAT
			       " bytes and cannot be made smaller",
			       f->key, has);
	f->resize = f->size > has;
	return true;
}

static bool check_overlay(DiskFile *f, const Qcow2 *q, GError **err)
{
	g_autofree char *record = f->restored ? NULL : g_file_read_link(f->record, NULL);
	const char *said = record ? record : f->restored ? f->said : q->backing;
	Found found;

	if (!*q->backing || strcmp(said, f->said))
		return err_set(err, EINVAL,
			       "%s.image: there is a disk of %s already, and it is only good for "
			       "that; remove %s to begin afresh",
			       f->key, *q->backing ? said : "its own", f->path);
	return check_image(f, q->backing, *q->backing_format ? q->backing_format : NULL, &found,
			   err) &&
	       check_size(f, q->size, err);
}

static bool is_of_origin(const DiskFile *f, const char *backing)
{
	return f->origin && g_str_has_prefix(backing, f->origin);
}

static bool check_own_qcow2(DiskFile *f, int fd, GError **err)
{
	g_autofree Qcow2 *q = g_new(Qcow2, 1);
	Found found;

	if (!qcow2_read(fd, q, err)) {
		g_prefix_error(err, "%s: %s: ", f->key, f->path);
		return false;
	}
	/* Nobody knows that such a one needs it. */
	if (f->restored && g_str_has_prefix(q->backing, f->restored) &&
	    !is_of_origin(f, q->backing))
		return err_set(err, EINVAL,
			       "%s: the disk in the snapshot is based on %s, of another VM's "
			       "snapshot: only a VM that is made from that one can go back to it",
			       f->key, q->backing);
	if (f->said)
		return check_overlay(f, q, err);
	if (*q->backing && !is_of_origin(f, q->backing))
		return err_set(err, EINVAL,
			       "%s: there is a disk of %s already; remove %s to begin afresh",
			       f->key, q->backing, f->path);
	if (*q->backing && !check_file(q->backing, "qcow2", false, f->mount, 0, &found, err)) {
		g_prefix_error(err, "%s: %s: ", f->key, q->backing);
		return false;
	}
	return check_size(f, q->size, err);
}

static bool check_own_raw(DiskFile *f, int fd, GError **err)
{
	const off_t end = lseek(fd, 0, SEEK_END);

	if (end < 0)
		return err_set(err, errno, "%s: %s: %s", f->key, f->path, g_strerror(errno));
	if (!check_size(f, (uint64_t)end, err))
		return false;
	if (f->resize && ftruncate(fd, (off_t)f->size))
		return err_set(err, errno, "%s.size: cannot make %s larger: %s", f->key, f->path,
			       g_strerror(errno));
	f->resize = false;
	return true;
}

/* A power cut may leave a file its name and size, but none of its bytes. */
static bool is_blank(int fd)
{
	char head[8] = { 0 };

	return pread(fd, head, sizeof head, 0) <= 0 || !memcmp(head, "\0\0\0\0\0\0\0\0", 8);
}

static bool prepare_own(DiskFile *f, GError **err)
{
	const bool is_raw = !f->said && !strcmp(f->format, "raw");
	struct stat st;
	int fd;
	bool ok;

	if (f->base)
		return make_clone(f, err);
	if (f->anew && unlink(f->path) && errno != ENOENT)
		return err_set(err, errno, "%s: cannot remove %s: %s", f->key, f->path,
			       g_strerror(errno));
	fd = open(f->path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 && errno != ENOENT)
		return err_set(err, errno, "%s: cannot open %s: %s", f->key, f->path,
			       g_strerror(errno));
	if (fd >= 0 && (fstat(fd, &st) || !S_ISREG(st.st_mode))) {
		close(fd);
		return err_set(err, EINVAL, "%s: %s is not a file", f->key, f->path);
	}
	if (fd < 0 || (!is_raw && is_blank(fd))) {
		if (fd >= 0)
			close(fd);
		return f->said ? make_overlay(f, err) : make_empty(f, err);
	}
	ok = is_raw ? check_own_raw(f, fd, err) : check_own_qcow2(f, fd, err);
	close(fd);
	return ok;
}

bool diskfile_prepare(DiskFile *f, GError **err)
{
	Found found;

	f->resize = false;
	if (f->own)
		return prepare_own(f, err);
	if (check_file(f->path, f->format, !f->readonly, f->mount, 0, &found, err))
		return true;
	g_prefix_error(err, "%s.file: %s: ", f->key, f->path);
	return false;
}
