/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commits of spec.yaml. Parsing is quick and done on the loop; looking at paths may hang on a dead
 * file server, so it is done in the pool, with the writer's credentials, and given up after a
 * second: rename(2) waits for it with the directory locked.
 */
#include "vmfs/document.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/images.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/rights.h"
#include "vmfs/store.h"
#include "vmfs/waitq.h"

#define PATHS_DEADLINE_MS 1000
#define APPLY_DEADLINE_MS 800 /* that a commit waits for what runs to follow it */

static char *mountpoint;

typedef struct Commit {
	Vm *vm;
	GBytes *text;
	Spec *spec;
	bool prefix;
	int invalid; /* errno for a malformed document */
	DocumentDone fn;
	void *arg;
	Timer *timer;
	WaitEntry wait; /* until what runs has followed */
	GError *error;
} Commit;

/* What the pool works on: a copy, which outlives a commit that gave up. */
typedef struct PathJob {
	GPtrArray *paths; /* of SpecPath */
	ProcUser who;
	char *mountpoint;
	GError *error;
	Commit *commit; /* NULL: nobody waits any more; loop thread only */
} PathJob;

void document_set_mountpoint(const char *path)
{
	g_free(mountpoint);
	mountpoint = g_strdup(path);
}

const char *document_mountpoint(void)
{
	return mountpoint;
}

/* ---- in the pool ---- */

bool document_is_below(const char *path, const char *mount)
{
	size_t len = strlen(mount);

	return !strncmp(path, mount, len) && (path[len] == '/' || !path[len]);
}

