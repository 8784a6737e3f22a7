/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spec.yaml, driven by tables: one row a key, one table a mapping. Reading (specread.c), presets,
 * freeing, differences and help all walk the rows; a new key is one row and one member of its
 * struct.
 */
#include "vmfs/spec.h"

#include <string.h>

#include "vmfs/specfield.h"
#include "vmfs/specval.h"

#define MIB	(1ull << 20)
#define TIB	(1ull << 40)
#define HOUR_MS 3600000

static const char *const backend_names[] = { "qemu", "libvirt", "sim", NULL };
static const char *const accel_names[] = { "auto", "kvm", "tcg", NULL };
static const char *const machine_names[] = { "q35", "microvm", NULL };
static const char *const firmware_names[] = { "bios", "uefi", NULL };
static const char *const restart_names[] = { "never", "on-crash", "always", NULL };
static const char *const display_names[] = { "auto", "none", "vga", "virtio", NULL };
static const char *const format_names[] = { "raw", "qcow2", NULL };
static const char *const bus_names[] = { "virtio", "scsi", NULL };
static const char *const share_type_names[] = { "auto", "virtiofs", "9p", NULL };

// clang-format off
static const Field ssh_fields[] = {
	{ "user", FIELD_TEXT, offsetof(Spec, ssh_user), .of_core = true, .preset = "root",
	  .doc = "who ssh_config logs in as, and whom the VM's own key is given to" },
	{ 0 },
};
static const Section ssh_section = { ssh_fields, 0, spec_check_ssh };

static const Field boot_fields[] = {
	{ "kernel", FIELD_PATH, offsetof(Spec, kernel),
	  .doc = "kernel to boot, a path; absent: boot the first disk" },
	{ "initrd", FIELD_PATH, offsetof(Spec, initrd),
	  .doc = "initial ramdisk of the kernel, a path" },
	{ "cmdline", FIELD_TEXT, offsetof(Spec, cmdline),
	  .doc = "the kernel's command line" },
	{ 0 },
};
static const Section boot_section = { boot_fields, 0, spec_check_boot };

static const Field disk_fields[] = {
	{ "image", FIELD_IMAGE, offsetof(SpecDisk, image),
	  .doc = "base of a private copy-on-write overlay, a path or a name in .vmfs/images; it is "
		 "never written" },
	{ "file", FIELD_PATH, offsetof(SpecDisk, file), .is_written = true,
	  .doc = "the disk itself, a path; neither this nor image: a private disk, empty at first" },
	{ "format", FIELD_WORD, offsetof(SpecDisk, format), .choices = format_names,
	  .doc = "format of it; absent: by the suffix .qcow2 of a file, by the contents of an image, "
		 "qcow2 for an empty disk" },
	{ "size", FIELD_SIZE, offsetof(SpecDisk, size), .min = MIB, .max = 1024 * TIB, .step = 512,
	  .doc = "size of the overlay or the empty disk, which grows with it; absent: that of the "
		 "image" },
	{ "bus", FIELD_CHOICE, offsetof(SpecDisk, bus), .choices = bus_names, .preset = "virtio",
	  .doc = "what the guest finds it on; virtio: a device of its own (/dev/vda), scsi: one of virtio-scsi (/dev/sda), which is taken away without the guest's being asked" },
	{ "readonly", FIELD_BOOL, offsetof(SpecDisk, readonly), .preset = "false",
	  .doc = "the guest cannot write to it" },
	{ 0 },
};
static const Section disk_section = { disk_fields, sizeof(SpecDisk), spec_check_disk };

