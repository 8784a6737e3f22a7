/* SPDX-License-Identifier: Apache-2.0 */
/* From XML to a spec, and the document as such. */
#include "backends/libvirt/xml.h"

#include <errno.h>
#include <libxml/parser.h>
#include <string.h>

#include "backends/libvirt/xmltree.h"
#include "vmfs/err.h"
#include "vmfs/specval.h"

/* ---- what it says ---- */

static void quote(GString *out, const char *text)
{
	g_string_append_c(out, '"');
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			g_string_append_c(out, '\\');
		/* Neither YAML nor XML has control characters of its own. */
		g_string_append_c(out, (unsigned char)*text < ' ' ? ' ' : *text);
	}
	g_string_append_c(out, '"');
}

/* In bytes; 0: none. */
static uint64_t memory_of(const xmlNode *n)
{
	static const struct {
		const char *name;
		uint64_t bytes;
	} units[] = {
		{ "b", 1 },
		{ "bytes", 1 },
		{ "KB", 1000 },
		{ "k", 1024 },
		{ "KiB", 1024 },
		{ "MB", 1000000 },
		{ "M", 1 << 20 },
		{ "MiB", 1 << 20 },
		{ "GB", 1000000000 },
		{ "G", 1 << 30 },
		{ "GiB", 1 << 30 },
		{ "TB", 1000000000000 },
		{ "T", (uint64_t)1 << 40 },
		{ "TiB", (uint64_t)1 << 40 },
	};
	g_autofree char *text = xmltree_text(n), *unit = xmltree_attr(n, "unit");
	uint64_t value = text ? g_ascii_strtoull(text, NULL, 10) : 0;

	for (unsigned i = 0; unit && i < G_N_ELEMENTS(units); i++)
		if (!strcmp(units[i].name, unit))
			return value > SPEC_MAX_MEMORY / units[i].bytes ? 0
									: value * units[i].bytes;
	return value > SPEC_MAX_MEMORY >> 10 ? 0 : value << 10;
}

static void say_top(xmlNode *domain, GString *out)
{
	g_autofree char *cpus = xmltree_text(xmltree_find(domain, "vcpu"));
	uint64_t memory = memory_of(xmltree_find(domain, "memory"));
	uint64_t n = cpus ? g_ascii_strtoull(cpus, NULL, 10) : 0;

	g_string_append(out, "backend: libvirt\n");
	if (n && n <= SPEC_MAX_CPUS)
		g_string_append_printf(out, "cpus: %" G_GUINT64_FORMAT "\n", n);
	/* In whole MiB, of which a spec has 16 at least. */
	if (memory)
		g_string_append_printf(out, "memory: %" G_GUINT64_FORMAT "MiB\n",
				       MAX((memory + (1 << 20) - 1) >> 20, 16));
	if (xmltree_attr_is(domain, "type", "kvm"))
		g_string_append(out, "accel: kvm\n");
	else if (xmltree_attr_is(domain, "type", "qemu"))
		g_string_append(out, "accel: tcg\n");
}

static bool is_path(const char *text)
{
	return text && *text == '/' && strlen(text) < 4096;
}

static void say_boot(xmlNode *domain, GString *out)
{
	xmlNode *os = xmltree_find(domain, "os");
	g_autofree char *kernel = xmltree_text(xmltree_find(domain, "os/kernel"));
	g_autofree char *initrd = xmltree_text(xmltree_find(domain, "os/initrd"));
	g_autofree char *cmdline = xmltree_text(xmltree_find(domain, "os/cmdline"));

	if (xmltree_attr_is(os, "firmware", "efi") ||
	    xmltree_attr_is(xmltree_find(domain, "os/loader"), "type", "pflash"))
		g_string_append(out, "firmware: uefi\n");
	if (!is_path(kernel))
		return;
	g_string_append(out, "boot:\n  kernel: ");
	quote(out, kernel);
	if (is_path(initrd)) {
		g_string_append(out, "\n  initrd: ");
		quote(out, initrd);
	}
	if (cmdline && *cmdline && strlen(cmdline) < 4096) {
		g_string_append(out, "\n  cmdline: ");
		quote(out, cmdline);
	}
	g_string_append_c(out, '\n');
}

