/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmfs: wiring. One process, one loop thread that owns all state; a store thread and libuv's pool
 * work on copies. VMMs are processes of their own and outlive us.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
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
#include "vmfs/hosts.h"
#include "vmfs/images.h"
#include "vmfs/lifetime.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/node.h"
#include "vmfs/notify.h"
#include "vmfs/options.h"
#include "vmfs/publish.h"
#include "vmfs/registry.h"
#include "vmfs/store.h"
#include "vmfs/vm.h"

#define POOL_THREADS "8"

static struct {
	Options options;
	uv_signal_t signals[3];
} app;

static void stop(void *arg)
{
	(void)arg;
	uv_stop(loop_get());
}

static void on_signal(uv_signal_t *handle, int signum)
{
	(void)handle;
	log_info("signal %d: unmounting; the VMs go on", signum);
	stop(NULL);
}

static void serve(void *arg)
{
	(void)arg;
	fs_serve();
	daemon_ready();
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

static bool prepare(GError **err)
{
	const Options *o = &app.options;
	const RegistryConfig config = { o->first_id, o->last_id };
	FsOptions fs = { .fuse_options = o->fuse, .ended = stop };
	char *mountpoint;

	/* Its lock tells of a living daemon before its mount is looked at. */
	if (!store_open(o->state_dir, o->runtime_dir, err))
		return false;
	mountpoint = daemon_mountpoint(o->mountpoint, err);
	if (!mountpoint)
		return false;
	g_free(app.options.mountpoint);
	app.options.mountpoint = mountpoint;
	vm_config.runtime_dir = o->runtime_dir;
	op_limit_deadlines((uint64_t)o->verb_timeout_s * 1000);
	document_set_mountpoint(mountpoint);
	images_load();
	if (!hosts_load(o->hosts_file, o->hosts, err))
		return false;
	registry_load(&config);
	/* What is stored was good where it was written: only new documents are held to this. */
	spec_set_limits(0, host_memory());
	fs.mountpoint = mountpoint;
	if (!fs_mount(&fs, err))
		return false;
	notify_start(mountpoint);
	vm_all.changed = changed;
	return true;
}

static void run(void)
{
	static const int ending[] = { SIGTERM, SIGINT, SIGHUP };

	for (unsigned i = 0; i < G_N_ELEMENTS(ending); i++) {
		(void)uv_signal_init(loop_get(), &app.signals[i]);
		(void)uv_signal_start(&app.signals[i], on_signal, ending[i]);
	}
	loop_defer(begin, NULL);
	(void)uv_run(loop_get(), UV_RUN_DEFAULT);
	daemon_stopping();
	/* Requests that wait for the disk are answered by this; ops end half-done, as by a crash.
	 */
	store_close();
	vm_all.changed = NULL;
	publish_stop();
	notify_stop();
	fs_unmount();
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
	(void)signal(SIGPIPE, SIG_IGN);
	(void)umask(022);
	raise_limits();
	if (!app.options.foreground && !daemon_background(&e))
		return fail(e);
	/* Before libuv's first use of its pool: files on a dead server must not use it all up. */
	(void)setenv("UV_THREADPOOL_SIZE", POOL_THREADS, 0);
	loop_init();
	if (!prepare(&e))
		return fail(e);
	run();
	return EXIT_SUCCESS;
}
