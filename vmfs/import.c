/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Imports: a snapshot that is filled through the mount, by tar(1) or cp(1), and is ready once all
 * that its manifest tells of is there and right.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/snapshot_internal.h"

#define IMPORT_US (60 * G_USEC_PER_SEC) /* that a mkdir can turn out to be of an import */

static int create_file(Snapshot *s, const char *name)
{
	g_autoptr(GError) e = NULL;
	int dir, fd;

	if (!savedir_is_name(name))
		return EINVAL;
	if (snapshot_find_file(s, name))
		return EEXIST;
	if (s->files->len > SAVEDIR_MAX_FILES)
		return ENOSPC;
	dir = savedir_open(s->dir, &e);
	fd = dir < 0 ? -1 : savedir_create(dir, name, vm_uid(s->vm), vm_gid(s->vm), &e);
	if (dir >= 0)
		close(dir);
	if (fd < 0)
		return err_code(e);
	close(fd);
	g_ptr_array_add(s->files, g_strdup(name));
	vm_changed(s->vm, EV_SNAPSHOT);
	return 0;
}

void import_answer(Snapshot *s, int err)
{
	while (s->creates->len) {
		Create *c = g_ptr_array_steal_index(s->creates, 0);

		c->done(c->arg, err ? err : create_file(s, c->name));
		g_free(c->name);
		g_free(c);
	}
}

void import_begin(void *arg, const Manifest *m, const GError *err)
{
	Snapshot *s = arg;
	g_autoptr(GError) e = NULL;
	int dir;

	s->job = NULL;
	s->import = false;
	s->has_memory = false;
	g_ptr_array_set_size(s->files, 0);
	dir = savedir_make(s->dir, vm_uid(s->vm), vm_gid(s->vm), &e);
	if (dir >= 0)
		close(dir);
	snapshot_set_state(s, SNAPSHOT_IMPORTING);
	snapshot_store_state(s, SNAPSHOT_IMPORTING);
	import_answer(s, e ? err_code(e) : 0);
}

int snapshot_create(Snapshot *s, const char *name, pid_t maker, SnapshotDone done, void *arg)
{
	Create *c;
	int err;

	if (s->booked)
		return snapshot_fail(
			s->vm, "snapshot",
			err_new(EOPNOTSUPP,
				"snapshot '%s' is in the books of the VM's hypervisor, where none "
				"can be imported",
				s->name));
	if (s->state == SNAPSHOT_IMPORTING || s->state == SNAPSHOT_DAMAGED) {
		err = create_file(s, name);
		if (!err)
			done(arg, 0);
		return err;
	}
	if (s->maker != maker || vm_now() - s->made > IMPORT_US)
		return snapshot_fail(s->vm, "snapshot",
				     err_new(EPERM,
					     "snapshot '%s' is %s; files can only be made in one "
					     "that is imported, by whoever made its directory",
					     s->name, snapshot_state_name(s->state)));
	c = g_new0(Create, 1);
	*c = (Create){ g_strdup(name), done, arg };
	g_ptr_array_add(s->creates, c);
	if (s->import)
		return 0;
	s->import = true;
	timer_stop(&s->grace);
	if (s->op)
		op_cancel(s->op, err_new(ECANCELED, "it is imported instead"));
	else
		/* What was taken is dropped when that is not spoken of any more. */
		snapshot_store_state(s, SNAPSHOT_TAKING);
	return 0;
}

static void verified(void *arg, const Manifest *m, const GError *err)
{
	Snapshot *s = arg;

	s->job = NULL;
	if (err) {
		g_autoptr(GError) e =
			err_new(err_code(err), "snapshot '%s': %s", s->name, err->message);
		vm_set_error(s->vm, "import", e);
		snapshot_store_state(s, SNAPSHOT_DAMAGED);
		return;
	}
	/* What its manifest does not speak of is no part of it. */
	for (guint i = s->files->len; i-- > 0;) {
		const char *name = s->files->pdata[i];

		if (strcmp(name, SAVEDIR_MANIFEST) && !manifest_file(m, name)) {
			g_autofree char *path = g_build_filename(s->dir, name, NULL);
			(void)unlink(path);
		}
	}
	snapshot_list_files(s);
	snapshot_store_state(s, SNAPSHOT_READY);
}

/* What the manifest says, once it is all there; NULL before. */
static Manifest *imported_manifest(const Snapshot *s, GError **err)
{
	const int dir = savedir_open(s->dir, err);
	g_autoptr(GBytes) text = NULL;
	Manifest *m = NULL;

	if (dir < 0)
		return NULL;
	text = savedir_get(dir, SAVEDIR_MANIFEST, SAVEDIR_MAX_MANIFEST, err);
	close(dir);
	if (text)
		m = manifest_parse(g_bytes_get_data(text, NULL), g_bytes_get_size(text), err);
	return m;
}

static bool is_complete(const Snapshot *s, const Manifest *m)
{
	for (guint i = 0; i < m->files->len; i++)
		if (!snapshot_find_file(s, ((SavedFile *)m->files->pdata[i])->name))
			return false;
	return true;
}

unsigned import_percent(const Snapshot *s)
{
	g_autoptr(Manifest) m = imported_manifest(s, NULL);
	uint64_t have = 0, total = 0;
	struct stat st;

	for (guint i = 0; m && i < m->files->len; i++) {
		const SavedFile *f = m->files->pdata[i];
		g_autofree char *path = g_build_filename(s->dir, f->name, NULL);

		if (f->size > (1ull << 50))
			continue;
		total += f->size;
		if (!lstat(path, &st))
			have += MIN((uint64_t)st.st_size, f->size);
	}
	return total ? (unsigned)(have * 100 / total) : 0;
}

void snapshot_opened(Snapshot *s)
{
	s->writers++;
	/* What is written again is looked at again. */
	savedir_cancel(&s->job);
	if (s->state != SNAPSHOT_IMPORTING || s->next != SNAPSHOT_IMPORTING) {
		snapshot_set_state(s, SNAPSHOT_IMPORTING);
		snapshot_store_state(s, SNAPSHOT_IMPORTING);
	}
}

void snapshot_wrote(Snapshot *s, int err)
{
	g_autoptr(GError) e = NULL;

	if (err != ENOSPC && err != EDQUOT)
		return;
	e = err_new(err, "snapshot '%s' does not fit and is dropped: %s", s->name, g_strerror(err));
	vm_set_error(s->vm, "import", e);
	s->vm->full_for = s->maker;
	snapshot_begin_drop(s);
}

void import_look(Snapshot *s)
{
	g_autoptr(Manifest) m = NULL;

	if (s->writers || s->job || s->state != SNAPSHOT_IMPORTING ||
	    !snapshot_find_file(s, SAVEDIR_MANIFEST))
		return;
	m = imported_manifest(s, NULL);
	/* One that cannot be read will not get better by what follows. */
	if (!m || is_complete(s, m))
		s->job = savedir_verify(s->dir, verified, s);
}

void snapshot_closed(Snapshot *s)
{
	if (s->writers)
		s->writers--;
	import_look(s);
}
