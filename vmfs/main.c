/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmfs: wiring. The keeper (keeper.h) starts the daemon, which is one process with one loop thread
 * that owns all state; a store thread and libuv's pool work on copies. VMMs are processes of their
 * own and outlive us.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/backend.h"
#ifdef HAVE_QEMU
#include "backends/qemu/qemu.h"
#endif
#include "version.h"
#include "vmfs/daemon.h"
#include "vmfs/document.h"
#include "vmfs/err.h"
#include "vmfs/fs.h"
#include "vmfs/host.h"
#include "vmfs/hostdev.h"
#include "vmfs/hosts.h"
#include "vmfs/images.h"
#include "vmfs/keep.h"
#include "vmfs/keeper.h"
#include "vmfs/lifetime.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/networks.h"
#include "vmfs/node.h"
#include "vmfs/notify.h"
#include "vmfs/options.h"
#include "vmfs/publish.h"
#include "vmfs/registry.h"
#include "vmfs/store.h"
#include "vmfs/takeover.h"
#include "vmfs/upgrade.h"
#include "vmfs/vm.h"

#define POOL_THREADS "8"

/* Why the daemon ends. */
typedef enum End {
	END_STOP,      /* the mount goes */
	END_HAND_OVER, /* a successor goes on */
} End;

static struct {
	Options options;
	uv_signal_t signals[2];
	Watch *keeper;
	End end;
} app;

static void end(End why)
{
	app.end = why;
	uv_stop(loop_get());
}

static void unmounted(void *arg)
{
	(void)arg;
	end(END_STOP);
}

static void on_signal(uv_signal_t *handle, int signum)
{
	(void)handle;
	log_info("signal %d to the daemon; another one takes over", signum);
	end(END_HAND_OVER);
}

static void hand_over(void)
{
	end(END_HAND_OVER);
}

static bool is_orphan(void)
{
	struct pollfd keeper = { .fd = KEEPER_SOCKET };

	return poll(&keeper, 1, 0) == 1 && keeper.revents & POLLHUP;
}

static void on_keeper(void *arg, int status, int events)
{
	char byte = 0;

	(void)arg;
	(void)status;
	(void)events;
	if (recv(KEEPER_SOCKET, &byte, 1, MSG_DONTWAIT) == 1) {
		end(byte == KEEPER_STOP ? END_STOP : END_HAND_OVER);
		return;
	}
	log_warning("the keeper is gone; this daemon serves on until vmfs is started again");
	watch_stop(&app.keeper, false);
}

static void tell_ready(void)
{
	const char byte = KEEPER_READY;

	if (!app.options.foreground)
		daemon_leave_terminal();
	(void)send(KEEPER_SOCKET, &byte, 1, MSG_NOSIGNAL);
}

static void serve(void *arg)
{
	(void)arg;
	fs_serve();
	tell_ready();
	lifetime_begin();
}

static void adopt(void)
{
	registry_adopt(serve, NULL);
}

static void find(void)
{
	hosts_open(adopt);
}

static void begin(void *arg)
{
	(void)arg;
	backends_probe(find);
}

/* The kernel first: whoever is told of a change must not read what was before it. */
static void changed(Vm *vm, unsigned changes)
{
	fs_changed(vm, changes);
	notify_change(vm, changes);
}

/* What the keeper gave us is nobody else's, and where it said. */
static bool take_from_keeper(Options *o, GError **err)
{
	const KeepHead *head;

	for (int fd = KEEPER_FUSE; fd < KEEPER_FDS_END; fd++)
		if (fcntl(fd, F_SETFD, FD_CLOEXEC))
			return err_set(err, errno, "--served is for vmfs itself to use");
	if (!keep_attach(KEEPER_MEMORY, err))
		return false;
	head = keep_head();
	g_free(o->mountpoint);
	g_free(o->state_dir);
	g_free(o->runtime_dir);
	o->mountpoint = g_strdup(head->mountpoint);
	o->state_dir = g_strdup(head->state_dir);
	o->runtime_dir = g_strdup(head->runtime_dir);
	if (head->generation > 1 && !o->foreground)
		log_to_syslog();
	return true;
}

