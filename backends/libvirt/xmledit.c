/* SPDX-License-Identifier: Apache-2.0 */
/* From a spec to XML: each key of a spec that differs has a row here that changes its part. */
#include <errno.h>
#include <libxml/parser.h>
#include <string.h>
#include <unistd.h>

#include "backends/libvirt/xml.h"
#include "backends/libvirt/xmltree.h"
#include "vmfs/diskfile.h"
#include "vmfs/err.h"
#include "vmfs/seed.h"

#define X(text) ((const xmlChar *)(text))

/* The devices of a new domain take half of them, the rest are for plugging. More make each boot
 * longer. */
#define PORT  "    <controller type='pci' model='pcie-root-port'/>\n"
#define PORTS PORT PORT PORT PORT PORT PORT PORT PORT PORT PORT

static const char skeleton[] =
	"<domain>\n"
	"  <os>\n    <type arch='x86_64' machine='q35'>hvm</type>\n  </os>\n"
	"  <features>\n    <acpi/>\n    <apic/>\n  </features>\n"
	"  <cpu mode='maximum'/>\n"
	"  <devices>\n    <controller type='pci' index='0' model='pcie-root'/>\n" PORTS
	"    <serial type='pty'>\n      <target port='0'/>\n    </serial>\n"
	"    <console type='pty'>\n      <target type='serial' port='0'/>\n    </console>\n"
	"    <channel type='unix'>\n"
	"      <target type='virtio' name='" XML_AGENT "'/>\n    </channel>\n"
	"    <rng model='virtio'>\n"
	"      <backend model='random'>/dev/urandom</backend>\n    </rng>\n"
	"    <memballoon model='virtio'/>\n"
	"  </devices>\n"
	"</domain>\n";

/* ---- the keys ---- */

typedef struct Edit {
	xmlNode *domain;
	const Spec *want;
	const char *name;  /* of the disk or the nic */
	const LvNew *made; /* NULL: it is there already */
	const LvOwn *own;  /* NULL: it can have no files of its own */
	unsigned id;	   /* of the VM */
} Edit;

static bool set_cpus(const Edit *e, GError **err)
{
	g_autofree char *text = g_strdup_printf("%u", e->want->cpus);
	xmlNode *n = xmltree_find(e->domain, "vcpu");

	(void)err;
	xmltree_put(e->domain, "vcpu", text);
	if (n)
		(void)xmlUnsetProp(n, X("current"));
	return true;
}

static bool set_memory(const Edit *e, GError **err)
{
	static const char *const names[] = { "memory", "currentMemory" };
	g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, e->want->memory >> 10);

	(void)err;
	for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
		if (i && !xmltree_find(e->domain, names[i]))
			break;
		xmltree_put(e->domain, names[i], text);
		xmltree_set(xmltree_find(e->domain, names[i]), "unit", "KiB");
	}
	return true;
}

static bool set_accel(const Edit *e, GError **err)
{
	bool kvm = e->want->accel == ACCEL_KVM ||
		   (e->want->accel == ACCEL_AUTO && e->made && e->made->kvm);

	(void)err;
	/* What is there is as good as any to `auto`. */
	if (e->want->accel != ACCEL_AUTO || e->made)
		xmltree_set(e->domain, "type", kvm ? "kvm" : "qemu");
	return true;
}

/* Left to itself, libvirt may choose a firmware that boots only what Microsoft has signed. */
static bool set_firmware(const Edit *e, GError **err)
{
	xmlNode *os = xmltree_find(e->domain, "os"), *feature;

	(void)err;
	xmltree_drop(xmltree_find(os, "loader"));
	xmltree_drop(xmltree_find(os, "nvram"));
	xmltree_drop(xmltree_find(os, "firmware"));
	if (e->want->firmware != FIRMWARE_UEFI) {
		(void)xmlUnsetProp(os, X("firmware"));
		return true;
	}
	xmltree_set(os, "firmware", "efi");
	feature = xmltree_add(xmltree_add(os, "firmware", NULL), "feature", NULL);
	xmltree_set(feature, "enabled", "no");
	xmltree_set(feature, "name", "secure-boot");
	return true;
}