static const Field nic_fields[] = {
	{ "network", FIELD_TEXT, offsetof(SpecNic, network), .preset = "user",
	  .doc = "what it is connected to; user: the host's network, by NAT; else, with libvirt, a network of its host" },
	{ "mac", FIELD_MAC, offsetof(SpecNic, mac),
	  .doc = "its address; absent: made from the VM's id" },
	{ "ports", FIELD_PORTS, offsetof(SpecNic, ports),
	  .doc = "list of forwards into the guest, [HOSTADDR:]HOSTPORT:GUESTPORT[/udp]; "
		 "HOSTADDR is 127.0.0.1 unless given, HOSTPORT 0 is a free one" },
	{ 0 },
};
static const Section nic_section = { nic_fields, sizeof(SpecNic), spec_check_nic };

static const Field cloud_init_fields[] = {
	{ "user_data", FIELD_BLOCK, offsetof(Spec, cloud_init.user_data),
	  .doc = "what the guest is to do at its first boot: #cloud-config or a script" },
	{ "meta_data", FIELD_STRINGS, offsetof(Spec, cloud_init.meta_data),
	  .doc = "besides instance-id and local-hostname (the VM's name), or in their place" },
	{ "network_config", FIELD_BLOCK, offsetof(Spec, cloud_init.network_config),
	  .doc = "the guest's network, as cloud-init reads it; absent: DHCP" },
	{ "ssh_keys", FIELD_LIST, offsetof(Spec, cloud_init.ssh_keys), .item = specval_ssh_key,
	  .doc = "public keys that may log in" },
	{ 0 },
};
static const Section cloud_init_section = { cloud_init_fields };
static const Field share_fields[] = {
	{ "path", FIELD_PATH, offsetof(SpecShare, path), .is_dir = true,
	  .doc = "the host's directory" },
	{ "type", FIELD_CHOICE, offsetof(SpecShare, type), .choices = share_type_names,
	  .preset = "auto", .doc = "how the guest mounts it: mount -t virtiofs NAME /mnt, or mount -t 9p "
	  "-o trans=virtio NAME /mnt; auto: virtiofs of a root's VM where virtiofsd is and not readonly" },
	{ "readonly", FIELD_BOOL, offsetof(SpecShare, readonly), .preset = "false",
	  .doc = "the guest cannot write to it" },
	{ 0 },
};
static const Section share_section = { share_fields, sizeof(SpecShare), spec_check_share };

static const Field device_fields[] = {
	{ "pci", FIELD_PCI, offsetof(SpecDevice, pci),
	  .doc = "a PCI device by its address, one of .vmfs/devices/pci; bound to vfio-pci" },
	{ "usb", FIELD_USB, offsetof(SpecDevice, usb),
	  .doc = "a USB device by bus and port, one of .vmfs/devices/usb" },
	{ 0 },
};
static const Section device_section = { device_fields, sizeof(SpecDevice), spec_check_device };

