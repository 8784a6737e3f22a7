/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/libvirt/xmltree.h"

#include <errno.h>
#include <libxml/parser.h>
#include <string.h>

#include "vmfs/err.h"

#define MAX_XML (16u << 20)
#define X(text) ((const xmlChar *)(text))

/* ---- walking ---- */

xmlDoc *xmltree_read(const char *text, const char *root)
{
	const size_t len = strlen(text);
	xmlDoc *doc =
		len > MAX_XML
			? NULL
			: xmlReadMemory(text, (int)len, NULL, NULL,
					XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
	const xmlNode *found = doc ? xmlDocGetRootElement(doc) : NULL;

	if (found && !strcmp((const char *)found->name, root))
		return doc;
	xmlFreeDoc(doc);
	return NULL;
}

xmlDoc *xmltree_parse(const char *text, GError **err)
{
	xmlDoc *doc = xmltree_read(text, "domain");

	if (!doc)
		(void)err_set(err, EINVAL, "that is not the XML of a domain");
	return doc;
}

xmlNode *xmltree_next(xmlNode *after, const char *name)
{
	for (xmlNode *n = after; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE && !strcmp((const char *)n->name, name))
			return n;
	return NULL;
}

xmlNode *xmltree_find(xmlNode *from, const char *path)
{
	g_auto(GStrv) names = g_strsplit(path, "/", -1);

	for (unsigned i = 0; from && names[i]; i++)
		from = xmltree_next(from->children, names[i]);
	return from;
}

char *xmltree_attr(const xmlNode *n, const char *name)
{
	xmlChar *value = n ? xmlGetNoNsProp(n, (const xmlChar *)name) : NULL;
	char *copy = g_strdup((char *)value);

	xmlFree(value);
	return copy;
}

bool xmltree_attr_is(const xmlNode *n, const char *name, const char *value)
{
	g_autofree char *have = xmltree_attr(n, name);

	return !g_strcmp0(have, value);
}

char *xmltree_text(const xmlNode *n)
{
	xmlChar *value = n ? xmlNodeGetContent(n) : NULL;
	char *copy = g_strdup((char *)value);

	xmlFree(value);
	return copy;
}

/* ---- changing ---- */

xmlNode *xmltree_add(xmlNode *parent, const char *name, const char *text)
{
	unsigned depth = 0;
	g_autofree char *indent = NULL, *closing = NULL;
	xmlNode *last = parent->last, *child;

	for (const xmlNode *n = parent; n->parent && n->parent->type == XML_ELEMENT_NODE;
	     n = n->parent)
		depth++;
	indent = g_strdup_printf("\n%*s", 2 * (int)(depth + 1), "");
	closing = g_strdup_printf("\n%*s", 2 * (int)depth, "");
	if (last && last->type == XML_TEXT_NODE && xmlIsBlankNode(last)) {
		xmlUnlinkNode(last);
		xmlFreeNode(last);
	}
	(void)xmlAddChild(parent, xmlNewText(X(indent)));
	child = xmlNewTextChild(parent, NULL, X(name), text ? X(text) : NULL);
	(void)xmlAddChild(parent, xmlNewText(X(closing)));
	return child;
}

static void set_text(xmlNode *n, const char *text)
{
	xmlChar *e = xmlEncodeSpecialChars(n->doc, X(text));

	xmlNodeSetContent(n, e);
	xmlFree(e);
}

void xmltree_set(xmlNode *n, const char *name, const char *value)
{
	(void)xmlSetProp(n, X(name), X(value));
}

void xmltree_drop(xmlNode *n)
{
	xmlNode *blank;

	if (!n)
		return;
	blank = n->prev;
	xmlUnlinkNode(n);
	xmlFreeNode(n);
	if (blank && blank->type == XML_TEXT_NODE && xmlIsBlankNode(blank)) {
		xmlUnlinkNode(blank);
		xmlFreeNode(blank);
	}
}

void xmltree_put(xmlNode *parent, const char *name, const char *text)
{
	xmlNode *n = xmltree_find(parent, name);

	if (!text)
		xmltree_drop(n);
	else if (n)
		set_text(n, text);
	else
		(void)xmltree_add(parent, name, text);
}

char *xmltree_dump(xmlNode *n)
{
	/* The element alone: libvirt's own text has no declaration either. */
	xmlBuffer *buf = xmlBufferCreate();
	char *text;

	(void)xmlNodeDump(buf, n->doc, n, 0, 0);
	text = g_strconcat((const char *)xmlBufferContent(buf), "\n", NULL);
	xmlBufferFree(buf);
	return text;
}