static bool set_boot(const Edit *e, GError **err)
{
	xmlNode *os = xmltree_find(e->domain, "os");

	(void)err;
	xmltree_put(os, "kernel", e->want->kernel);
	xmltree_put(os, "initrd", e->want->initrd);
	xmltree_put(os, "cmdline", e->want->cmdline && *e->want->cmdline ? e->want->cmdline : NULL);
	return true;
}

static xmlNode *find_device(xmlNode *devices, const char *kind, const char *name)
{
	unsigned i = 0;

	for (xmlNode *n = xmltree_next(devices->children, kind); n;
	     n = xmltree_next(n->next, kind), i++) {
		g_autofree char *have = xmltree_device_name(n, i);

		if (!strcmp(have, name))
			return n;
	}
	return NULL;
}

/* vda, vdb...: the first from there that no other disk has. */
static char *free_target(xmlNode *devices, unsigned first)
{
	for (unsigned i = first; i < first + SPEC_MAX_ITEMS; i++) {
		char *dev = i < 26 ? g_strdup_printf("vd%c", 'a' + i)
				   : g_strdup_printf("vd%c%c", 'a' + i / 26 - 1, 'a' + i % 26);
		bool taken = false;

		for (xmlNode *n = xmltree_next(devices->children, "disk"); n && !taken;
		     n = xmltree_next(n->next, "disk"))
			taken = xmltree_attr_is(xmltree_find(n, "target"), "dev", dev);
		if (!taken)
			return dev;
		g_free(dev);
	}
	return NULL;
}

static void set_alias(xmlNode *device, const char *name)
{
	g_autofree char *alias = g_strconcat(XML_ALIAS, name, NULL);

	xmltree_set(xmltree_add(device, "alias", NULL), "name", alias);
}

/* Where it is; NULL and EOPNOTSUPP: nowhere. Owned by the caller. */
static char *file_of(const Edit *e, const SpecDisk *d, GError **err)
{
	if (d->file || e->own)
		return diskfile_path(e->own ? e->own->dir : "", d);
	(void)err_set(
		err, EOPNOTSUPP,
		"disks.%s: backend 'libvirt' makes disks only for machines that vmfs has made "
		"itself, and on this machine only: name a file that is there, with `file`",
		d->name);
	return NULL;
}

/* It stays its owner's, and the images that it is based on stay theirs. */
static void keep_owner(xmlNode *source, bool keep)
{
	xmlNode *label = xmltree_next(source->children, "seclabel");

	while (label && !xmltree_attr_is(label, "model", "dac"))
		label = xmltree_next(label->next, "seclabel");
	if (!keep) {
		xmltree_drop(label);
		return;
	}
	if (!label)
		label = xmltree_add(source, "seclabel", NULL);
	xmltree_set(label, "model", "dac");
	xmltree_set(label, "relabel", "no");
}

static void fill_disk(const Edit *e, xmlNode *n, const SpecDisk *d, const char *file)
{
	const bool is_device = g_str_has_prefix(file, "/dev/");
	xmlNode *driver = xmltree_find(n, "driver"), *source = xmltree_find(n, "source");
	g_autofree char *old = xmltree_disk_path(n);

	if (!driver)
		driver = xmltree_add(n, "driver", NULL);
	if (!source)
		source = xmltree_add(n, "source", NULL);
	xmltree_set(n, "type", is_device ? "block" : "file");
	xmltree_set(driver, "name", "qemu");
	xmltree_set(driver, "type", diskfile_format(d));
	(void)xmlUnsetProp(source, X(is_device ? "file" : "dev"));
	xmltree_set(source, is_device ? "dev" : "file", file);
	if (!d->file)
		keep_owner(source, e->own->dac);
	else if (g_strcmp0(old, file))
		keep_owner(source, false);
	if (!d->readonly)
		xmltree_drop(xmltree_find(n, "readonly"));
	else if (!xmltree_find(n, "readonly"))
		(void)xmltree_add(n, "readonly", NULL);
}

