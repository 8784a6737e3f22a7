/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: vmfs [options] [SOURCE] MOUNTPOINT, as mount(8) and sshfs have it. */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct Options {
	bool foreground, debug, help, version, probe_kvm, notify_helper, served, man, markdown,
		upgrade;
	char *state_dir, *runtime_dir, *mountpoint; /* absolute; the mountpoint resolved */
	char *fuse;				    /* for fuse(8) */
	char *hosts_file;			    /* NULL: the standard one */
	GPtrArray *hosts;			    /* "NAME=URI"; NULL: none */
	uint32_t first_id, last_id;
	unsigned verb_timeout_s; /* 0: as each verb says */
} Options;

/* false: said on stderr what is wrong. */
bool options_parse(int argc, char **argv, Options *ret);
void options_usage(void);
