/* SPDX-License-Identifier: Apache-2.0 */
/* Walks over a domain's XML, and changes of it. Strings are owned by the caller. Pure. */
#pragma once

#include <glib.h>
#include <libxml/tree.h>
#include <stdbool.h>

#define XML_ALIAS "ua-" /* libvirt keeps such aliases of users as they are */
#define XML_AGENT "org.qemu.guest_agent.0"

/* NULL when its root is not called that. */
xmlDoc *xmltree_read(const char *text, const char *root);
/* Of a domain; or EINVAL. */
xmlDoc *xmltree_parse(const char *text, GError **err);
/* The first element of that name from this node on, among siblings. */
xmlNode *xmltree_next(xmlNode *after, const char *name);
/* "os/kernel": the first element at that path below. NULL from NULL. */
xmlNode *xmltree_find(xmlNode *from, const char *path);
char *xmltree_attr(const xmlNode *n, const char *name);
bool xmltree_attr_is(const xmlNode *n, const char *name, const char *value);
/* As it is, blanks and all. */
char *xmltree_text(const xmlNode *n);

/* A new last child, in the layout that libvirt writes. */
xmlNode *xmltree_add(xmlNode *parent, const char *name, const char *text);
/* An element goes (NULL: nothing does), and the blanks before it. */
void xmltree_drop(xmlNode *n);
/* The element `name` of parent has this text, or is not there (NULL). */
void xmltree_put(xmlNode *parent, const char *name, const char *text);
void xmltree_set(xmlNode *n, const char *attr, const char *value);
/* The element alone, as text. */
char *xmltree_dump(xmlNode *n);

/* xml.c: */

/* What the <metadata> has by that name, of ours; or NULL. */
xmlNode *xmltree_meta(xmlNode *domain, const char *name, const char *uri);
/* What a disk, or the index'th interface, filesystem or hostdev, is called in a spec. */
char *xmltree_device_name(xmlNode *device, unsigned index);
/* NULL: it is not one that a spec can describe. */
char *xmltree_disk_path(xmlNode *disk);
/* The host's directory; NULL likewise. */
char *xmltree_share_path(xmlNode *filesystem);
bool xmltree_is_virtiofs(const xmlNode *filesystem);
/* Of a device of the host, as a spec says it; NULL likewise. */
char *xmltree_pci_address(xmlNode *hostdev);
/* QEMU itself is its network, and can be told to forward ports. */
bool xmltree_can_forward(xmlNode *interface);
/* What it is connected to, as a spec says it; NULL likewise. */
char *xmltree_nic_network(xmlNode *interface);
