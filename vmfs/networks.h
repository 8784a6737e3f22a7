/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The networks of the hosts, as libvirt has them in its books: nothing of them is kept here. Those
 * of `local` are known by their own names, those of another host as NAME@HOST. Loop thread only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/backend.h"
#include "vmfs/netspec.h"
#include "vmfs/node.h"

typedef struct Network {
	uint32_t number; /* in inode numbers: made of what follows */
	Host *host;
	char *key, *name; /* there */
	char *label;	  /* its name in .vmfs/networks */
	bool active;
	char *text;  /* spec.yaml */
	char *error; /* the last failure, or NULL */
	size_t leases_size;
	bool hidden; /* the kernel is still to be told that it is there */
	bool gone;   /* and that it is not */
} Network;

/* For backends. */

/* What a host has of one. */
typedef struct NetworkInfo {
	char *key;
	bool active;
	NetSpec *spec; /* and its name */
} NetworkInfo;
void network_info_free(void *info);

/* Those that a former daemon knew, until their hosts tell. At start. */
void networks_restore(void);
/* All that a host has (of NetworkInfo; borrowed). */
void networks_update(Host *host, const GPtrArray *infos);
/* vmfs lets go of the host. */
void networks_close(Host *host);

/* It has come or gone: the states of its networks are known, or not. */
void networks_host_changed(const Host *host);

/* For nodes_networks.c: those that are shown. */

Network *network_find(const char *label);
Network *network_by_number(uint32_t number);
/* The one with the next higher number; NULL at the end. */
Network *network_after(uint32_t number);
/* "active", "inactive" or "unknown". */
const char *network_state(const Network *n);

/* As the slots of a Dir; a sentence of what fails is in `error` and in the log. */
int network_make(const char *label, NodeDone done, void *arg);
int network_remove(Network *n, NodeDone done, void *arg);
int network_order(Network *n, GBytes *text, NodeDone done, void *arg);
int network_define(Network *n, GBytes *text, NodeDone done, void *arg);
/* Of a document that is still being written: as Node.judge(). */
int network_judge(Network *n, GBytes *text);
int network_leases(Network *n, NodeFetched fn, void *arg);

/* What scratch.h calls an editor's file of that name in the directory of a network; owned by the
 * caller. */
char *network_scratch(uint32_t number, const char *name);
/* What the network `name` of a host is called in .vmfs/networks; owned by the caller. */
char *network_label(const char *host, const char *name);