static bool add_disk(const Edit *e, xmlNode *devices, const SpecDisk *d, unsigned first,
		     const char *file, GError **err)
{
	g_autofree char *dev = free_target(devices, first);
	xmlNode *n, *target;

	if (!dev)
		return err_set(err, ENOSPC, "disks.%s: there are too many disks", d->name);
	n = xmltree_add(devices, "disk", NULL);
	xmltree_set(n, "device", "disk");
	fill_disk(e, n, d, file);
	target = xmltree_add(n, "target", NULL);
	xmltree_set(target, "dev", dev);
	xmltree_set(target, "bus", "virtio");
	set_alias(n, d->name);
	return true;
}

static bool set_disk(const Edit *e, GError **err)
{
	xmlNode *devices = xmltree_find(e->domain, "devices");
	xmlNode *n = find_device(devices, "disk", e->name);
	g_autofree char *key = g_strconcat("disks.", e->name, NULL), *file = NULL;
	const SpecDisk *d = spec_named(e->want, key);

	if (!d) {
		xmltree_drop(n);
		return true;
	}
	file = file_of(e, d, err);
	if (!file)
		return false;
	if (!n)
		return add_disk(e, devices, d, 0, file, err);
	fill_disk(e, n, d, file);
	return true;
}

/* Behind all disks of the spec, which the guest's boot loader and fstab count: libvirt gives them
 * their places anew, in the order of their targets. */
static bool set_seed(const Edit *e, GError **err)
{
	const SpecDisk seed = { .name = (char *)XML_SEED,
				.format = (char *)"raw",
				.readonly = true };
	xmlNode *devices = xmltree_find(e->domain, "devices");
	g_autofree char *file = NULL;

	if (!e->own && e->want->cloud_init.given)
		return err_set(err, EOPNOTSUPP,
			       "cloud_init: backend 'libvirt' makes that disk only for machines "
			       "that vmfs has made itself, and on this machine only");
	if (!e->own)
		return true;
	xmltree_drop(find_device(devices, "disk", XML_SEED));
	if (!e->want->cloud_init.given)
		return true;
	file = g_build_filename(e->own->dir, SEED_NAME, NULL);
	return add_disk(e, devices, &seed, SPEC_MAX_ITEMS, file, err);
}

static xmlNode *make_own(const Spec *spec, const LvOwn *own)
{
	xmlNode *top = xmlNewNode(NULL, X("disks"));

	for (unsigned i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];
		g_autofree char *file = diskfile_path(own->dir, d), *size = NULL;
		xmlNode *n = d->file ? NULL : xmlNewChild(top, NULL, X("disk"), NULL);

		if (!n)
			continue;
		xmltree_set(n, "name", d->name);
		xmltree_set(n, "file", file);
		if (d->image)
			xmltree_set(n, "image", d->image);
		if (d->format)
			xmltree_set(n, "format", d->format);
		size = g_strdup_printf("%" G_GUINT64_FORMAT, d->size);
		if (d->size)
			xmltree_set(n, "size", size);
	}
	if (top->children)
		return top;
	xmlFreeNode(top);
	return NULL;
}

/* What the <metadata> has by that name (taken; NULL: nothing). */
static void put_meta(xmlNode *domain, const char *name, const char *uri, xmlNode *top)
{
	xmlNode *metadata = xmltree_find(domain, "metadata");

	xmltree_drop(xmltree_meta(domain, name, uri));
	if (!top) {
		if (metadata && !xmlFirstElementChild(metadata))
			xmltree_drop(metadata);
		return;
	}
	if (!metadata)
		metadata = xmltree_add(domain, "metadata", NULL);
	xmlSetNs(top, xmlNewNs(top, X(uri), X(XML_OWN_PREFIX)));
	(void)xmlAddChild(metadata, top);
}

/* What is said there of disks that are not private any more means nothing, but is of no use. */
static void set_own(const Edit *e)
{
	if (e->own)
		put_meta(e->domain, "disks", XML_OWN_URI, make_own(e->want, e->own));
}