char *xmltree_device_name(xmlNode *device, unsigned index)
{
	g_autofree char *alias = xmltree_attr(xmltree_find(device, "alias"), "name");
	g_autofree char *target = xmltree_attr(xmltree_find(device, "target"), "dev");

	if (alias && g_str_has_prefix(alias, XML_ALIAS))
		return g_strdup(alias + strlen(XML_ALIAS));
	if (!strcmp((const char *)device->name, "disk") && target)
		return g_steal_pointer(&target);
	if (!strcmp((const char *)device->name, "filesystem")) {
		g_autofree char *tag = xmltree_attr(xmltree_find(device, "target"), "dir");

		return tag && specval_is_name(tag) ? g_steal_pointer(&tag)
						   : g_strdup_printf("share%u", index);
	}
	return g_strdup_printf(
		"%s%u", strcmp((const char *)device->name, "hostdev") ? "eth" : "hostdev", index);
}

char *xmltree_disk_path(xmlNode *disk)
{
	xmlNode *source = xmltree_find(disk, "source");
	g_autofree char *path = xmltree_attr(source, "file");
	g_autofree char *format = xmltree_attr(xmltree_find(disk, "driver"), "type");

	if (!path)
		path = xmltree_attr(source, "dev");
	if (!is_path(path) ||
	    !(xmltree_attr_is(disk, "device", "disk") || xmltree_attr_is(disk, "device", NULL)))
		return NULL;
	if (format && strcmp(format, "raw") && strcmp(format, "qcow2"))
		return NULL;
	return g_steal_pointer(&path);
}

xmlNode *xmltree_meta(xmlNode *domain, const char *name, const char *uri)
{
	xmlNode *metadata = xmltree_find(domain, "metadata");
	xmlNode *n = metadata ? xmltree_next(metadata->children, name) : NULL;

	while (n && !(n->ns && !strcmp((const char *)n->ns->href, uri)))
		n = xmltree_next(n->next, name);
	return n;
}

/* What the <metadata> says of the disk of that name, if it is that file still. */
static xmlNode *own_of(xmlNode *domain, const char *name, const char *path)
{
	xmlNode *own = xmltree_meta(domain, "disks", XML_OWN_URI);
	xmlNode *n = own ? xmltree_next(own->children, "disk") : NULL;

	while (n && !(xmltree_attr_is(n, "name", name) && xmltree_attr_is(n, "file", path)))
		n = xmltree_next(n->next, "disk");
	return n;
}

/* false: of nothing that a spec could say. */
static bool say_own(const xmlNode *own, GString *out)
{
	g_autofree char *image = xmltree_attr(own, "image"), *size = xmltree_attr(own, "size");
	g_autofree char *format = xmltree_attr(own, "format");
	const guint64 bytes = size ? g_ascii_strtoull(size, NULL, 10) : 0;

	if (!image && !bytes)
		return false;
	if (image) {
		g_string_append(out, "image: ");
		quote(out, image);
	}
	if (bytes)
		g_string_append_printf(out, "%ssize: %" G_GUINT64_FORMAT, image ? ", " : "", bytes);
	if (format && (!strcmp(format, "raw") || !strcmp(format, "qcow2")))
		g_string_append_printf(out, ", format: %s", format);
	return true;
}

