/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shares that virtiofsd serves: a process for each, with the rights of the VM's owner, started
 * before QEMU connects to it and ending when QEMU lets go. Where the owner is not root, a user
 * namespace gives it the right to shut itself into the directory; all files that the guest makes
 * are the owner's then. Loop thread only.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/qemu/qemu.h"
#include "backends/qemu/start.h"
#include "vmfs/err.h"
#include "vmfs/log.h"

#define GROUP	    "backend"
#define SAVED	    "shares" /* list of NAME:PID:START_TIME */
#define FD_LISTEN   "3"
#define FACT_PREFIX "share."
#define LOST_MS	    500 /* after which it was not QEMU's end that ended it */

/* One that is served. */
typedef struct Served {
	QemuVm *q;
	char *name;
	ProcStart *spawning;
	Proc *proc;
	uint64_t start_time;
	Timer *lost;
} Served;

/* Servers that are being started. */
struct QemuShares {
	GPtrArray *starting; /* of Served, which q->shares owns */
	QemuSharesFn done;
	void *arg;
};

static void served_free(void *arg)
{
	Served *s = arg;

	if (s->spawning)
		proc_start_abandon(s->spawning);
	if (s->proc)
		proc_kill(s->proc, SIGKILL);
	proc_free(s->proc);
	timer_stop(&s->lost);
	g_free(s->name);
	g_free(s);
}

static char *socket_path(QemuVm *q, const char *name)
{
	return g_strdup_printf("%s/" QEMU_SHARE_ID "%s", vm_run_dir(qemu_vm(q)), name);
}

static Served *find(const QemuVm *q, const char *name)
{
	for (guint i = 0; q->shares && i < q->shares->len; i++) {
		Served *s = q->shares->pdata[i];

		if (!strcmp(s->name, name))
			return s;
	}
	return NULL;
}

static void remember(QemuVm *q, Served *s)
{
	if (!q->shares)
		q->shares = g_ptr_array_new_with_free_func(served_free);
	g_ptr_array_add(q->shares, s);
}

static void report(QemuVm *q, const char *name, const char *how)
{
	g_autofree char *key = g_strconcat(FACT_PREFIX, name, NULL);

	backend_fact(&q->base, key, how);
}

void qemu_report_shares(QemuVm *q)
{
	const Spec *spec = q->base.spec;

	for (guint i = 0; i < spec->shares->len; i++) {
		const SpecShare *share = spec->shares->pdata[i];
		const Served *s = find(q, share->name);

		report(q, share->name, !s ? "9p" : s->proc ? "virtiofs" : "lost");
	}
}

void qemu_share_added(QemuVm *q, const char *name)
{
	report(q, name, "virtiofs");
}

void qemu_share_removed(QemuVm *q, const char *name)
{
	report(q, name, NULL);
	for (guint i = 0; q->shares && i < q->shares->len; i++)
		if (!strcmp(((Served *)q->shares->pdata[i])->name, name))
			g_ptr_array_remove_index(q->shares, i--);
	backend_changed(&q->base);
}

static void lost(void *arg)
{
	Served *s = arg;
	QemuVm *q = s->q;

	s->lost = NULL;
	if (!q->proc || q->exited || q->end.reason)
		return;
	log_warning("%s: the virtiofsd of shares.%s has ended: the guest's accesses to it wait "
		    "until the VM is started again",
		    vm_name(qemu_vm(q)), s->name);
	report(q, s->name, "lost");
}

/* As a rule QEMU has ended, which will be heard of. */
static void exited(void *arg, int status)
{
	Served *s = arg;

	(void)status;
	proc_free(g_steal_pointer(&s->proc));
	s->lost = timer_start(LOST_MS, lost, s);
}

/* ---- start ---- */

static void starting_free(QemuVm *q)
{
	QemuShares *st = g_steal_pointer(&q->starting_shares);

	if (st)
		g_ptr_array_unref(st->starting);
	g_free(st);
}