static xmlNode *make_ports(const Spec *spec)
{
	xmlNode *top = xmlNewNode(NULL, X("ports"));

	for (unsigned i = 0; i < spec->nics->len; i++) {
		const SpecNic *nic = spec->nics->pdata[i];

		for (unsigned k = 0; k < nic->ports->len; k++) {
			const SpecPort *p = nic->ports->pdata[k];
			g_autofree char *text =
				g_strdup_printf("%s:%u:%u%s", p->address, p->host_port,
						p->guest_port, p->udp ? "/udp" : "");
			xmlNode *n = xmlNewChild(top, NULL, X("port"), NULL);

			xmltree_set(n, "nic", nic->name);
			xmltree_set(n, "forward", text);
		}
	}
	if (top->children)
		return top;
	xmlFreeNode(top);
	return NULL;
}

static void connect_nic(xmlNode *n, const char *network)
{
	const bool user = !strcmp(network, "user");
	g_autofree char *have = xmltree_nic_network(n);

	if (!g_strcmp0(have, network))
		return;
	xmltree_drop(xmltree_find(n, "source"));
	xmltree_set(n, "type", user ? "user" : "network");
	if (!user)
		xmltree_set(xmltree_add(n, "source", NULL), "network", network);
}

static bool set_nic(const Edit *e, GError **err)
{
	xmlNode *devices = xmltree_find(e->domain, "devices");
	xmlNode *n = find_device(devices, "interface", e->name), *mac;
	g_autofree char *key = g_strconcat("nics.", e->name, NULL), *made = NULL;
	const SpecNic *nic = spec_named(e->want, key);
	const bool is_new = !n;
	guint index = 0;

	put_meta(e->domain, "ports", XML_PORTS_URI, make_ports(e->want));
	if (!nic) {
		xmltree_drop(n);
		return true;
	}
	if (!n) {
		n = xmltree_add(devices, "interface", NULL);
		xmltree_set(n, "type", "user");
		xmltree_set(xmltree_add(n, "model", NULL), "type", "virtio");
		set_alias(n, e->name);
	}
	connect_nic(n, nic->network);
	if (nic->ports->len && !xmltree_can_forward(n))
		return err_set(err, EOPNOTSUPP,
			       "nics.%s.ports: only libvirt's default network of users can be told "
			       "to forward ports while it runs; see <backend> in domain.xml",
			       nic->name);
	(void)g_ptr_array_find(e->want->nics, nic, &index);
	if (!nic->mac && is_new)
		made = g_strdup_printf("52:54:00:%02x:%02x:%02x", (e->id >> 8) & 0xff, e->id & 0xff,
				       index & 0xff);
	if (nic->mac || made) {
		mac = xmltree_find(n, "mac");
		xmltree_set(mac ? mac : xmltree_add(n, "mac", NULL), "address",
			    nic->mac ? nic->mac : made);
	}
	return true;
}

/* Here; and so, as one may hope, on the other hosts. */
static gpointer once_virtiofsd(gpointer arg)
{
	static const char *const paths[] = { "/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd" };
	bool *found = arg;

	for (unsigned i = 0; i < G_N_ELEMENTS(paths); i++)
		*found |= !access(paths[i], X_OK);
	return NULL;
}

SpecShareType lv_xml_share_type(const SpecShare *share)
{
	static GOnce once = G_ONCE_INIT;
	static bool found;

	if (share->type != SHARE_AUTO)
		return share->type;
	(void)g_once(&once, once_virtiofsd, &found);
	return found && !share->readonly ? SHARE_VIRTIOFS : SHARE_9P;
}

/* virtiofsd has to see the guest's memory. What is there already is left as it is. */
static bool set_shared_memory(const Edit *e, GError **err)
{
	xmlNode *memory = xmltree_find(e->domain, "memoryBacking"), *access;
	bool wanted = e->want->shared_memory;

	(void)err;
	for (unsigned i = 0; i < e->want->shares->len; i++)
		wanted |= lv_xml_share_type(e->want->shares->pdata[i]) == SHARE_VIRTIOFS;
	access = xmltree_find(memory, "access");
	if (wanted == xmltree_attr_is(access, "mode", "shared"))
		return true;
	if (!wanted) {
		xmltree_drop(access);
		if (xmltree_attr_is(xmltree_find(memory, "source"), "type", "memfd"))
			xmltree_drop(xmltree_find(memory, "source"));
		if (!xmlFirstElementChild(memory))
			xmltree_drop(memory);
		return true;
	}
	if (!memory)
		memory = xmltree_add(e->domain, "memoryBacking", NULL);
	if (!xmltree_find(memory, "source") && !xmltree_find(memory, "hugepages"))
		xmltree_set(xmltree_add(memory, "source", NULL), "type", "memfd");
	xmltree_set(access ? access : xmltree_add(memory, "access", NULL), "mode", "shared");
	return true;
}

