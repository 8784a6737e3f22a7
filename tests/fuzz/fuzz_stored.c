/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as what is stored: of the daemon, and of two VMs of the sim backend. A record separator
 * (0x1e) ends a file; the byte after it says which one comes next. The daemon starts on them, and
 * all that a VM shows is shown.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "place.h"
#include "vmfs/hosts.h"
#include "vmfs/images.h"
#include "vmfs/loop.h"
#include "vmfs/node.h"
#include "vmfs/registry.h"
#include "vmfs/savedir.h"
#include "vmfs/store.h"

#define END   0x1e
#define TURNS 100 /* of the loop, for the VMs to be found again */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *dir;

static const char *const files[] = {
	"s/vms/1/meta",
	"s/vms/1/spec.yaml",
	"s/vms/1/spec.yaml.rej",
	"s/vms/1/error",
	"s/vms/1/asleep",
	"s/vms/1/started.yaml",
	"s/vms/1/snapshots",
	"s/vms/1/data/snap.1/manifest",
	"r/1.run",
	"s/vms/2/meta",
	"s/root",
	"s/hosts",
	"s/images",
	"s/boot",
	"s/next",
};

static char *path_of(const char *name)
{
	return g_build_filename(dir, name, NULL);
}

static void put_files(const uint8_t *data, size_t size)
{
	while (size) {
		const uint8_t *end = memchr(data, END, size);
		const size_t len = end ? (size_t)(end - data) : size;
		g_autofree char *path = path_of(files[data[0] % G_N_ELEMENTS(files)]);

		if (len)
			(void)g_file_set_contents_full(path, (const char *)data + 1,
						       (gssize)len - 1, G_FILE_SET_CONTENTS_NONE,
						       0600, NULL);
		data += MIN(len + 1, size);
		size -= MIN(len + 1, size);
	}
}

static void remove_files(void)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(files); i++) {
		g_autofree char *path = path_of(files[i]);

		(void)unlink(path);
	}
}

static void make_dirs(void)
{
	for (unsigned n = 1; n <= 2; n++) {
		g_autofree char *name = g_strdup_printf("s/vms/%u/data/snap.%u", n, n);
		g_autofree char *path = path_of(name);

		if (g_mkdir_with_parents(path, 0700))
			abort();
	}
}

static void show_all(Vm *vm)
{
	const NodeRef top = { .node = &root_node };
	g_autoptr(GString) out = g_string_new(NULL);
	uint64_t cookie = 0;
	char name[256];
	NodeRef in, r;
	struct stat st;

	if (!node_lookup(&top, vm_name(vm), &in))
		abort();
	while (node_list(&in, &cookie, name, &r)) {
		node_stat(&r, &st);
		if (r.node->show)
			r.node->show(&r, out);
	}
}

static void on_adopted(void *arg)
{
	*(bool *)arg = true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	dir = place_open();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const RegistryConfig config = { 1, 1000 };
	g_autofree char *saved = path_of("s/vms/1/data/snap.1"), *fact = NULL;
	bool adopted = false;

	make_dirs();
	put_files(data, size);
	images_load();
	/* It may refuse: the rest goes on without. */
	(void)hosts_load("/dev/null", NULL, NULL);
	registry_load(&config);
	registry_adopt(on_adopted, &adopted);
	fact = savedir_fact(saved, "cpus");
	for (unsigned i = 0; i < TURNS && !adopted; i++)
		(void)uv_run(loop_get(), UV_RUN_NOWAIT);
	for (unsigned i = 0; i < registry_all()->len; i++)
		show_all(registry_all()->pdata[i]);
	while (store_busy())
		(void)uv_run(loop_get(), UV_RUN_ONCE);
	registry_close();
	images_close();
	hosts_close();
	remove_files();
	return 0;
}