static const Field top_fields[] = {
	{ "backend", FIELD_WORD, offsetof(Spec, backend), .choices = backend_names,
	  .doc = "what runs the VM; absent: the first usable in that order" },
	{ "host", FIELD_TEXT, offsetof(Spec, host), .of_core = true,
	  .doc = "the host of .vmfs/hosts that it is made on by its first start; later the file 'host' "
		 "moves it; absent: local" },
	{ "from", FIELD_TEXT, offsetof(Spec, from), .of_core = true,
	  .doc = "a snapshot, VM/snapshots/NAME, that a new VM is at its first start, in place of "
		 "a boot; keys that are not given are added as they are there" },
	{ "cpus", FIELD_COUNT, offsetof(Spec, cpus), .min = 1, .max = SPEC_MAX_CPUS,
	  .of_host = true, .preset = "1", .doc = "virtual CPUs" },
	{ "memory", FIELD_SIZE, offsetof(Spec, memory), .min = 16 * MIB, .max = SPEC_MAX_MEMORY,
	  .step = MIB, .of_host = true, .preset = "256MiB", .doc = "memory of the guest" },
	{ "max_cpus", FIELD_COUNT, offsetof(Spec, max_cpus), .min = 1, .max = SPEC_MAX_CPUS,
	  .of_host = true,
	  .doc = "up to so many, cpus can be raised while it runs; absent: not at all" },
	{ "max_memory", FIELD_SIZE, offsetof(Spec, max_memory), .min = 16 * MIB,
	  .max = SPEC_MAX_MEMORY, .step = MIB, .of_host = true,
	  .doc = "up to so much, memory can be changed while it runs (by a balloon: the guest boots with this much)" },
	{ "shared_memory", FIELD_BOOL, offsetof(Spec, shared_memory), .preset = "false",
	  .doc = "memory that virtiofsd can be given as well, so that shares can come while it runs" },
	{ "accel", FIELD_CHOICE, offsetof(Spec, accel), .choices = accel_names, .preset = "auto",
	  .doc = "how the guest's code runs: on the CPU (kvm), translated (tcg), the faster (auto)" },
	{ "machine", FIELD_CHOICE, offsetof(Spec, machine), .choices = machine_names,
	  .preset = "q35", .doc = "q35: a PC; microvm: minimal, boots faster, needs boot.kernel" },
	{ "firmware", FIELD_CHOICE, offsetof(Spec, firmware), .choices = firmware_names,
	  .preset = "bios", .doc = "what boots the disk" },
	{ "display", FIELD_CHOICE, offsetof(Spec, display), .choices = display_names,
	  .preset = "auto", .doc = "what the guest shows its screen on; auto: vga, none on a microvm" },
	{ "vnc", FIELD_VNC, offsetof(Spec, vnc),
	  .doc = "where the display can be watched and used; unix: a socket that only the owner "
		 "reaches, or 127.0.0.1:PORT, open to every user of the host; PORT 0 is a free one" },
	{ "boot", FIELD_GROUP, .section = &boot_section, .doc = "a kernel to boot, not a disk" },
	{ "disks", FIELD_NAMED, offsetof(Spec, disks), .section = &disk_section,
	  .doc = "disks by name, the first is booted; a name has letters, digits, - and _" },
	{ "nics", FIELD_NAMED, offsetof(Spec, nics), .section = &nic_section, .preset = "eth0",
	  .doc = "network interfaces by name; {} for none" },
	{ "cloud_init", FIELD_OPTION, offsetof(Spec, cloud_init.given),
	  .section = &cloud_init_section,
	  .doc = "given ({} will do): the guest finds a NoCloud seed, for its cloud-init" },
	{ "ssh", FIELD_GROUP, .section = &ssh_section, .doc = "for ssh_config" },
	{ "shares", FIELD_NAMED, offsetof(Spec, shares), .section = &share_section,
	  .doc = "host directories by name, which the guest mounts; what runs says in status how" },
	{ "devices", FIELD_NAMED, offsetof(Spec, devices), .section = &device_section,
	  .doc = "devices of the host by name, which the guest gets for itself" },
	{ "stop_timeout", FIELD_DURATION, offsetof(Spec, stop_timeout_ms), .max = HOUR_MS,
	  .of_core = true, .preset = "30s",
	  .doc = "how long a stop waits for the guest before it forces it" },
	{ "autostart", FIELD_BOOL, offsetof(Spec, autostart), .of_core = true, .preset = "false",
	  .doc = "start it when vmfs is started for the first time after the host has booted" },
	{ "restart", FIELD_CHOICE, offsetof(Spec, restart), .choices = restart_names,
	  .of_core = true, .preset = "never",
	  .doc = "start it again when it crashed, or (always) when the guest powered off as well; "
		 "stop and kill end that" },
	{ "restart_delay", FIELD_DURATION, offsetof(Spec, restart_delay_ms), .min = 10,
	  .max = HOUR_MS, .of_core = true, .preset = "1s",
	  .doc = "pause before that, at least 10ms; doubles each time, up to a minute, until it has "
		 "run for a minute" },
	{ "expires", FIELD_EXPIRES, offsetof(Spec, expires), .of_core = true,
	  .doc = "when it is stopped and removed: a time from when this is written on, like 2h or 7d, "
		 "or a date, like 2030-01-31T18:00:00Z" },
	{ "sim", FIELD_STRINGS, offsetof(Spec, sim), .doc = "options of the sim backend" },
	{ 0 },
};
const Section spec_section = { top_fields, sizeof(Spec), spec_check_top, "cpus: 2" };
// clang-format on