/* Where virtiofsd or QEMU has all rights, the guest's users are those of the host. */
static void fill_share(xmlNode *n, const SpecShare *share)
{
	const bool virtiofs = lv_xml_share_type(share) == SHARE_VIRTIOFS;
	xmlNode *driver = xmltree_find(n, "driver"), *source = xmltree_find(n, "source");

	if (!driver)
		driver = xmltree_add(n, "driver", NULL);
	if (virtiofs != xmltree_is_virtiofs(n) || xmltree_attr_is(driver, "type", NULL)) {
		xmltree_set(driver, "type", virtiofs ? "virtiofs" : "path");
		xmltree_set(n, "type", "mount");
		xmltree_set(n, "accessmode", virtiofs ? "passthrough" : "squash");
	}
	xmltree_set(source ? source : xmltree_add(n, "source", NULL), "dir", share->path);
	if (!share->readonly)
		xmltree_drop(xmltree_find(n, "readonly"));
	else if (!xmltree_find(n, "readonly"))
		(void)xmltree_add(n, "readonly", NULL);
}

static bool set_share(const Edit *e, GError **err)
{
	xmlNode *devices = xmltree_find(e->domain, "devices");
	xmlNode *n = find_device(devices, "filesystem", e->name);
	g_autofree char *key = g_strconcat("shares.", e->name, NULL);
	const SpecShare *share = spec_named(e->want, key);

	(void)set_shared_memory(e, err);
	if (!share) {
		xmltree_drop(n);
		return true;
	}
	if (!n) {
		n = xmltree_add(devices, "filesystem", NULL);
		xmltree_set(xmltree_add(n, "target", NULL), "dir", e->name);
		set_alias(n, e->name);
	}
	fill_share(n, share);
	return true;
}

/* As with other backends, nothing is taken away from a driver of the host: managed='yes' would. */
static xmlNode *add_device(xmlNode *devices, const char *name)
{
	xmlNode *n = xmltree_add(devices, "hostdev", NULL);

	xmltree_set(n, "mode", "subsystem");
	xmltree_set(n, "type", "pci");
	xmltree_set(n, "managed", "no");
	(void)xmltree_add(xmltree_add(n, "source", NULL), "address", NULL);
	set_alias(n, name);
	return n;
}

static bool set_device(const Edit *e, GError **err)
{
	xmlNode *devices = xmltree_find(e->domain, "devices"), *address;
	xmlNode *n = find_device(devices, "hostdev", e->name);
	g_autofree char *key = g_strconcat("devices.", e->name, NULL);
	const SpecDevice *d = spec_named(e->want, key);
	g_auto(GStrv) part = d && d->pci ? g_strsplit_set(d->pci, ":.", 4) : NULL;
	static const char *const names[] = { "domain", "bus", "slot", "function" };

	if (!d) {
		xmltree_drop(n);
		return true;
	}
	if (!part)
		return err_set(err, EOPNOTSUPP, "%s: backend 'libvirt' passes PCI devices only",
			       key);
	if (!n)
		n = add_device(devices, e->name);
	address = xmltree_find(n, "source/address");
	for (unsigned i = 0; address && i < G_N_ELEMENTS(names); i++) {
		g_autofree char *value = g_strconcat("0x", part[i], NULL);

		xmltree_set(address, names[i], value);
	}
	return true;
}