static void finish(QemuVm *q, const GError *err)
{
	const QemuSharesFn done = q->starting_shares->done;
	void *arg = q->starting_shares->arg;

	if (err)
		qemu_shares_cancel(q);
	else
		starting_free(q);
	done(arg, err);
}

static void spawned(void *arg, Proc *p, const GError *err)
{
	Served *s = arg;
	QemuVm *q = s->q;

	s->spawning = NULL;
	s->proc = p;
	if (err) {
		g_autoptr(GError) e =
			err_new(err_code(err), "shares.%s: virtiofsd: %s", s->name, err->message);
		finish(q, e);
		return;
	}
	s->start_time = proc_start_time(proc_pid(p));
	backend_changed(&q->base);
	g_ptr_array_remove(q->starting_shares->starting, s);
	if (!q->starting_shares->starting->len)
		finish(q, NULL);
}

/* Root may do all that it wants to; others become root of a namespace in which they are alone. */
static void add_argv(const QemuVm *q, const SpecShare *share, GPtrArray *argv)
{
	static const char *const alone[] = { "unshare", "--user", "--map-root-user" };
	const uid_t uid = q->user.change ? q->user.uid : geteuid();

	for (size_t i = 0; uid && i < G_N_ELEMENTS(alone); i++)
		g_ptr_array_add(argv, g_strdup(alone[i]));
	g_ptr_array_add(argv, g_strdup(qemu_host()->virtiofsd));
	g_ptr_array_add(argv, g_strdup("--fd=" FD_LISTEN));
	g_ptr_array_add(argv, g_strdup("-o"));
	/* Its options are separated by commas, which a backslash keeps in a value. */
	GString *source = g_string_new(share->path);
	g_string_replace(source, "\\", "\\\\", 0);
	g_string_replace(source, ",", "\\,", 0);
	g_string_prepend(source, "log_level=err,source=");
	g_ptr_array_add(argv, g_string_free(source, FALSE));
	g_ptr_array_add(argv, NULL);
}

static bool spawn(QemuVm *q, const SpecShare *share, GError **err)
{
	g_autofree char *path = socket_path(q, share->name);
	g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
	int listening = -1, log;
	bool ok;

	const int before = qemu_as_owner(&q->user);
	(void)unlink(path);
	ok = qemu_listen_at(path, &listening, err);
	qemu_as_daemon(&q->user, before);
	if (!ok)
		return false;
	log = qemu_open_log(q, QEMU_VIRTIOFSD_LOG, O_WRONLY | O_CREAT | O_APPEND);
	add_argv(q, share, argv);
	Served *s = g_new0(Served, 1);
	s->q = q;
	s->name = g_strdup(share->name);
	remember(q, s);
	g_ptr_array_add(q->starting_shares->starting, s);
	const ProcSpec spec = {
		.argv = (char *const *)argv->pdata,
		.user = &q->user,
		.out_fd = log,
		.err_fd = log,
		.fds = &listening,
		.n_fds = 1,
	};
	s->spawning = proc_start(&spec, spawned, s, exited, s);
	close(listening);
	if (log >= 0)
		close(log);
	return true;
}

void qemu_shares_start(QemuVm *q, const QemuArgs *args, const char *only, QemuSharesFn done,
		       void *arg)
{
	const GPtrArray *shares = args->spec->shares;
	g_autoptr(GError) err = NULL;

	q->starting_shares = g_new0(QemuShares, 1);
	q->starting_shares->starting = g_ptr_array_new();
	q->starting_shares->done = done;
	q->starting_shares->arg = arg;
	if (!only) {
		const int log = qemu_open_log(q, QEMU_VIRTIOFSD_LOG, O_WRONLY | O_TRUNC);

		if (log >= 0)
			close(log);
	}
	for (guint i = 0; !err && i < shares->len; i++) {
		const SpecShare *share = shares->pdata[i];

		if ((!only || !strcmp(only, share->name)) && qemu_is_virtiofs(args, share))
			(void)spawn(q, share, &err);
	}
	if (err || !q->starting_shares->starting->len)
		finish(q, err);
}