static void port_free(void *arg)
{
	SpecPort *port = arg;

	g_free(port->address);
	g_free(port);
}

static void section_clear(const Section *s, void *object)
{
	for (const Field *f = s->fields; f->name; f++) {
		void *slot = spec_field_slot(f, object);

		switch (f->type) {
		case FIELD_CHOICE:
		case FIELD_COUNT:
		case FIELD_SIZE:
		case FIELD_DURATION:
		case FIELD_BOOL:
			break;
		case FIELD_WORD:
		case FIELD_PATH:
		case FIELD_IMAGE:
		case FIELD_TEXT:
		case FIELD_BLOCK:
		case FIELD_MAC:
		case FIELD_VNC:
		case FIELD_EXPIRES:
		case FIELD_PCI:
		case FIELD_USB:
			g_free(*(char **)slot);
			break;
		case FIELD_GROUP:
		case FIELD_OPTION:
			section_clear(f->section, object);
			break;
		case FIELD_NAMED:
		case FIELD_PORTS:
		case FIELD_LIST:
			g_ptr_array_unref(*(GPtrArray **)slot);
			break;
		case FIELD_STRINGS:
			g_clear_pointer((GHashTable **)slot, g_hash_table_unref);
			break;
		}
	}
}

void spec_object_free(const Section *s, void *object)
{
	section_clear(s, object);
	g_free(*(char **)object);
	g_free(object);
}

static void disk_free(void *disk)
{
	spec_object_free(&disk_section, disk);
}

static void nic_free(void *nic)
{
	spec_object_free(&nic_section, nic);
}

static void share_free(void *share)
{
	spec_object_free(&share_section, share);
}

Spec *spec_ref(Spec *s)
{
	s->refs++;
	return s;
}

void spec_unref(Spec *s)
{
	if (!s || --s->refs)
		return;
	section_clear(&spec_section, s);
	g_bytes_unref(s->text);
	g_free(s);
}

static void device_free(void *arg)
{
	SpecDevice *device = arg;

	section_clear(&device_section, device);
	g_free(device->name);
	g_free(device);
}

static GDestroyNotify element_free(const Field *f)
{
	if (f->section == &device_section)
		return device_free;
	if (f->section == &share_section)
		return share_free;
	return f->section == &disk_section ? disk_free : nic_free;
}

static void section_init(const Section *s, void *object)
{
	for (const Field *f = s->fields; f->name; f++) {
		GPtrArray **array = spec_field_slot(f, object);

		if (f->type == FIELD_GROUP || f->type == FIELD_OPTION) {
			section_init(f->section, object);
		} else if (f->type == FIELD_NAMED) {
			*array = g_ptr_array_new_with_free_func(element_free(f));
			if (f->preset)
				g_ptr_array_add(*array, spec_object_new(f->section, f->preset));
		} else if (f->type == FIELD_PORTS) {
			*array = g_ptr_array_new_with_free_func(port_free);
		} else if (f->type == FIELD_LIST) {
			*array = g_ptr_array_new_with_free_func(g_free);
		} else if (f->preset) {
			g_autoptr(GError) error = NULL;

			if (!spec_field_set(f, f->preset, spec_field_slot(f, object), &error))
				g_error("preset of %s: %s", f->name, error->message);
		}
	}
}

G_STATIC_ASSERT(offsetof(SpecDisk, name) == 0);
G_STATIC_ASSERT(offsetof(SpecNic, name) == 0);
G_STATIC_ASSERT(offsetof(SpecShare, name) == 0);
G_STATIC_ASSERT(offsetof(SpecDevice, name) == 0);