static bool set_display(const Edit *e, GError **err)
{
	static const char *const models[] = { [DISPLAY_AUTO] = "vga",
					      [DISPLAY_NONE] = "none",
					      [DISPLAY_VGA] = "vga",
					      [DISPLAY_VIRTIO] = "virtio" };
	xmlNode *devices = xmltree_find(e->domain, "devices"), *video;

	(void)err;
	video = xmltree_find(devices, "video");
	if (!video)
		video = xmltree_add(devices, "video", NULL);
	if (!xmltree_find(video, "model"))
		(void)xmltree_add(video, "model", NULL);
	xmltree_set(xmltree_find(video, "model"), "type", models[spec_display(e->want)]);
	return true;
}

/* The rows: what a key of a spec changes. Those without a function are not in the XML. */
static const struct {
	const char *key;
	bool named; /* key.NAME.anything */
	bool (*set)(const Edit *e, GError **err);
} keys[] = {
	{ "cpus", false, set_cpus },
	{ "memory", false, set_memory },
	{ "accel", false, set_accel },
	{ "firmware", false, set_firmware },
	{ "boot", true, set_boot },
	{ "disks", true, set_disk },
	{ "nics", true, set_nic },
	{ "shares", true, set_share },
	{ "shared_memory", false, set_shared_memory },
	{ "devices", true, set_device },
	{ "display", false, set_display },
	{ "cloud_init", false, set_seed },
	{ "backend", false, NULL },
	{ "stop_timeout", false, NULL },
	{ "autostart", false, NULL },
	{ "vnc", false, NULL },
};

static int row_of(const char *spec_key)
{
	size_t len = strcspn(spec_key, ".");

	for (unsigned i = 0; i < G_N_ELEMENTS(keys); i++)
		if (strlen(keys[i].key) == len && !strncmp(keys[i].key, spec_key, len))
			return (int)i;
	return -1;
}

/* A display is written and not read: what is there may be much more than a spec can say. And a seed
 * is read by the guest alone. */
bool lv_xml_lacks(const char *spec_key)
{
	int row = row_of(spec_key);

	return row < 0 || !keys[row].set || keys[row].set == set_display ||
	       keys[row].set == set_seed;
}

static bool apply(const char *spec_key, Edit *e, GError **err)
{
	g_auto(GStrv) part = g_strsplit(spec_key, ".", 3);
	int row = row_of(spec_key);

	if (row < 0)
		return err_set(err, EOPNOTSUPP, "%s: backend 'libvirt' cannot do that", spec_key);
	e->name = part[1];
	/* The order of disks alone: it is that of the XML. */
	if (!keys[row].set || (keys[row].named && !part[1]))
		return true;
	return keys[row].set(e, err);
}

char *lv_xml_edit(const char *xml, const Spec *have, const Spec *want, unsigned id,
		  const LvOwn *own, GError **err)
{
	g_autoptr(GPtrArray) diff = spec_diff(want, have);
	xmlDoc *doc = xmltree_parse(xml, err);
	Edit e = { .want = want, .id = id, .own = own };
	bool ok = doc;
	char *text = NULL;

	if (!doc)
		return NULL;
	e.domain = xmlDocGetRootElement(doc);
	for (unsigned i = 0; ok && i < diff->len; i++)
		ok = apply(diff->pdata[i], &e, err);
	if (ok && own)
		ok = set_seed(&e, err);
	if (ok) {
		set_own(&e);
		text = xmltree_dump(e.domain);
	}
	xmlFreeDoc(doc);
	return text;
}

/* The element that a key like "disks.data" names; NULL: there is none. */
static xmlNode *device_of(xmlDoc *doc, const char *key)
{
	xmlNode *devices = doc ? xmltree_find(xmlDocGetRootElement(doc), "devices") : NULL;
	const char *dot = strchr(key, '.');

	const char *kind = g_str_has_prefix(key, "disks.")     ? "disk"
			   : g_str_has_prefix(key, "shares.")  ? "filesystem"
			   : g_str_has_prefix(key, "devices.") ? "hostdev"
							       : "interface";

	return devices && dot ? find_device(devices, kind, dot + 1) : NULL;
}

/* Takes it. */
static char *meta_text(xmlNode *top)
{
	xmlDoc *doc = xmlNewDoc(X("1.0"));
	char *text = NULL;

	if (top) {
		(void)xmlDocSetRootElement(doc, top);
		text = xmltree_dump(top);
	}
	xmlFreeDoc(doc);
	return text;
}

