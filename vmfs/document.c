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

#include "vmfs/attach.h"
#include "vmfs/clone.h"
#include "vmfs/err.h"
#include "vmfs/home.h"
#include "vmfs/hosts.h"
#include "vmfs/images.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/rights.h"
#include "vmfs/store.h"
#include "vmfs/waitq.h"

#define PATHS_DEADLINE_MS 1000
#define APPLY_DEADLINE_MS 800 /* that a commit waits for what runs to follow it */

static char *mountpoint;

/* By document_change(): one entry of what is the document when it is looked at. */
typedef struct Change {
	char *name, *value;
	YamlEdit edit; /* borrows them */
	char *key;     /* "disks.data" */
	Spec *base;    /* what the text was made from */
} Change;

typedef struct Commit {
	Vm *vm;
	char *place; /* for `error` */
	Caller who;
	Change *change; /* NULL: the whole document */
	GBytes *text;
	Spec *spec;
	bool prefix;
	bool applied; /* what runs has been changed for it */
	int invalid;  /* errno for a malformed document */
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
	else if (S_ISDIR(st.st_mode) != p->dir)
		e = p->dir ? ENOTDIR : EISDIR;
	else if (!p->dir && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		e = EINVAL;
	else
		e = faccessat(AT_FDCWD, link, R_OK | (p->dir ? X_OK : 0) | (p->write ? W_OK : 0),
			      AT_EACCESS)
			    ? errno
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

static void change_free(Change *ch)
{
	if (!ch)
		return;
	g_free(ch->name);
	g_free(ch->value);
	g_free(ch->key);
	spec_unref(ch->base);
	g_free(ch);
}

static void commit_free(Commit *c)
{
	timer_stop(&c->timer);
	vm_unref(c->vm);
	change_free(c->change);
	g_free(c->place);
	g_free(c->who.groups);
	g_clear_pointer(&c->text, g_bytes_unref);
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

static void settle(Commit *c);

static void refuse(Commit *c, GError *take)
{
	if (take->code == EINVAL)
		take->code = c->invalid;
	c->error = take;
	if (!c->vm->removed) {
		if (!c->change)
			vm_set_rejected(c->vm, c->text);
		vm_set_error(c->vm, c->place, take);
	}
	/* What runs goes back to what the document says. */
	if (c->applied && !c->vm->removed) {
		vm_apply(c->vm);
		settle(c);
	} else {
		store_barrier(answer, c);
	}
}

static void settled(Commit *c)
{
	timer_stop(&c->timer);
	waitq_remove(&c->wait);
	store_barrier(answer, c);
}

static bool is_unsettled(const Vm *vm)
{
	return vm_is_applying(vm) || attach_is_late(vm);
}

static void look_again(WaitEntry *e)
{
	Commit *c = WAIT_OWNER(e, Commit, wait);

	if (!is_unsettled(c->vm))
		settled(c);
}

static void settle_late(void *arg)
{
	Commit *c = arg;

	c->timer = NULL;
	settled(c);
}

/* So that `pending` and disks/ are true right after; what takes longer goes on. */
static void settle(Commit *c)
{
	if (!is_unsettled(c->vm)) {
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

	c->vm->spec_writes--;
	if (err) {
		refuse(c, err_new(err, "cannot store spec.yaml: %s", g_strerror(err)));
		return;
	}
	if (!c->vm->removed) {
		vm_set_spec(c->vm, c->spec);
		if (!c->change)
			vm_set_rejected(c->vm, NULL);
		vm_set_error(c->vm, c->place, NULL);
		vm_apply(c->vm);
	}
	settle(c);
}

static bool change_is_ready(Commit *c);
static bool ports_are_ready(Commit *c);

static void store(Commit *c)
{
	g_autofree char *path = g_strdup_printf("vms/%u/spec.yaml", c->vm->serial);

	c->vm->spec_writes++;
	/* First: a successor must not take the new one for what runs. */
	vm_save_started(c->vm);
	store_put(path, c->text, true, stored, c);
}

static void defined(void *arg, const GError *e)
{
	if (e)
		refuse(arg, g_error_copy(e));
	else
		store(arg);
}

static void paths_good(Commit *c)
{
	if (c->prefix)
		answer(c, 0);
	else if (c->change ? change_is_ready(c) : ports_are_ready(c))
		home_define(c->vm, c->spec, defined, c);
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

/* Only what the writer brings in is looked at with the writer's rights. */
static void keep_changed(GPtrArray *paths, const char *key)
{
	g_autofree char *prefix = g_strconcat(key, ".", NULL);

	for (unsigned i = paths->len; i-- > 0;)
		if (!g_str_has_prefix(((const SpecPath *)paths->pdata[i])->key, prefix))
			g_ptr_array_remove_index(paths, i);
}

static void look_up_paths(Commit *c)
{
	g_autoptr(GPtrArray) paths = spec_paths(c->spec);
	const Caller *who = &c->who;
	GError *e = NULL;
	PathJob *j;

	if (c->change)
		keep_changed(paths, c->change->key);
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

static Commit *commit_new(Vm *vm, GBytes *text, const Caller *who, int invalid, DocumentDone fn,
			  void *arg)
{
	Commit *c = g_new0(Commit, 1);

	c->vm = vm_ref(vm);
	c->place = g_strdup("spec.yaml");
	c->text = text ? g_bytes_ref(text) : NULL;
	c->who = *who;
	c->who.groups = g_memdup2(who->groups, (gsize)who->n_groups * sizeof *who->groups);
	c->invalid = invalid;
	c->fn = fn;
	c->arg = arg;
	return c;
}

/* Where it is made is said here; where it goes then, by its file. */
static bool check_host(const Vm *vm, const Spec *spec, GError **err)
{
	if (!spec->host || !g_strcmp0(spec->host, vm->spec->host) ||
	    !strcmp(spec->host, vm_host(vm)))
		return true;
	if (!host_find(spec->host))
		return err_set(err, EINVAL, "host: there is no host '%.80s'; see .vmfs/hosts",
			       spec->host);
	return !vm->home.be ||
	       err_set(err, EBUSY, "host: it is on '%s'; write '%s' to its file 'host' to move it",
		       vm_host(vm), spec->host);
}

/* Parse the text, and ask the backend. */
static bool judge(Commit *c, GError **err)
{
	const Vm *vm = c->vm;
	/* What it runs on. */
	Backend *on = (vm_is_live(vm) || vm_is_asleep(vm)) && vm->bv ? vm->bv->be : NULL;
	gsize len;
	const char *data = g_bytes_get_data(c->text, &len);
	Backend *be;

	c->spec = spec_parse(data ? data : "", len, err);
	if (!c->spec || !clone_document(c->vm, &c->who, &c->text, &c->spec, err) ||
	    !lifetime_check(vm, c->spec, err))
		return false;
	if (c->spec->backend && on && strcmp(c->spec->backend, on->cls->name))
		return err_set(err, EBUSY, "backend: it runs on '%s'; stop it before changing that",
			       on->cls->name);
	if (c->spec->backend && vm->home.be && strcmp(c->spec->backend, vm->home.be->cls->name))
		return err_set(err, EBUSY,
			       "backend: '%s' has it in its books, and would keep it there; make "
			       "another VM for backend '%s'",
			       vm->home.be->cls->name, c->spec->backend);
	if (!check_host(vm, c->spec, err))
		return false;
	/* A document may name what is missing here as long as nothing is started. */
	be = c->spec->backend ? backend_find(c->spec->backend) : vm->home.be ? vm->home.be : on;
	if (c->spec->backend && !be)
		return err_set(err, EINVAL, "backend: there is no backend '%s'; see .vmfs/backends",
			       c->spec->backend);
	if (be && c->spec->host && strcmp(c->spec->host, "local") && !be->cls->host_open)
		return err_set(err, EOPNOTSUPP,
			       "host: backend '%s' has VMs on this host only; use 'backend: "
			       "libvirt'",
			       be->cls->name);
	return !be || !be->usable || be->cls->check(be, c->spec, err);
}

void document_commit(Vm *vm, GBytes *text, const Caller *who, int invalid, DocumentDone fn,
		     void *arg)
{
	Commit *c = commit_new(vm, text, who, invalid, fn, arg);
	GError *e = NULL;

	if (judge(c, &e))
		look_up_paths(c);
	else
		refuse(c, e);
}

void document_check_prefix(Vm *vm, GBytes *text, const Caller *who, DocumentDone fn, void *arg)
{
	Commit *c = commit_new(vm, text, who, EINVAL, fn, arg);
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
		look_up_paths(c);
	else
		paths_good(c);
}

/* ---- one entry ---- */

static bool make_text(Commit *c, GError **err)
{
	const Change *ch = c->change;
	gsize len;
	const char *text = g_bytes_get_data(ch->base->text, &len);
	GString *out;

	if (!ch->edit.over && !ch->value != !!spec_named(ch->base, ch->key))
		return ch->value ? err_set(err, EEXIST, "there is one of that name already")
				 : err_set(err, ENOENT, "it is not attached any more");
	out = yaml_splice(text ? text : "", len, &ch->edit, err);
	if (out)
		c->text = g_string_free_to_bytes(out);
	return out != NULL;
}

/* Of the entry: "disks.data" itself, or "disks.data.file". */
static bool is_of_entry(const Change *ch, const char *key)
{
	const size_t len = strlen(ch->key);

	return !strncmp(key, ch->key, len) && (!key[len] || key[len] == '.');
}

static bool are_of_entry(const Change *ch, const GPtrArray *keys)
{
	for (unsigned i = 0; i < keys->len; i++)
		if (!is_of_entry(ch, keys->pdata[i]))
			return false;
	return true;
}

/* The new text means the old one with that one change. */
static bool is_expected(const Commit *c, GError **err)
{
	const Change *ch = c->change;
	g_autoptr(GPtrArray) keys = spec_diff(c->spec, ch->base);

	if (ch->edit.over ? are_of_entry(ch, keys)
			  : keys->len == 1 && !strcmp(keys->pdata[0], ch->key))
		return true;
	return err_set(err, EINVAL,
		       "spec.yaml is written in a way in which %s cannot be changed; "
		       "edit it",
		       ch->key);
}

static void begin_change(void *arg, int err)
{
	Commit *c = arg;
	GError *e = NULL;

	(void)err;
	g_clear_pointer(&c->text, g_bytes_unref);
	g_clear_pointer(&c->spec, spec_unref);
	spec_unref(c->change->base);
	c->change->base = spec_ref(c->vm->spec);
	if (make_text(c, &e) && judge(c, &e) && is_expected(c, &e))
		look_up_paths(c);
	else
		refuse(c, e);
}

static void change_applied(Op *op, void *arg)
{
	Commit *c = arg;

	if (op_error(op)) {
		refuse(c, g_error_copy(op_error(op)));
		return;
	}
	c->applied = true;
	paths_good(c);
}

static void look_at_op_again(Op *op, void *arg)
{
	(void)op;
	paths_good(arg);
}

static void order_change(Commit *c, const Spec *want, const char *key)
{
	GError *e = NULL;
	Op *op;

	if (!vm_order_change(c->vm, want, key, &op, &e))
		refuse(c, e);
	else if (op_done(op))
		change_applied(op, c);
	else
		(void)op_wait(op, false, change_applied, c);
}

/*
 * Whether a port of the host is free is known only to whoever takes it, so those of a VM that runs
 * are taken first. False: later, or never.
 */
static bool ports_are_ready(Commit *c)
{
	Vm *vm = c->vm;
	g_autoptr(GPtrArray) keys = NULL;

	if (!vm->bv || !vm_is_live(vm) || (vm->op && op_kind(vm->op) != OP_APPLY))
		return true;
	keys = spec_diff(c->spec, vm->bv->spec);
	for (unsigned i = 0; i < keys->len; i++) {
		const char *key = keys->pdata[i];

		if (!g_str_has_suffix(key, ".ports") || !vm_can_apply(vm, c->spec, key))
			continue;
		if (vm->op)
			(void)op_wait(vm->op, false, look_at_op_again, c);
		else
			order_change(c, c->spec, key);
		return false;
	}
	return true;
}

static bool has_key_of_entry(const Change *ch, const GPtrArray *keys)
{
	for (unsigned i = 0; i < keys->len; i++)
		if (is_of_entry(ch, keys->pdata[i]))
			return true;
	return false;
}

/* What runs comes first: if it cannot be changed, nothing is. False: later, or never. */
static bool change_is_ready(Commit *c)
{
	static const char nothing[] = "nics: {}\n";
	Vm *vm = c->vm;
	const char *key = c->change->key;
	g_autoptr(GPtrArray) keys = NULL;
	g_autoptr(Spec) want = NULL;

	if (vm->spec != c->change->base || vm->spec_writes) {
		/* Another document has come into force, or is about to. */
		store_barrier(begin_change, c);
		return false;
	}
	if (vm->op && op_kind(vm->op) == OP_APPLY) {
		(void)op_wait(vm->op, false, look_at_op_again, c);
		return false;
	}
	keys = vm->bv ? spec_diff(c->spec, vm->bv->spec) : g_ptr_array_new();
	if (!has_key_of_entry(c->change, keys))
		return true;
	if (spec_named(c->spec, key) && spec_named(vm->bv->spec, key))
		want = spec_parse(nothing, strlen(nothing), NULL); /* the old one goes first */
	else
		want = spec_ref(c->spec);
	if (!vm_can_apply(vm, want, key))
		return true;
	order_change(c, want, key);
	return false;
}

void document_change(Vm *vm, const YamlEdit *edit, const Caller *who, DocumentDone fn, void *arg)
{
	Commit *c = commit_new(vm, NULL, who, EINVAL, fn, arg);
	Change *ch = g_new0(Change, 1);

	c->change = ch;
	g_free(c->place);
	c->place = g_strdup_printf("%s/%s", edit->section, edit->name);
	ch->name = g_strdup(edit->name);
	ch->value = g_strdup(edit->value);
	ch->key = g_strdup_printf("%s.%s", edit->section, edit->name);
	ch->edit = *edit;
	ch->edit.name = ch->name;
	ch->edit.value = ch->value;
	store_barrier(begin_change, c);
}