void *spec_object_new(const Section *s, const char *name)
{
	void *object = g_malloc0(s->size);

	*(char **)object = g_strdup(name);
	section_init(s, object);
	return object;
}

Spec *spec_new(GBytes *text_take)
{
	Spec *spec = g_new0(Spec, 1);

	spec->refs = 1;
	spec->text = text_take;
	section_init(&spec_section, spec);
	return spec;
}

Spec *spec_default(void)
{
	static Spec *empty;

	if (!empty)
		empty = spec_new(g_bytes_new_static("", 0));
	return spec_ref(empty);
}

SpecDisplay spec_display(const Spec *s)
{
	if (s->display != DISPLAY_AUTO)
		return s->display;
	return s->machine == MACHINE_MICROVM ? DISPLAY_NONE : DISPLAY_VGA;
}

/* Differences */

static void diff_section(GPtrArray *out, const char *prefix, const Section *s, const void *want,
			 const void *have);

static bool ports_equal(const GPtrArray *a, const GPtrArray *b)
{
	if (a->len != b->len)
		return false;
	for (unsigned i = 0; i < a->len; i++) {
		const SpecPort *x = a->pdata[i], *y = b->pdata[i];

		if (strcmp(x->address, y->address) != 0 || x->host_port != y->host_port ||
		    x->guest_port != y->guest_port || x->udp != y->udp)
			return false;
	}
	return true;
}

static bool lists_equal(const GPtrArray *a, const GPtrArray *b)
{
	if (a->len != b->len)
		return false;
	for (unsigned i = 0; i < a->len; i++)
		if (strcmp(a->pdata[i], b->pdata[i]) != 0)
			return false;
	return true;
}

static bool strings_equal(GHashTable *a, GHashTable *b)
{
	GHashTableIter iter;
	void *key, *value;

	if (!a || !b)
		return a == b;
	if (g_hash_table_size(a) != g_hash_table_size(b))
		return false;
	g_hash_table_iter_init(&iter, a);
	while (g_hash_table_iter_next(&iter, &key, &value))
		if (g_strcmp0(value, g_hash_table_lookup(b, key)) != 0)
			return false;
	return true;
}

static bool values_equal(const Field *f, const void *a, const void *b)
{
	switch (f->type) {
	case FIELD_CHOICE:
	case FIELD_COUNT:
		return memcmp(a, b, sizeof(unsigned)) == 0;
	case FIELD_SIZE:
	case FIELD_DURATION:
		return memcmp(a, b, sizeof(uint64_t)) == 0;
	case FIELD_BOOL:
	case FIELD_OPTION:
		return *(const bool *)a == *(const bool *)b;
	case FIELD_WORD:
	case FIELD_PATH:
	case FIELD_IMAGE:
	case FIELD_TEXT:
	case FIELD_BLOCK:
	case FIELD_MAC:
	case FIELD_VNC:
	case FIELD_EXPIRES:
	case FIELD_PCI:
	case FIELD_USB:
		return g_strcmp0(*(char *const *)a, *(char *const *)b) == 0;
	case FIELD_PORTS:
		return ports_equal(*(GPtrArray *const *)a, *(GPtrArray *const *)b);
	case FIELD_LIST:
		return lists_equal(*(GPtrArray *const *)a, *(GPtrArray *const *)b);
	case FIELD_STRINGS:
		return strings_equal(*(GHashTable *const *)a, *(GHashTable *const *)b);
	case FIELD_GROUP:
	case FIELD_NAMED:
		break;
	}
	g_assert_not_reached();
}

/* The index of the object of that name, or -1. */
static int find_named(const GPtrArray *objects, const char *name)
{
	for (unsigned i = 0; i < objects->len; i++)
		if (strcmp(*(char **)objects->pdata[i], name) == 0)
			return (int)i;
	return -1;
}