char *lv_xml_own(const Spec *spec, const LvOwn *own)
{
	return meta_text(make_own(spec, own));
}

char *lv_xml_ports(const Spec *spec)
{
	return meta_text(make_ports(spec));
}

char *lv_xml_device(const char *xml, const Spec *want, const char *key, unsigned id,
		    const LvOwn *own, GError **err)
{
	xmlDoc *doc = xmltree_parse(xml, err);
	Edit e = { .want = want, .id = id, .own = own };
	bool ok = doc != NULL;
	xmlNode *n = NULL;
	char *text = NULL;

	if (ok && want) {
		e.domain = xmlDocGetRootElement(doc);
		ok = apply(key, &e, err);
	}
	if (ok)
		n = device_of(doc, key);
	if (n)
		text = xmltree_dump(n);
	else if (ok)
		(void)err_set(err, ENOENT, "%s: there is no such device", key);
	xmlFreeDoc(doc);
	return text;
}

bool lv_xml_has_device(const char *xml, const char *key)
{
	xmlDoc *doc = xmltree_parse(xml, NULL);
	const bool found = device_of(doc, key) != NULL;

	xmlFreeDoc(doc);
	return found;
}

bool lv_xml_chooses_nvram(const char *xml)
{
	xmlDoc *doc = xmltree_parse(xml, NULL);
	xmlNode *os = doc ? xmltree_find(xmlDocGetRootElement(doc), "os") : NULL;
	g_autofree char *file = xmltree_text(xmltree_find(os, "nvram"));
	const bool chooses = xmltree_attr_is(os, "firmware", "efi") && (!file || !*file);

	xmlFreeDoc(doc);
	return chooses;
}

char *lv_xml_name_nvram(const char *xml, const char *file)
{
	xmlDoc *doc = xmltree_parse(xml, NULL);
	xmlNode *domain = doc ? xmlDocGetRootElement(doc) : NULL;
	char *text;

	if (!doc)
		return g_strdup(xml);
	xmltree_put(xmltree_find(domain, "os"), "nvram", file);
	text = xmltree_dump(domain);
	xmlFreeDoc(doc);
	return text;
}

static bool add_all(Edit *e, GError **err)
{
	const Spec *s = e->want;

	if (!set_accel(e, err) || !set_boot(e, err) || !set_display(e, err) ||
	    (s->firmware == FIRMWARE_UEFI && !set_firmware(e, err)))
		return false;
	for (unsigned i = 0; i < s->disks->len; i++) {
		e->name = ((const SpecDisk *)s->disks->pdata[i])->name;
		if (!set_disk(e, err))
			return false;
	}
	for (unsigned i = 0; i < s->nics->len; i++) {
		e->name = ((const SpecNic *)s->nics->pdata[i])->name;
		if (!set_nic(e, err))
			return false;
	}
	for (unsigned i = 0; i < s->shares->len; i++) {
		e->name = ((const SpecShare *)s->shares->pdata[i])->name;
		if (!set_share(e, err))
			return false;
	}
	for (unsigned i = 0; i < s->devices->len; i++) {
		e->name = ((const SpecDevice *)s->devices->pdata[i])->name;
		if (!set_device(e, err))
			return false;
	}
	if (!set_shared_memory(e, err) || !set_seed(e, err))
		return false;
	set_own(e);
	return true;
}

char *lv_xml_new(const LvNew *made, const Spec *spec, const LvOwn *own, GError **err)
{
	xmlDoc *doc = xmltree_parse(skeleton, err);
	Edit e = { .want = spec, .made = made, .own = own, .id = made->id };
	char *text = NULL;

	if (!doc)
		return NULL;
	e.domain = xmlDocGetRootElement(doc);
	xmltree_put(e.domain, "name", made->name);
	xmltree_put(e.domain, "uuid", made->key);
	(void)set_memory(&e, NULL);
	(void)set_cpus(&e, NULL);
	if (add_all(&e, err))
		text = xmltree_dump(e.domain);
	xmlFreeDoc(doc);
	return text;
}
