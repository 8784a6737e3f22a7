/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A domain's XML and spec.yaml. A spec knows a part of what XML can say: that part is read from it,
 * and only what differs in that part is ever changed in it. Pure; any thread.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

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

/*
 * Of a VM that can have files of vmfs's: private disks and a seed. Of which image a disk is, which
 * its own XML does not say, is kept in the domain's <metadata>.
 */
typedef struct LvOwn {
	const char *dir; /* where they are */
	bool dac;	 /* libvirt would give them to another user, and is told not to */
} LvOwn;

/* A domain from nothing. own is NULL where there can be no such files: EOPNOTSUPP if they are
 * wanted. */
char *lv_xml_new(const LvNew *made, const Spec *spec, const LvOwn *own, GError **err);
/* `xml`, with what differs between both specs as `want` has it; a new MAC address is made from the
 * VM's id. Owned by the caller. */
char *lv_xml_edit(const char *xml, const Spec *have, const Spec *want, unsigned id,
		  const LvOwn *own, GError **err);
/* What the <metadata> is to have of the disks of this spec: an element; NULL: nothing. */
char *lv_xml_own(const Spec *spec, const LvOwn *own);
/* The same of the forwards into the guest, which XML knows nothing of. */
char *lv_xml_ports(const Spec *spec);
#define XML_PORTS_URI  "urn:vmfs:ports"
#define XML_SEED       "_seed" /* is called so as a disk: no disk of a spec is */
#define XML_OWN_URI    "urn:vmfs:disks"
#define XML_OWN_PREFIX "vmfs"
/*
 * The element of the device that "disks.data" names, as it is in `xml`; or, with `want`, as it is
 * to be plugged into such a domain. Owned by the caller.
 */
char *lv_xml_device(const char *xml, const Spec *want, const char *key, unsigned id,
		    const LvOwn *own, GError **err);
/* Where the variables of its UEFI are is left to libvirt. */
bool lv_xml_chooses_nvram(const char *xml);
/* The same with this file for them. Owned by the caller. */
char *lv_xml_name_nvram(const char *xml, const char *file);
/* As what a share is made: SHARE_VIRTIOFS or SHARE_9P. */
SpecShareType lv_xml_share_type(const SpecShare *share);
bool lv_xml_has_device(const char *xml, const char *key);
/* Is it something that a spec says but XML does not? Then it is not to be looked for there. */
bool lv_xml_lacks(const char *spec_key);
/* Of its network interfaces: of char *, owned by the caller. */
GPtrArray *lv_xml_macs(const char *xml);
/* What its devices of a kind ("disk", "interface", "filesystem") are called in a spec, in their
 * order. */
char **lv_xml_names(const char *xml, const char *kind);
/* Of a domain that runs, what its QEMU calls the back ends of its user networks: to the names of
 * their interfaces in a spec. */
GHashTable *lv_xml_netdevs(const char *xml);
/* What a host can do, as its <capabilities> say. */
typedef struct LvCaps {
	bool known;
	bool kvm;
	bool dac;  /* it gives files to the user of its VMMs */
	uid_t uid; /* that user, if so */
} LvCaps;
LvCaps lv_xml_caps(const char *xml);
/* The guest has its agent connected, in the XML of a domain that runs. */
bool lv_xml_has_agent(const char *xml);
