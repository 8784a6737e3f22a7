/* SPDX-License-Identifier: Apache-2.0 */
#include "place.h"

#include <ftw.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "backends/backend.h"
#include "vmfs/keep.h"
#include "vmfs/loop.h"
#include "vmfs/node.h"
#include "vmfs/store.h"
#include "vmfs/vm.h"

static char dir[] = "/tmp/vmfs-fuzz-XXXXXX";

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

static void clean_up(void)
{
	(void)nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *place_open(void)
{
	Backend *sim = backend_find("sim");
	g_autofree char *state = NULL, *runtime = NULL;
	int locks[2], memory;
	KeepHead *head;

	(void)signal(SIGPIPE, SIG_IGN);
	node_init();
	loop_init();
	if (!g_mkdtemp(dir))
		abort();
	(void)atexit(clean_up);
	state = g_build_filename(dir, "s", NULL);
	runtime = g_build_filename(dir, "r", NULL);
	vm_config.runtime_dir = g_strdup(runtime);
	memory = keep_create(&head);
	head->keeper_pid = getppid();
	if (!keep_attach(memory, NULL) || !store_lock(state, runtime, locks, NULL) ||
	    !store_open(state, runtime, NULL))
		abort();
	sim->status = g_string_new(NULL);
	sim->cls->probe(sim);
	return dir;
}
