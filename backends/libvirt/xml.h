/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A domain's XML and spec.yaml. A spec knows a part of what XML can say: that part is read from it,
 * and only what differs in that part is ever changed in it. Pure; any thread.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vmfs/spec.h"

/* Is it that of the domain `key`, which is called `name`? EINVAL: it is another's, or none's. */
bool lv_xml_is_of(const char *xml, const char *key, const char *name, GError **err);
/* What the document says, as text of a spec.yaml. EINVAL when it is no domain's. */
char *lv_xml_spec(const char *xml, GError **err);

/* What is not in a spec, of a domain that is to be made. */
typedef struct LvNew {
	const char *name, *key;
	unsigned id;
	bool kvm; /* the host has it: for `accel: auto` */
} LvNew;

/* A domain from nothing. */
char *lv_xml_new(const LvNew *made, const Spec *spec, GError **err);
/* `xml`, with what differs between both specs as `want` has it; a new MAC address is made from the
 * VM's id. Owned by the caller. */
char *lv_xml_edit(const char *xml, const Spec *have, const Spec *want, unsigned id, GError **err);
/*
 * The element of the device that "disks.data" names, as it is in `xml`; or, with `want`, as it is
 * to be plugged into such a domain. Owned by the caller.
 */
char *lv_xml_device(const char *xml, const Spec *want, const char *key, unsigned id, GError **err);
bool lv_xml_has_device(const char *xml, const char *key);
/* Is it something that a spec says but XML does not? Then it is not to be looked for there. */
bool lv_xml_lacks(const char *spec_key);
/* Of its network interfaces: of char *, owned by the caller. */
GPtrArray *lv_xml_macs(const char *xml);
/* What its devices of a kind ("disk", "interface") are called in a spec, in their order. */
char **lv_xml_names(const char *xml, const char *kind);
/* The guest has its agent connected, in the XML of a domain that runs. */
bool lv_xml_has_agent(const char *xml);