static bool prepare(GError **err)
{
	Options *o = &app.options;
	const RegistryConfig config = { o->first_id, o->last_id };
	const FsOptions fs = { .fd = KEEPER_FUSE, .fuse_options = o->fuse, .ended = unmounted };

	if (!take_from_keeper(o, err) || !store_open(o->state_dir, o->runtime_dir, err))
		return false;
	vm_config.runtime_dir = o->runtime_dir;
	op_limit_deadlines((uint64_t)o->verb_timeout_s * 1000);
	document_set_mountpoint(o->mountpoint);
	images_load();
	if (!hosts_load(o->hosts_file, o->hosts, err))
		return false;
	registry_load(&config);
	/* What is stored was good where it was written: only new documents are held to this. */
	spec_set_limits(0, host_memory());
	vm_restore_all();
	networks_restore();
	if (!fs_open_session(&fs, err))
		return false;
	notify_start(o->mountpoint);
	hostdev_open();
	vm_all.changed = changed;
	return true;
}

static void run(void)
{
	static const int ending[] = { SIGTERM, SIGINT };
	static const int given[TAKEOVER_FDS] = { KEEPER_FUSE, KEEPER_MEMORY, KEEPER_LOCKS,
						 KEEPER_LOCKS + 1 };

	for (unsigned i = 0; i < G_N_ELEMENTS(ending); i++) {
		(void)uv_signal_init(loop_get(), &app.signals[i]);
		(void)uv_signal_start(&app.signals[i], on_signal, ending[i]);
	}
	app.keeper = watch_start(KEEPER_SOCKET, UV_READABLE, on_keeper, NULL);
	takeover_offer(app.options.runtime_dir, app.options.mountpoint, given, is_orphan,
		       hand_over);
	loop_defer(begin, NULL);
	(void)uv_run(loop_get(), UV_RUN_DEFAULT);
	takeover_withdraw();
	/* Requests that wait for the disk are answered by this; ops end half-done, as by a crash.
	 */
	store_close();
	if (app.end == END_HAND_OVER)
		fs_hand_over();
	vm_all.changed = NULL;
	publish_stop();
	hostdev_close();
	notify_stop();
	fs_close_session();
	registry_close();
	images_close();
	hosts_close();
	/* exit(3) would wait for the pool, which may wait for a file server that is dead. */
	if (loop_has_work())
		_exit(EXIT_SUCCESS);
}

static void raise_limits(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files))
		return;
	files.rlim_cur = files.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &files);
}

static int fail(const GError *e)
{
	log_error("%s", e->message);
	return EXIT_FAILURE;
}

static int print_markdown(void)
{
	g_autoptr(GString) out = g_string_new(NULL);

	node_markdown(out);
	fputs(out->str, stdout);
	return EXIT_SUCCESS;
}

/* The text of a file, then the tables of the tree: for the manual page. */
static int print_manual(const char *head)
{
	g_autoptr(GString) out = g_string_new(NULL);
	g_autofree char *text = NULL;
	g_autoptr(GError) e = NULL;

	if (!g_file_get_contents(head, &text, NULL, &e))
		return fail(e);
	node_man(out);
	printf("%s%s", text, out->str);
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	g_autoptr(GError) e = NULL;

	if (!options_parse(argc, argv, &app.options))
		return EXIT_FAILURE;
	if (app.options.help) {
		options_usage();
		return EXIT_SUCCESS;
	}
	if (app.options.version) {
		puts("vmfs " VMFS_VERSION);
		return EXIT_SUCCESS;
	}
	if (app.options.notify_helper)
		return notify_helper_main();
#ifdef HAVE_QEMU
	if (app.options.probe_kvm)
		return qemu_probe_kvm_main();
#endif
	node_init();
	if (app.options.markdown)
		return print_markdown();
	if (app.options.man)
		return print_manual(app.options.mountpoint);
	log_init(app.options.debug);
	if (app.options.upgrade)
		return upgrade_main(&app.options);
	(void)signal(SIGPIPE, SIG_IGN);
	(void)umask(022);
	if (!app.options.served)
		return keeper_run(&app.options, argv);
	(void)prctl(PR_SET_NAME, "vmfs");
	raise_limits();
	/* Before libuv's first use of its pool: files on a dead server must not use it all up. */
	(void)setenv("UV_THREADPOOL_SIZE", POOL_THREADS, 0);
	loop_init();
	if (!prepare(&e))
		return fail(e);
	run();
	return EXIT_SUCCESS;
}