static void diff_named(GPtrArray *out, const char *key, const Section *s, const GPtrArray *want,
		       const GPtrArray *have)
{
	bool reordered = false;
	int last = -1;

	for (unsigned i = 0; i < want->len; i++) {
		const char *name = *(char **)want->pdata[i];
		g_autofree char *prefix = g_strdup_printf("%s.%s", key, name);
		int at = find_named(have, name);

		if (at < 0) {
			g_ptr_array_add(out, g_steal_pointer(&prefix));
			continue;
		}
		reordered |= at < last;
		last = at;
		diff_section(out, prefix, s, want->pdata[i], have->pdata[at]);
	}
	for (unsigned i = 0; i < have->len; i++) {
		const char *name = *(char **)have->pdata[i];

		if (find_named(want, name) < 0)
			g_ptr_array_add(out, g_strdup_printf("%s.%s", key, name));
	}
	/* The order tells which disk is booted and how the guest numbers them. */
	if (reordered)
		g_ptr_array_add(out, g_strdup(key));
}

static void diff_section(GPtrArray *out, const char *prefix, const Section *s, const void *want,
			 const void *have)
{
	for (const Field *f = s->fields; f->name; f++) {
		const void *a = spec_field_slot(f, want), *b = spec_field_slot(f, have);
		g_autofree char *key = g_strconcat(prefix, *prefix ? "." : "", f->name, NULL);

		if (f->of_core)
			continue;
		if (f->type == FIELD_GROUP || (f->type == FIELD_OPTION && values_equal(f, a, b)))
			diff_section(out, key, f->section, want, have);
		else if (f->type == FIELD_NAMED)
			diff_named(out, key, f->section, *(GPtrArray *const *)a,
				   *(GPtrArray *const *)b);
		else if (!values_equal(f, a, b))
			g_ptr_array_add(out, g_steal_pointer(&key));
	}
}

GPtrArray *spec_diff(const Spec *want, const Spec *have)
{
	GPtrArray *out = g_ptr_array_new_with_free_func(g_free);

	diff_section(out, "", &spec_section, want, have);
	return out;
}

bool spec_is_of_machine(const char *key)
{
	for (const Field *f = top_fields; f->name; f++)
		if (!strcmp(f->name, key))
			return !f->of_core;
	return false;
}

const void *spec_named(const Spec *s, const char *key)
{
	const char *dot = strchr(key, '.');

	for (const Field *f = top_fields; dot && f->name; f++) {
		const GPtrArray *objects;
		int at;

		if (f->type != FIELD_NAMED || strncmp(f->name, key, (size_t)(dot - key)) != 0 ||
		    f->name[dot - key])
			continue;
		objects = *(GPtrArray *const *)spec_field_slot(f, s);
		at = find_named(objects, dot + 1);
		return at < 0 ? NULL : objects->pdata[at];
	}
	return NULL;
}

/* Paths */

static void path_free(void *arg)
{
	SpecPath *path = arg;

	g_free(path->key);
	g_free(path->path);
	g_free(path);
}

/* `a.b.c` of the tree: the line of its value. */
static unsigned line_of(const YamlNode *root, const char *key)
{
	g_auto(GStrv) names = g_strsplit(key, ".", -1);
	const YamlNode *node = root;

	for (unsigned i = 0; node && names[i]; i++)
		if (!yaml_find(node, names[i], &node))
			node = NULL;
	return node ? node->line : 0;
}

static void add_path(GPtrArray *out, const YamlNode *root, char *key_take, const char *value,
		     bool write, bool dir)
{
	SpecPath *path = g_new0(SpecPath, 1);

	path->key = key_take;
	path->path = g_strdup(value);
	path->write = write;
	path->dir = dir;
	path->line = line_of(root, key_take);
	g_ptr_array_add(out, path);
}