void qemu_shares_cancel(QemuVm *q)
{
	QemuShares *st = q->starting_shares;

	for (guint i = 0; st && i < st->starting->len; i++)
		g_ptr_array_remove(q->shares, st->starting->pdata[i]);
	starting_free(q);
}

/* One that a daemon started which died before it took note of it waits for a connection. */
static void sweep(QemuVm *q)
{
	const Spec *spec = q->base.spec;
	const ProcUser owner = qemu_owner(q);
	const int before = qemu_as_owner(&owner);

	for (guint i = 0; i < spec->shares->len; i++) {
		const SpecShare *share = spec->shares->pdata[i];
		g_autofree char *path = socket_path(q, share->name);
		struct sockaddr_un addr = { .sun_family = AF_UNIX };
		const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

		if (strlen(path) < sizeof(addr.sun_path)) {
			strcpy(addr.sun_path, path);
			(void)connect(fd, (struct sockaddr *)&addr, sizeof(addr));
		}
		if (fd >= 0)
			close(fd);
	}
	qemu_as_daemon(&owner, before);
}

void qemu_shares_forget(QemuVm *q, bool end)
{
	qemu_shares_cancel(q);
	for (guint i = 0; !end && q->shares && i < q->shares->len; i++) {
		Served *s = q->shares->pdata[i];

		proc_free(g_steal_pointer(&s->proc));
	}
	g_clear_pointer(&q->shares, g_ptr_array_unref);
	if (end)
		sweep(q);
}

bool qemu_can_be_saved(const QemuVm *q, GError **err)
{
	const Served *s = q->shares && q->shares->len ? q->shares->pdata[0] : NULL;
	const GPtrArray *devices = q->base.spec->devices;

	if (devices->len) {
		const SpecDevice *d = devices->pdata[0];

		return err_set(err, EOPNOTSUPP,
			       "devices.%s is of the host, and its state cannot be saved: take it "
			       "away before (rm devices/%s)",
			       d->name, d->name);
	}
	return !s || err_set(err, EOPNOTSUPP,
			     "shares.%s is virtiofs, whose state QEMU cannot save: take it away "
			     "before (rm shares/%s), or let it be `type: 9p`",
			     s->name, s->name);
}

/* ---- over a restart of the daemon ---- */

void qemu_shares_save(const QemuVm *q, GKeyFile *run)
{
	g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func(g_free);

	for (guint i = 0; q->shares && i < q->shares->len; i++) {
		const Served *s = q->shares->pdata[i];

		g_ptr_array_add(list, g_strdup_printf("%s:%d:%" G_GUINT64_FORMAT, s->name,
						      s->proc ? (int)proc_pid(s->proc) : 0,
						      s->start_time));
	}
	if (list->len)
		g_key_file_set_string_list(run, GROUP, SAVED, (const char *const *)list->pdata,
					   list->len);
}

void qemu_shares_adopt(QemuVm *q, GKeyFile *run)
{
	g_auto(GStrv) list = run ? g_key_file_get_string_list(run, GROUP, SAVED, NULL, NULL) : NULL;

	for (unsigned i = 0; list && list[i]; i++) {
		g_auto(GStrv) part = g_strsplit(list[i], ":", 3);
		Served *s;

		if (g_strv_length(part) != 3 || find(q, part[0]))
			continue;
		s = g_new0(Served, 1);
		s->q = q;
		s->name = g_strdup(part[0]);
		s->start_time = g_ascii_strtoull(part[2], NULL, 10);
		s->proc = s->start_time ? proc_adopt((pid_t)g_ascii_strtoll(part[1], NULL, 10),
						     s->start_time, exited, s, NULL)
					: NULL;
		remember(q, s);
	}
}