static bool check_path(const PathJob *j, const SpecPath *p, GError **err)
{
	g_autofree char *clean = g_canonicalize_filename(p->path, "/"), *link = NULL, *real = NULL;
	struct stat st;
	int fd, e;

	if (document_is_below(clean, j->mountpoint))
		return err_set(err, EINVAL,
			       "line %u: %s: %s is inside %s itself; use a file outside of it",
			       p->line, p->key, p->path, j->mountpoint);
	fd = open(p->path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return err_set(err, errno, "line %u: %s: cannot open %s: %s", p->line, p->key,
			       p->path, g_strerror(errno));
	link = g_strdup_printf("/proc/self/fd/%d", fd);
	real = g_file_read_link(link, NULL);
	if (real && document_is_below(real, j->mountpoint))
		e = EINVAL;
	else if (fstat(fd, &st))
		e = errno;
	else if (S_ISDIR(st.st_mode))
		e = EISDIR;
	else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		e = EINVAL;
	else
		e = faccessat(AT_FDCWD, link, p->write ? R_OK | W_OK : R_OK, AT_EACCESS) ? errno
											 : 0;
	close(fd);
	if (!e)
		return true;
	return err_set(err, e, "line %u: %s: %s cannot be used: %s", p->line, p->key, p->path,
		       e == EINVAL ? "it is not a file or a disk outside of the mount"
				   : g_strerror(e));
}

static void check_paths(void *job)
{
	PathJob *j = job;
	int before;

	if (!rights_take(&j->who, &before)) {
		(void)err_set(&j->error, EPERM,
			      "cannot look at the paths with the rights of user %u", j->who.uid);
	} else {
		for (unsigned i = 0; i < j->paths->len; i++)
			if (!check_path(j, j->paths->pdata[i], &j->error))
				break;
	}
	rights_drop(&j->who, before);
}

/* ---- on the loop ---- */

static void commit_free(Commit *c)
{
	timer_stop(&c->timer);
	vm_unref(c->vm);
	g_bytes_unref(c->text);
	spec_unref(c->spec);
	g_clear_error(&c->error);
	g_free(c);
}

/* Both ends are told of when they are stored: a successor of this daemon must know as much. */
static void answer(void *arg, int err)
{
	Commit *c = arg;

	(void)err;
	c->fn(c->arg, c->error);
	commit_free(c);
}

static void refuse(Commit *c, GError *take)
{
	if (take->code == EINVAL)
		take->code = c->invalid;
	c->error = take;
	if (!c->vm->removed) {
		vm_set_rejected(c->vm, c->text);
		vm_set_error(c->vm, "spec.yaml", take);
	}
	store_barrier(answer, c);
}

static void settled(Commit *c)
{
	timer_stop(&c->timer);
	waitq_remove(&c->wait);
	store_barrier(answer, c);
}

static void look_again(WaitEntry *e)
{
	Commit *c = WAIT_OWNER(e, Commit, wait);

	if (!vm_is_applying(c->vm))
		settled(c);
}

static void settle_late(void *arg)
{
	Commit *c = arg;

	c->timer = NULL;
	settled(c);
}

/* So that `pending` is true right after; what takes longer goes on. */
static void settle(Commit *c)
{
	if (!vm_is_applying(c->vm)) {
		store_barrier(answer, c);
		return;
	}
	c->wait.wake = look_again;
	waitq_add(&c->vm->waiters, &c->wait);
	c->timer = timer_start(APPLY_DEADLINE_MS, settle_late, c);
}

static void stored(void *arg, int err)
{
	Commit *c = arg;

	if (err) {
		refuse(c, err_new(err, "cannot store spec.yaml: %s", g_strerror(err)));
		return;
	}
	if (!c->vm->removed) {
		vm_set_spec(c->vm, c->spec);
		vm_set_rejected(c->vm, NULL);
		vm_set_error(c->vm, "spec.yaml", NULL);
		vm_apply(c->vm);
	}
	settle(c);
}

static void paths_good(Commit *c)
{
	g_autofree char *path = NULL;

	if (c->prefix) {
		answer(c, 0);
		return;
	}
	path = g_strdup_printf("vms/%u/spec.yaml", c->vm->serial);
	/* First: a successor must not take the new one for what runs. */
	vm_save_started(c->vm);
	store_put(path, c->text, true, stored, c);
}

static void paths_checked(void *job)
{
	PathJob *j = job;
	Commit *c = j->commit;

	if (c) {
		timer_stop(&c->timer);
		if (j->error)
			refuse(c, g_steal_pointer(&j->error));
		else
			paths_good(c);
	}
	g_clear_error(&j->error);
	g_ptr_array_unref(j->paths);
	proc_user_clear(&j->who);
	g_free(j->mountpoint);
	g_free(j);
}

static void paths_late(void *arg)
{
	PathJob *j = arg;
	Commit *c = j->commit;

	j->commit = NULL;
	c->timer = NULL;
	refuse(c, err_new(ETIMEDOUT, "a path in the document could not be looked up in time: the "
				     "storage behind it does not answer"));
}

/* The names of images to the paths that they stand for. */
static bool resolve_images(GPtrArray *paths, GError **err)
{
	for (unsigned i = 0; i < paths->len; i++) {
		SpecPath *p = paths->pdata[i];
		const char *target = *p->path == '/' ? p->path : images_target(p->path);

		if (!target)
			return err_set(err, ENOENT,
				       "line %u: %s: there is no image '%s' in .vmfs/images: make "
				       "it with ln -s, or give the path of a file",
				       p->line, p->key, p->path);
		if (target != p->path) {
			g_free(p->path);
			p->path = g_strdup(target);
		}
	}
	return true;
}

static void look_up_paths(Commit *c, const Caller *who)
{
	g_autoptr(GPtrArray) paths = spec_paths(c->spec);
	GError *e = NULL;
	PathJob *j;

	if (!resolve_images(paths, &e) || !images_check_writers(c->vm, c->spec, &e)) {
		refuse(c, e);
		return;
	}
	if (!paths->len) {
		paths_good(c);
		return;
	}
	if (who->uid != geteuid() && geteuid() != 0) {
		refuse(c, err_new(EPERM,
				  "this vmfs runs as user %u and cannot look at paths with your "
				  "rights; only that user may name files",
				  geteuid()));
		return;
	}
	j = g_new0(PathJob, 1);
	j->paths = g_steal_pointer(&paths);
	j->who = (ProcUser){
		.uid = who->uid,
		.gid = who->gid,
		.groups = g_memdup2(who->groups, (gsize)who->n_groups * sizeof *who->groups),
		.n_groups = who->n_groups,
		.change = who->uid != geteuid(),
	};
	j->mountpoint = g_strdup(mountpoint);
	j->commit = c;
	c->timer = timer_start(PATHS_DEADLINE_MS, paths_late, j);
	loop_work(check_paths, paths_checked, j);
}

static Commit *commit_new(Vm *vm, GBytes *text, int invalid, DocumentDone fn, void *arg)
{
	Commit *c = g_new0(Commit, 1);

	c->vm = vm_ref(vm);
	c->text = g_bytes_ref(text);
	c->invalid = invalid;
	c->fn = fn;
	c->arg = arg;
	return c;
}

void document_commit(Vm *vm, GBytes *text, const Caller *who, int invalid, DocumentDone fn,
		     void *arg)
{
	Commit *c = commit_new(vm, text, invalid, fn, arg);
	GError *e = NULL;
	gsize len;
	const char *data = g_bytes_get_data(text, &len);
	Backend *be;

	c->spec = spec_parse(data ? data : "", len, &e);
	if (c->spec && c->spec->backend && vm_is_live(vm) && vm->bv &&
	    strcmp(c->spec->backend, vm->bv->be->cls->name)) {
		(void)err_set(&e, EBUSY, "backend: it runs on '%s'; stop it before changing that",
			      vm->bv->be->cls->name);
	} else if (c->spec) {
		/* A document may name what is missing here as long as nothing is started. */
		be = c->spec->backend ? backend_find(c->spec->backend) : NULL;
		if (c->spec->backend && !be)
			(void)err_set(&e, EINVAL,
				      "backend: there is no backend '%s'; see "
				      ".vmfs/backends",
				      c->spec->backend);
		else if (be && be->usable)
			(void)be->cls->check(be, c->spec, &e);
	}
	if (e)
		refuse(c, e);
	else
		look_up_paths(c, who);
}

void document_check_prefix(Vm *vm, GBytes *text, const Caller *who, DocumentDone fn, void *arg)
{
	Commit *c = commit_new(vm, text, EINVAL, fn, arg);
	GError *e = NULL;
	gsize len;
	const char *data = g_bytes_get_data(text, &len);

	c->prefix = true;
	if (!spec_parse_prefix(data, len, &e)) {
		refuse(c, e);
		return;
	}
	/* Complete and well-formed as it stands: then its paths can be judged already. */
	if (len && data[len - 1] == '\n')
		c->spec = spec_parse(data, len, NULL);
	if (c->spec)
		look_up_paths(c, who);
	else
		paths_good(c);
}