static void add_section_paths(GPtrArray *out, const YamlNode *root, const char *prefix,
			      const Section *s, const void *object)
{
	for (const Field *f = s->fields; f->name; f++) {
		const void *slot = spec_field_slot(f, object);
		g_autofree char *key = g_strconcat(prefix, *prefix ? "." : "", f->name, NULL);

		if (f->type == FIELD_GROUP || f->type == FIELD_OPTION) {
			add_section_paths(out, root, key, f->section, object);
		} else if (f->type == FIELD_NAMED) {
			const GPtrArray *objects = *(GPtrArray *const *)slot;

			for (unsigned i = 0; i < objects->len; i++) {
				const char *name = *(char **)objects->pdata[i];
				g_autofree char *inner = g_strdup_printf("%s.%s", key, name);

				add_section_paths(out, root, inner, f->section, objects->pdata[i]);
			}
		} else if (f->type == FIELD_PATH || f->type == FIELD_IMAGE) {
			const char *value = *(char *const *)slot;
			bool write = f->is_written && !((const SpecDisk *)object)->readonly;

			if (value)
				add_path(out, root, g_steal_pointer(&key), value, write, f->is_dir);
		}
	}
}

GPtrArray *spec_paths(const Spec *s)
{
	static const YamlLimits max = { .depth = SPEC_MAX_DEPTH, .items = SPEC_MAX_ITEMS };
	GPtrArray *out = g_ptr_array_new_with_free_func(path_free);
	g_auto(YamlTree) tree = { 0 };
	const char *text;
	size_t len;

	/* Lines are asked for so rarely that the text itself is the best place to keep them. */
	text = g_bytes_get_data(s->text, &len);
	yaml_load(&tree, text ? text : "", len, false, &max);
	add_section_paths(out, tree.root, "", &spec_section, s);
	return out;
}

/* Help */

static char *type_name(const Field *f)
{
	switch (f->type) {
	case FIELD_CHOICE:
	case FIELD_WORD:
		return g_strjoinv("|", (char **)f->choices);
	case FIELD_COUNT:
		return g_strdup_printf("%u..%u", (unsigned)f->min, (unsigned)f->max);
	case FIELD_SIZE:
		return g_strdup("SIZE");
	case FIELD_DURATION:
		return g_strdup("TIME");
	case FIELD_BOOL:
		return g_strdup("true|false");
	case FIELD_PATH:
		return g_strdup("PATH");
	case FIELD_IMAGE:
		return g_strdup("PATH|NAME");
	case FIELD_TEXT:
	case FIELD_BLOCK:
		return g_strdup("TEXT");
	case FIELD_MAC:
		return g_strdup("MAC");
	case FIELD_VNC:
		return g_strdup("unix|ADDR:PORT");
	case FIELD_EXPIRES:
		return g_strdup("TIME|DATE");
	case FIELD_PCI:
	case FIELD_USB:
		return g_strdup("ADDRESS");
	case FIELD_PORTS:
		return g_strdup("[PORT, ...]");
	case FIELD_LIST:
		return g_strdup("[TEXT, ...]");
	case FIELD_GROUP:
	case FIELD_OPTION:
		return g_strdup("{...}");
	case FIELD_NAMED:
		return g_strdup("{NAME: {...}}");
	case FIELD_STRINGS:
		return g_strdup("{KEY: VALUE}");
	}
	g_assert_not_reached();
}

static void help_section(GString *out, const char *prefix, const Section *s)
{
	for (const Field *f = s->fields; f->name; f++) {
		g_autofree char *key = g_strconcat(prefix, f->name, NULL);
		g_autofree char *type = type_name(f), *inner = NULL;

		g_string_append_printf(out, "%-20s %-15s %s", key, type, f->doc);
		if (f->preset)
			g_string_append_printf(out, " (default: %s)", f->preset);
		g_string_append_c(out, '\n');
		if (!f->section)
			continue;
		inner = g_strconcat(key, f->type == FIELD_NAMED ? ".NAME." : ".", NULL);
		help_section(out, inner, f->section);
	}
}

void spec_help_section(GString *out, const Section *s)
{
	help_section(out, "", s);
}

void spec_help(GString *out)
{
	spec_help_section(out, &spec_section);
}
