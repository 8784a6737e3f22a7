/* SPDX-License-Identifier: Apache-2.0 */
/* spec.yaml of a network of a host: from text, to text. Pure; any thread. */
#pragma once

#include <glib.h>
#include <stdbool.h>

#define NETSPEC_MAX_TEXT (64u << 10) /* bytes of a document */

typedef struct NetSpec {
	char *name; /* of the network; not in the document */
	char *forward;
	char *bridge;  /* NULL: libvirt names it */
	char *address; /* "192.168.150.1/24"; or NULL */
	char *dhcp;    /* "192.168.150.2-192.168.150.254"; or NULL */
	char *domain;  /* or NULL */
	bool autostart;
} NetSpec;

/* What an empty document says. */
NetSpec *netspec_new(const char *name);
void netspec_free(NetSpec *s);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NetSpec, netspec_free)

/* EINVAL with line and key, or key. */
NetSpec *netspec_parse(const char *name, GBytes *text, GError **err);
/* Of a document that is still being written: false when nothing that follows can make it good. */
bool netspec_judge(GBytes *text, GError **err);
char *netspec_text(const NetSpec *s);
/* An address with its prefix ("192.168.150.1/24"), taken apart; ret_address is owned by the caller.
 */
bool netspec_split(const char *address, char **ret_address, unsigned *ret_prefix);

/* One line a key, for help and the manual. */
void netspec_help(GString *out);