static void say_disks(xmlNode *domain, xmlNode *devices, GString *out)
{
	bool any = false;

	for (xmlNode *n = xmltree_next(devices->children, "disk"); n;
	     n = xmltree_next(n->next, "disk")) {
		g_autofree char *path = xmltree_disk_path(n), *name = NULL;
		g_autofree char *format = xmltree_attr(xmltree_find(n, "driver"), "type");
		const xmlNode *own;

		if (!path)
			continue;
		name = xmltree_device_name(n, 0);
		if (!strcmp(name, XML_SEED))
			continue;
		own = own_of(domain, name, path);
		g_string_append_printf(out, "%s  %s: {", any ? "" : "disks:\n", name);
		if (!own || !say_own(own, out)) {
			g_string_append(out, "file: ");
			quote(out, path);
			if (format)
				g_string_append_printf(out, ", format: %s", format);
		}
		if (xmltree_find(n, "readonly"))
			g_string_append(out, ", readonly: true");
		g_string_append(out, "}\n");
		any = true;
	}
}

char *xmltree_nic_network(xmlNode *n)
{
	g_autofree char *name = NULL;

	if (xmltree_attr_is(n, "type", "user"))
		return g_strdup("user");
	if (xmltree_attr_is(n, "type", "network"))
		name = xmltree_attr(xmltree_find(n, "source"), "network");
	/* One of that name could not be told from it. */
	return name && specval_is_network(name) && strcmp(name, "user") ? g_steal_pointer(&name)
									: NULL;
}

bool xmltree_can_forward(xmlNode *n)
{
	const xmlNode *backend = xmltree_find(n, "backend");

	return xmltree_attr_is(n, "type", "user") &&
	       (!backend || xmltree_attr_is(backend, "type", NULL) ||
		xmltree_attr_is(backend, "type", "default"));
}

/* What the <metadata> says of it. */
static void say_ports(xmlNode *domain, const char *nic, GString *out)
{
	xmlNode *top = xmltree_meta(domain, "ports", XML_PORTS_URI);
	unsigned said = 0;

	for (xmlNode *n = top ? xmltree_next(top->children, "port") : NULL;
	     n && said < SPEC_MAX_ITEMS; n = xmltree_next(n->next, "port")) {
		g_autofree char *text = xmltree_attr(n, "forward");
		SpecPort port = { 0 };

		if (xmltree_attr_is(n, "nic", nic) && text && specval_port(text, &port, NULL))
			g_string_append_printf(out, "%s\"%s\"", said++ ? ", " : ", ports: [", text);
		g_free(port.address);
	}
	if (said)
		g_string_append_c(out, ']');
}

static void say_nics(xmlNode *domain, xmlNode *devices, GString *out)
{
	unsigned i = 0;
	bool any = false;

	for (xmlNode *n = xmltree_next(devices->children, "interface"); n;
	     n = xmltree_next(n->next, "interface"), i++) {
		g_autofree char *mac = xmltree_attr(xmltree_find(n, "mac"), "address");
		g_autofree char *name = NULL, *network = xmltree_nic_network(n);

		if (!network)
			continue;
		name = xmltree_device_name(n, i);
		g_string_append_printf(out, "%s  %s: {network: %s", any ? "" : "nics:\n", name,
				       network);
		if (mac)
			g_string_append_printf(out, ", mac: \"%s\"", mac);
		if (xmltree_can_forward(n))
			say_ports(domain, name, out);
		g_string_append(out, "}\n");
		any = true;
	}
	if (!any)
		g_string_append(out, "nics: {}\n");
}

bool xmltree_is_virtiofs(const xmlNode *filesystem)
{
	return xmltree_attr_is(xmltree_find((xmlNode *)filesystem, "driver"), "type", "virtiofs");
}

char *xmltree_share_path(xmlNode *n)
{
	g_autofree char *path = xmltree_attr(xmltree_find(n, "source"), "dir");

	return is_path(path) && (xmltree_attr_is(n, "type", "mount") ||
				 xmltree_attr_is(n, "type", NULL))
		       ? g_steal_pointer(&path)
		       : NULL;
}

