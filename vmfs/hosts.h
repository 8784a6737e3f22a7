/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hosts: this one, `local`, and those that were given a name and a URI by mkdir, by an option
 * or by the file of hosts. They are kept in the state directory; a backend reaches them.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "backends/backend.h"

#define HOST_LOCAL 1 /* its number */

struct Host {
	uint32_t number; /* for good: in inode numbers */
	char *name;
	char *uri;  /* NULL: not set, of `local`: what libvirt has by default; empty: none */
	bool given; /* by an option or the file: it comes again, and goes with them */
	Backend *be;
	void *link; /* the backend's, while it is open */
};

/*
 * Read what is stored and the file (NULL: the standard one), and take the options "NAME=URI". At
 * start; before the VMs are loaded.
 */
bool hosts_load(const char *file, const GPtrArray *options, GError **err);
/* Begin to reach them; fn is called when all have answered, or when a time is up. */
void hosts_open(void (*fn)(void));
/* For the backend: the first answer of a host, whatever it is. */
void host_answered(Host *host);
/* For the backend: it has come or gone. */
void host_changed(Host *host);
void hosts_close(void);

Host *host_find(const char *name);
Host *host_by_number(uint32_t number);
/* The one with the next higher number; NULL at the end. */
Host *host_after(uint32_t number);
/* VMs of it, of which *live are live. */
unsigned host_count_vms(const Host *host, unsigned *live);

/* fn is as for the store. 0 or an errno that is known at once. */
int host_make(const char *name, void (*fn)(void *arg, int err), void *arg);
int host_remove(Host *host, void (*fn)(void *arg, int err), void *arg);
/* Empty: none. */
bool host_set_uri(Host *host, const char *uri, GError **err);
