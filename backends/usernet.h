/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's user network, in the words of its monitor for people, which is the only one that tells of
 * it: forwards into the guest, and whom the guest has met. Pure, but for usernet_report().
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

#include "backends/backend.h"

#define USERNET_INFO "info usernet"

typedef struct UsernetRow {
	char *nic; /* by its name in a spec */
	bool forward, udp;
	char src[64];
	unsigned src_port, dst_port;
} UsernetRow;

/*
 * What it says to USERNET_INFO, of UsernetRow. `name` tells what the nic at a netdev is called
 * (owned by the caller); what is at others (NULL) is left out.
 */
GPtrArray *usernet_parse(const char *text, char *(*name)(const void *arg, const char *netdev),
			 const void *arg);

/* The `status` lines of the forwards of that spec; those of bv->spec that are not there go. */
void usernet_report(BackendVm *bv, const Spec *spec, const GPtrArray *rows);
/* Some nic of it has ports. */
bool usernet_has_ports(const Spec *spec);
/* The host's port of a forward of that nic, of one from port 0 as well; 0: it is not there. */
unsigned usernet_port(const GPtrArray *rows, const SpecNic *nic, const SpecPort *port);
/* Those of its ports (borrowed) that are there. */
GPtrArray *usernet_present(const GPtrArray *rows, const SpecNic *nic);
/*
 * "127.0.0.1:40427": what leads to the guest's ssh server, of a host that is to be reached at
 * `host`; NULL: nothing does. Owned by the caller.
 */
char *usernet_ssh(const GPtrArray *rows, const char *host);
/* The guest's own addresses, so far as connections that it made tell: of char *. */
GPtrArray *usernet_ips(const GPtrArray *rows);

/* A line for that monitor, and the one that undoes it (NULL: nothing does). */
typedef struct UsernetMove {
	char *forward, *back;
} UsernetMove;

/* Where a nic's forwards end: its netdev, and the guest's address; "": the first of that network.
 */
typedef struct UsernetEnd {
	const char *netdev, *guest;
} UsernetEnd;

/* From the forwards that the nic has to those that it is to have, of UsernetMove: those that go
 * first, for one that comes may want their port. */
GPtrArray *usernet_plan(const GPtrArray *rows, const UsernetEnd *end, const SpecNic *have,
			const SpecNic *want);
/* Forward a free port of 127.0.0.1 to the guest's ssh server. Owned by the caller. */
char *usernet_add_ssh(const UsernetEnd *end);
/* What went wrong by what was said to such a line; NULL: nothing. `uid`: whose QEMU it is. */
GError *usernet_error(const char *key, const UsernetMove *m, const char *said, uid_t uid);