static void say_shares(xmlNode *domain, xmlNode *devices, GString *out)
{
	unsigned i = 0;
	bool any = false;

	if (xmltree_attr_is(xmltree_find(domain, "memoryBacking/access"), "mode", "shared"))
		g_string_append(out, "shared_memory: true\n");
	for (xmlNode *n = xmltree_next(devices->children, "filesystem"); n;
	     n = xmltree_next(n->next, "filesystem"), i++) {
		g_autofree char *path = xmltree_share_path(n), *name = NULL;

		if (!path)
			continue;
		name = xmltree_device_name(n, i);
		g_string_append_printf(out, "%s  %s: {path: ", any ? "" : "shares:\n", name);
		quote(out, path);
		g_string_append_printf(out, ", type: %s%s}\n",
				       xmltree_is_virtiofs(n) ? "virtiofs" : "9p",
				       xmltree_find(n, "readonly") ? ", readonly: true" : "");
		any = true;
	}
}

char *xmltree_pci_address(xmlNode *hostdev)
{
	static const char *const parts[] = { "domain", "bus", "slot", "function" };
	static const unsigned max[] = { 0xffff, 0xff, 0x1f, 7 };
	xmlNode *address = xmltree_find(hostdev, "source/address");
	guint64 value[G_N_ELEMENTS(parts)] = { 0 };

	if (!address || !xmltree_attr_is(hostdev, "mode", "subsystem") ||
	    !xmltree_attr_is(hostdev, "type", "pci"))
		return NULL;
	for (unsigned i = 0; i < G_N_ELEMENTS(parts); i++) {
		g_autofree char *text = xmltree_attr(address, parts[i]);

		value[i] = text ? g_ascii_strtoull(text, NULL, 0) : 0;
		if (value[i] > max[i])
			return NULL;
	}
	return g_strdup_printf("%04x:%02x:%02x.%x", (unsigned)value[0], (unsigned)value[1],
			       (unsigned)value[2], (unsigned)value[3]);
}

static void say_devices(xmlNode *devices, GString *out)
{
	g_autoptr(GHashTable) said = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	unsigned i = 0;

	for (xmlNode *n = xmltree_next(devices->children, "hostdev"); n;
	     n = xmltree_next(n->next, "hostdev"), i++) {
		g_autofree char *pci = xmltree_pci_address(n), *name = NULL;

		if (!pci || !g_hash_table_add(said, g_strdup(pci)))
			continue;
		name = xmltree_device_name(n, i);
		g_string_append_printf(out, "%s  %s: {pci: \"%s\"}\n",
				       g_hash_table_size(said) > 1 ? "" : "devices:\n", name, pci);
	}
}

char *lv_xml_spec(const char *xml, GError **err)
{
	xmlDoc *doc = xmltree_parse(xml, err);
	xmlNode *domain = doc ? xmlDocGetRootElement(doc) : NULL, *devices;
	GString *out;

	if (!doc)
		return NULL;
	out = g_string_new(NULL);
	say_top(domain, out);
	say_boot(domain, out);
	devices = xmltree_find(domain, "devices");
	if (devices)
		say_disks(domain, devices, out);
	if (devices)
		say_nics(domain, devices, out);
	if (devices)
		say_shares(domain, devices, out);
	if (devices)
		say_devices(devices, out);
	xmlFreeDoc(doc);
	return g_string_free(out, FALSE);
}

bool lv_xml_has_agent(const char *xml)
{
	xmlDoc *doc = xmltree_parse(xml, NULL);
	xmlNode *devices = doc ? xmltree_find(xmlDocGetRootElement(doc), "devices") : NULL;
	bool found = false;

	for (xmlNode *n = devices ? xmltree_next(devices->children, "channel") : NULL; n && !found;
	     n = xmltree_next(n->next, "channel")) {
		xmlNode *target = xmltree_find(n, "target");

		found = xmltree_attr_is(target, "name", XML_AGENT) &&
			xmltree_attr_is(target, "state", "connected");
	}
	xmlFreeDoc(doc);
	return found;
}

