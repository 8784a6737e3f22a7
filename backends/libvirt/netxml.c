/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/libvirt/netxml.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libxml/parser.h>
#include <string.h>

#include "backends/libvirt/xmltree.h"
#include "vmfs/err.h"
#include "vmfs/specval.h"

#define X(text) ((const xmlChar *)(text))

/* ---- what it says ---- */

static unsigned prefix_of(const char *netmask)
{
	struct in_addr mask;

	return inet_pton(AF_INET, netmask, &mask) == 1
		       ? (unsigned)__builtin_popcount(ntohl(mask.s_addr))
		       : 0;
}

static char *address_of(xmlNode *ip)
{
	g_autofree char *address = xmltree_attr(ip, "address"),
			*prefix = xmltree_attr(ip, "prefix");
	g_autofree char *netmask = xmltree_attr(ip, "netmask");

	if (address && prefix)
		return g_strconcat(address, "/", prefix, NULL);
	return address && netmask ? g_strdup_printf("%s/%u", address, prefix_of(netmask)) : NULL;
}

static char *range_of(xmlNode *range)
{
	g_autofree char *start = xmltree_attr(range, "start"), *end = xmltree_attr(range, "end");

	return start && end ? g_strconcat(start, "-", end, NULL) : NULL;
}

NetSpec *lv_netxml_spec(const char *xml)
{
	xmlDoc *doc = xmltree_read(xml, "network");
	xmlNode *root = doc ? xmlDocGetRootElement(doc) : NULL, *forward;
	g_autofree char *name = xmltree_text(xmltree_find(root, "name"));
	NetSpec *s;

	if (!root || !name) {
		xmlFreeDoc(doc);
		return NULL;
	}
	s = netspec_new(name);
	forward = xmltree_find(root, "forward");
	if (forward) {
		g_free(s->forward);
		s->forward = xmltree_attr(forward, "mode");
		/* libvirt's own default. */
		if (!s->forward)
			s->forward = g_strdup("nat");
	}
	s->bridge = xmltree_attr(xmltree_find(root, "bridge"), "name");
	s->address = address_of(xmltree_find(root, "ip"));
	s->dhcp = range_of(xmltree_find(root, "ip/dhcp/range"));
	s->domain = xmltree_attr(xmltree_find(root, "domain"), "name");
	xmlFreeDoc(doc);
	return s;
}

/* ---- and what it is to say ---- */

static xmlNode *need(xmlNode *parent, const char *name)
{
	xmlNode *n = xmltree_find(parent, name);

	return n ? n : xmlNewTextChild(parent, NULL, X(name), NULL);
}

static void drop(xmlNode *n)
{
	if (!n)
		return;
	xmlUnlinkNode(n);
	xmlFreeNode(n);
}

static void set(xmlNode *n, const char *name, const char *value)
{
	(void)xmlSetProp(n, X(name), X(value));
}

/* The element has this attribute, or is not there. */
static void put(xmlNode *root, const char *element, const char *attr, const char *value)
{
	if (value)
		set(need(root, element), attr, value);
	else
		drop(xmltree_find(root, element));
}

static void put_address(xmlNode *root, const char *text)
{
	g_autofree char *address = NULL, *prefix = NULL;
	unsigned bits;
	xmlNode *ip;

	if (!text || !netspec_split(text, &address, &bits)) {
		drop(xmltree_find(root, "ip"));
		return;
	}
	ip = need(root, "ip");
	prefix = g_strdup_printf("%u", bits);
	set(ip, "address", address);
	set(ip, "prefix", prefix);
	(void)xmlUnsetProp(ip, X("netmask"));
	if (strchr(address, ':'))
		set(ip, "family", "ipv6");
	else
		(void)xmlUnsetProp(ip, X("family"));
}

static void put_dhcp(xmlNode *root, const char *text)
{
	xmlNode *ip = xmltree_find(root, "ip"), *range;
	g_auto(GStrv) part = text ? g_strsplit(text, "-", 2) : NULL;

	if (!ip)
		return;
	if (!part) {
		drop(xmltree_find(ip, "dhcp/range"));
		if (xmltree_find(ip, "dhcp") && !xmlFirstElementChild(xmltree_find(ip, "dhcp")))
			drop(xmltree_find(ip, "dhcp"));
		return;
	}
	range = need(need(ip, "dhcp"), "range");
	set(range, "start", g_strstrip(part[0]));
	set(range, "end", g_strstrip(part[1]));
}

static char *edit(xmlDoc *doc, const NetSpec *have, const NetSpec *want)
{
	xmlNode *root = xmlDocGetRootElement(doc);
	xmlBuffer *buf = xmlBufferCreate();
	char *text;

	if (strcmp(have->forward, want->forward))
		put(root, "forward", "mode", strcmp(want->forward, "none") ? want->forward : NULL);
	if (g_strcmp0(have->bridge, want->bridge))
		put(root, "bridge", "name", want->bridge);
	if (g_strcmp0(have->domain, want->domain))
		put(root, "domain", "name", want->domain);
	if (g_strcmp0(have->address, want->address))
		put_address(root, want->address);
	if (g_strcmp0(have->dhcp, want->dhcp))
		put_dhcp(root, want->dhcp);
	(void)xmlNodeDump(buf, doc, root, 0, 1);
	text = g_strdup((const char *)xmlBufferContent(buf));
	xmlBufferFree(buf);
	return text;
}

char *lv_netxml_edit(const char *xml, const NetSpec *spec, GError **err)
{
	xmlDoc *doc = xmltree_read(xml, "network");
	g_autoptr(NetSpec) have = doc ? lv_netxml_spec(xml) : NULL;
	char *text = have ? edit(doc, have, spec) : NULL;

	xmlFreeDoc(doc);
	if (!text)
		(void)err_set(err, EIO, "libvirt's own XML of the network makes no sense");
	return text;
}

char *lv_netxml_new(const NetSpec *spec, GError **err)
{
	/* A name that a spec can say needs no escapes. */
	g_autofree char *xml = g_strdup_printf("<network><name>%s</name></network>", spec->name);

	return lv_netxml_edit(xml, spec, err);
}