/* "+64055:+64055" */
static bool read_label(const char *text, uid_t *ret)
{
	char *end;
	guint64 uid;

	if (!text || *text != '+')
		return false;
	uid = g_ascii_strtoull(text + 1, &end, 10);
	*ret = (uid_t)uid;
	return end > text + 1 && *end == ':' && uid < G_MAXUINT32;
}

LvCaps lv_xml_caps(const char *xml)
{
	LvCaps caps = { .known = true, .kvm = strstr(xml, "<domain type='kvm'") };
	xmlDoc *doc = xmltree_read(xml, "capabilities");
	xmlNode *model = doc ? xmltree_find(xmlDocGetRootElement(doc), "host/secmodel") : NULL;

	for (; model; model = xmltree_next(model->next, "secmodel")) {
		g_autofree char *name = xmltree_text(xmltree_find(model, "model"));
		g_autofree char *label = xmltree_text(xmltree_find(model, "baselabel"));

		if (!g_strcmp0(name, "dac"))
			caps.dac = read_label(label, &caps.uid);
	}
	xmlFreeDoc(doc);
	return caps;
}

GPtrArray *lv_xml_macs(const char *xml)
{
	GPtrArray *out = g_ptr_array_new_with_free_func(g_free);
	xmlDoc *doc = xmltree_parse(xml, NULL);
	xmlNode *devices = doc ? xmltree_find(xmlDocGetRootElement(doc), "devices") : NULL;

	for (xmlNode *n = devices ? xmltree_next(devices->children, "interface") : NULL; n;
	     n = xmltree_next(n->next, "interface")) {
		char *mac = xmltree_attr(xmltree_find(n, "mac"), "address");

		if (mac)
			g_ptr_array_add(out, mac);
	}
	xmlFreeDoc(doc);
	return out;
}

char **lv_xml_names(const char *xml, const char *kind)
{
	GPtrArray *out = g_ptr_array_new();
	xmlDoc *doc = xmltree_parse(xml, NULL);
	xmlNode *devices = doc ? xmltree_find(xmlDocGetRootElement(doc), "devices") : NULL;

	for (xmlNode *n = devices ? xmltree_next(devices->children, kind) : NULL; n;
	     n = xmltree_next(n->next, kind))
		g_ptr_array_add(out, xmltree_device_name(n, out->len));
	g_ptr_array_add(out, NULL);
	xmlFreeDoc(doc);
	return (char **)g_ptr_array_free(out, FALSE);
}

GHashTable *lv_xml_netdevs(const char *xml)
{
	GHashTable *out = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	xmlDoc *doc = xmltree_parse(xml, NULL);
	xmlNode *devices = doc ? xmltree_find(xmlDocGetRootElement(doc), "devices") : NULL;
	unsigned i = 0;

	for (xmlNode *n = devices ? xmltree_next(devices->children, "interface") : NULL; n;
	     n = xmltree_next(n->next, "interface"), i++) {
		g_autofree char *alias = xmltree_attr(xmltree_find(n, "alias"), "name");

		if (alias && xmltree_can_forward(n))
			g_hash_table_insert(out, g_strconcat("host", alias, NULL),
					    xmltree_device_name(n, i));
	}
	xmlFreeDoc(doc);
	return out;
}

bool lv_xml_is_of(const char *xml, const char *key, const char *name, GError **err)
{
	xmlDoc *doc = xmltree_parse(xml, err);
	g_autofree char *uuid = NULL, *called = NULL;

	if (!doc)
		return false;
	uuid = xmltree_text(xmltree_find(xmlDocGetRootElement(doc), "uuid"));
	called = xmltree_text(xmltree_find(xmlDocGetRootElement(doc), "name"));
	xmlFreeDoc(doc);
	if (!uuid || g_ascii_strcasecmp(uuid, key))
		return err_set(err, EINVAL, "its <uuid> is not that of this domain, which is %s",
			       key);
	return !g_strcmp0(called, name) ||
	       err_set(err, EINVAL, "its <name> is not '%s'; a machine is renamed with mv", name);
}
