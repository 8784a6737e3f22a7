/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of QEMU: a pure function of the spec, the VM's identity and what the probe
 * found, so that `cmdline` can show what a start would run. Reads no file, spawns nothing.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/diskfile.h"
#include "vmfs/err.h"
#include "vmfs/seed.h"
#include "vmfs/specval.h"

#define MAX_CPUS_Q35   255
#define VNC_FIRST_PORT 5900
#define MAX_SERIAL     20 /* what virtio-blk can tell the guest */

#define MAX_SHARES 12
#define NO_DISK	   "1048576" /* bytes of one that is not touched */

#define MAX_BRIDGES  8
#define MAX_SLOT     (MAX_BRIDGES * QEMU_BRIDGE_SLOTS - 1)
#define LAST_OF_IP   15	  /* of QEMU_GUEST_IP */
#define MAX_MET	     11	  /* below are those of the network itself */
#define FIRST_BRIDGE 0x1e /* its slot on the root bus; others are below */

typedef struct Build {
	const QemuArgs *in;
	GPtrArray *argv;
	const char *bus; /* "pci" or "device": the suffix of virtio devices */
} Build;

static void add(const Build *b, const char *option, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* An option and, unless fmt is NULL, its value. */
static void add(const Build *b, const char *option, const char *fmt, ...)
{
	va_list ap;

	g_ptr_array_add(b->argv, g_strdup(option));
	if (!fmt)
		return;
	va_start(ap, fmt);
	g_ptr_array_add(b->argv, g_strdup_vprintf(fmt, ap));
	va_end(ap);
}

/* QEMU's options are separated by commas; one in a value is doubled. */
static char *escape(const char *value)
{
	GString *s = g_string_new(value);

	g_string_replace(s, ",", ",,", 0);
	return g_string_free(s, FALSE);
}

/* Block nodes have names of at most 31 bytes, and a disk's may be longer. */
static char *node_name(const char *prefix, const char *name)
{
	if (strlen(prefix) + strlen(name) <= 31)
		return g_strconcat(prefix, name, NULL);
	return g_strdup_printf("%s%.12s-%08x", prefix, name, g_str_hash(name));
}

char *qemu_mac(unsigned id, unsigned index)
{
	return g_strdup_printf("52:54:00:%02x:%02x:%02x", (id >> 8) & 0xff, id & 0xff,
			       index & 0xff);
}

static void add_machine(const Build *b)
{
	const QemuArgs *in = b->in;
	const bool uefi = in->spec->firmware == FIRMWARE_UEFI;
	/* What the machine calls memory of its own: saved memory is found again by that name. */
	const char *id = in->spec->machine == MACHINE_MICROVM ? "microvm.ram" : "pc.ram";
	const bool shared = qemu_shares_memory(in);
	g_autofree char *backend =
		in->ram || shared ? g_strconcat(",memory-backend=", id, NULL) : g_strdup("");

	/*
	 * microvm keeps its PIT and RTC: under TCG, Linux hangs at boot without the one and is two
	 * seconds later without the other.
	 */
	if (in->spec->machine == MACHINE_MICROVM)
		add(b, "-M", "%s,accel=%s%s", in->machine ? in->machine : "microvm", in->accel,
		    backend);
	else
		add(b, "-M", "%s,accel=%s,usb=off,vmport=off%s%s",
		    in->machine ? in->machine : "q35", in->accel,
		    uefi ? ",pflash0=uefi-code,pflash1=uefi-vars" : "", backend);
	/* All that the host can do under KVM, all that can be emulated else. */
	add(b, "-cpu", "max");
	if (in->spec->max_cpus)
		add(b, "-smp", "%u,maxcpus=%u", in->spec->cpus, in->spec->max_cpus);
	else
		add(b, "-smp", "%u", in->spec->cpus);
	add(b, "-m", "%" G_GUINT64_FORMAT "M", qemu_ram(in->spec) >> 20);
	if (in->ram) {
		g_autofree char *ram = escape(in->ram);
		add(b, "-object",
		    "memory-backend-file,id=%s,size=%" G_GUINT64_FORMAT "M,share=%s,mem-path=%s",
		    id, qemu_ram(in->spec) >> 20, in->making ? "on" : "off", ram);
	}
	if (shared)
		add(b, "-object", "memory-backend-memfd,id=%s,size=%" G_GUINT64_FORMAT "M,share=on",
		    id, qemu_ram(in->spec) >> 20);
	if (uefi) {
		g_autofree char *code = escape(in->uefi_code), *dir = escape(in->data_dir);
		add(b, "-blockdev", "driver=file,node-name=uefi-code,read-only=on,filename=%s",
		    code);
		add(b, "-blockdev", "driver=file,node-name=uefi-vars,filename=%s/" QEMU_UEFI_VARS,
		    dir);
	}
}

static void add_boot(const Build *b)
{
	const Spec *s = b->in->spec;

	if (!s->kernel)
		return;
	add(b, "-kernel", "%s", s->kernel);
	if (s->initrd)
		add(b, "-initrd", "%s", s->initrd);
	if (s->cmdline && *s->cmdline)
		add(b, "-append", "%s", s->cmdline);
}

/* A free one is looked for among the hundred that viewers know. */
static void add_vnc(const Build *b)
{
	const char *vnc = b->in->spec->vnc, *colon = strrchr(vnc, ':');
	g_autofree char *run = escape(b->in->run_dir);
	const unsigned port = colon ? (unsigned)strtoul(colon + 1, NULL, 10) : 0;

	if (!colon)
		add(b, "-vnc", "unix:%s/" QEMU_SOCKET_VNC, run);
	else if (port)
		add(b, "-vnc", "%.*s:%u", (int)(colon - vnc), vnc, port - VNC_FIRST_PORT);
	else
		add(b, "-vnc", "%.*s:0,to=99", (int)(colon - vnc), vnc);
}

static void add_display(const Build *b)
{
	static const char *const devices[] = {
		[DISPLAY_VGA] = "VGA,id=display0",
		[DISPLAY_VIRTIO] = "virtio-vga,id=display0",
	};
	const SpecDisplay display = spec_display(b->in->spec);

	add(b, "-display", "none");
	if (display != DISPLAY_NONE)
		add(b, "-device", "%s", devices[display]);
	if (b->in->spec->vnc && !b->in->making)
		add_vnc(b);
}

/*
 * A guest that powers off or panics leaves QEMU paused and answering, and we tell it to quit: so
 * a daemon that was away can tell a guest that stopped from a QEMU that crashed.
 */
static void add_control(const Build *b)
{
	const QemuArgs *in = b->in;
	g_autofree char *data = escape(in->data_dir), *name = escape(in->name);
	g_autofree char *run = escape(in->run_dir);

	add(b, "-name", "%s", name);
	add(b, "-nodefaults", NULL);
	add(b, "-no-user-config", NULL);
	add_display(b);
	add(b, "-sandbox",
	    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	add(b, "-S", NULL);
	if (in->incoming)
		add(b, "-incoming", "defer");
	add(b, "-action", "shutdown=pause,panic=pause");
	add(b, "-pidfile", "%s/" QEMU_PID_FILE, in->run_dir);
	/* The daemon listens and passes the sockets on: 3 and 4 as in start.c. */
	add(b, "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", QEMU_FD_QMP);
	add(b, "-mon", "chardev=qmp,mode=control");
	add(b, "-chardev",
	    "pipe,id=console,path=%s/" CONSOLE_NAME ",logfile=%s/" CONSOLE_LOG ",logappend=on", run,
	    data);
	add(b, "-serial", "chardev:console");
	add(b, "-chardev", "socket,id=agent,fd=%d,server=on,wait=off", QEMU_FD_AGENT);
	add(b, "-device", "virtio-serial-%s,id=serial0", b->bus);
	add(b, "-device",
	    "virtserialport,bus=serial0.0,chardev=agent,name=org.qemu.guest_agent.0,"
	    "id=" QEMU_AGENT_ID);
	add(b, "-device", "virtio-rng-%s,id=rng0", b->bus);
	if (in->spec->machine == MACHINE_Q35) {
		add(b, "-device", "pvpanic-pci");
		/* Another number after each load of memory: the guest's random numbers begin anew.
		 */
		add(b, "-device", "vmgenid,guid=auto");
	}
	if (in->spec->max_memory)
		add(b, "-device", "virtio-balloon-pci,id=balloon0");
}

/* Where the guest finds a device: on a bridge, for nothing can be plugged into the root bus. */
static char *place(const Build *b, const char *id)
{
	const int slot = b->in->slots ? qemu_slot(b->in->slots, id) : -1;

	if (slot < 0)
		return g_strdup("");
	return g_strdup_printf(",bus=hot%d,addr=0x%x", slot / QEMU_BRIDGE_SLOTS,
			       slot % QEMU_BRIDGE_SLOTS + 1);
}

static void add_disk(const Build *b, const SpecDisk *d, unsigned index)
{
	g_autofree char *path = diskfile_path(b->in->data_dir, d);
	g_autofree char *file = escape(path);
	g_autofree char *node = node_name("disk-", d->name);
	g_autofree char *file_node = node_name("file-", d->name);
	const char *ro = d->readonly ? "on" : "off";
	/* QEMU wants to be told, and we must not look. */
	/* By name, for no file is looked at here: files in /dev are devices, but for shared memory.
	 */
	const bool device = g_str_has_prefix(path, "/dev/") && !g_str_has_prefix(path, "/dev/shm/");
	const char *driver = device ? "host_device" : "file";

	if (b->in->making) {
		add(b, "-blockdev", "driver=null-co,node-name=%s,read-only=%s,size=" NO_DISK, node,
		    ro);
	} else {
		add(b, "-blockdev", "driver=%s,node-name=%s,read-only=%s,discard=unmap,filename=%s",
		    driver, file_node, ro, file);
		add(b, "-blockdev", "driver=%s,node-name=%s,read-only=%s,discard=unmap,file=%s",
		    diskfile_format(d), node, ro, file_node);
	}
	g_autofree char *boot =
		index == 0 && !b->in->spec->kernel ? g_strdup(",bootindex=1") : g_strdup("");
	g_autofree char *id = g_strconcat(QEMU_DISK_ID, d->name, NULL), *at = place(b, id);
	g_autofree char *target = g_strconcat(QEMU_TARGET_ID, d->name, NULL);

	if (d->bus == BUS_SCSI) {
		add(b, "-device",
		    "scsi-hd,id=%s,bus=" QEMU_SCSI_ID ".0,scsi-id=%d,lun=0,drive=%s,serial=%.*s%s",
		    id, qemu_slot(b->in->slots, target), node, MAX_SERIAL, d->name, boot);
		return;
	}
	add(b, "-device", "virtio-blk-%s,id=%s,drive=%s,serial=%.*s%s%s", b->bus, id, node,
	    MAX_SERIAL, d->name, boot, at);
}

static void add_controller(const Build *b, const char *id)
{
	g_autofree char *at = place(b, id);

	if (!strcmp(id, QEMU_SCSI_ID))
		add(b, "-device", "virtio-scsi-%s,id=%s%s", b->bus, id, at);
	else
		add(b, "-device", "qemu-xhci,id=%s%s", id, at);
}

static bool has_scsi_disk(const Spec *s)
{
	for (guint i = 0; i < s->disks->len; i++)
		if (((const SpecDisk *)s->disks->pdata[i])->bus == BUS_SCSI)
			return true;
	return false;
}

static bool has_usb_device(const Spec *s)
{
	for (guint i = 0; i < s->devices->len; i++)
		if (((const SpecDevice *)s->devices->pdata[i])->usb)
			return true;
	return false;
}

/* Those that were plugged in stay, also without devices. */
static void add_controllers(const Build *b)
{
	const bool pci = b->in->spec->machine == MACHINE_Q35;

	if (pci ? qemu_slot(b->in->slots, QEMU_SCSI_ID) >= 0 : has_scsi_disk(b->in->spec))
		add_controller(b, QEMU_SCSI_ID);
	if (pci && qemu_slot(b->in->slots, QEMU_USB_ID) >= 0)
		add_controller(b, QEMU_USB_ID);
}

const char *qemu_controller(const Spec *spec, const char *key)
{
	const void *object = spec_named(spec, key);

	if (g_str_has_prefix(key, "disks.") && ((const SpecDisk *)object)->bus == BUS_SCSI)
		return QEMU_SCSI_ID;
	if (g_str_has_prefix(key, "devices.") && ((const SpecDevice *)object)->usb)
		return QEMU_USB_ID;
	return NULL;
}

static void add_device(const Build *b, const SpecDevice *d)
{
	g_autofree char *id = g_strconcat(QEMU_DEVICE_ID, d->name, NULL), *at = place(b, id);
	const char *port = d->usb ? strchr(d->usb, '-') : NULL;

	if (port)
		add(b, "-device", "usb-host,id=%s,bus=" QEMU_USB_ID ".0,hostbus=%.*s,hostport=%s",
		    id, (int)(port - d->usb), d->usb, port + 1);
	else
		add(b, "-device", "vfio-pci,id=%s,host=%s%s", id, d->pci, at);
}

static void add_seed(const Build *b)
{
	g_autofree char *dir = escape(b->in->data_dir), *at = place(b, QEMU_SEED_ID);

	if (!b->in->spec->cloud_init.given)
		return;
	if (b->in->making)
		add(b, "-blockdev",
		    "driver=null-co,node-name=" QEMU_SEED_ID ",read-only=on,size=" NO_DISK);
	else
		add(b, "-blockdev",
		    "driver=file,node-name=" QEMU_SEED_ID ",read-only=on,filename=%s/" SEED_NAME,
		    dir);
	add(b, "-device",
	    "virtio-blk-%s,id=" QEMU_SEED_ID ",drive=" QEMU_SEED_ID ",serial=cidata%s", b->bus, at);
}

/*
 * slirp keeps a list of MAC addresses, of which the first has the first address and so on, and it
 * is saved with the memory: where the guest of a clone asks with its own one, the first address is
 * one lower, so that it is given the address that it has, and to which the forwards lead.
 */
static void add_first_lease(const Build *b, const SpecNic *n, GString *options)
{
	g_autofree char *id = g_strconcat(QEMU_LEASE_ID, n->name, NULL);
	const int met = qemu_slot(b->in->slots, id);

	if (met > 0)
		g_string_append_printf(options, ",dhcpstart=10.0.2.%d",
				       LAST_OF_IP - MIN(met, MAX_MET));
}

static void add_nic(const Build *b, const SpecNic *n)
{
	g_autofree char *number = g_strconcat(QEMU_MAC_ID, n->name, NULL);
	const int index = qemu_slot(b->in->slots, number);
	g_autofree char *mac = n->mac ? g_strdup(n->mac) : qemu_mac(b->in->id, (unsigned)index);
	g_autofree char *id = g_strconcat(QEMU_NIC_ID, n->name, NULL), *at = place(b, id);
	g_autoptr(GString) fwd = g_string_new(NULL);

	for (guint i = 0; !b->in->making && i < n->ports->len; i++) {
		const SpecPort *p = n->ports->pdata[i];
		g_string_append_printf(fwd, ",hostfwd=%s:%s:%u-" QEMU_GUEST_IP ":%u",
				       p->udp ? "udp" : "tcp", p->address, p->host_port,
				       p->guest_port);
	}
	add_first_lease(b, n, fwd);
	add(b, "-netdev", "user,id=" QEMU_NET_PREFIX "%s%s", n->name, fwd->str);
	/* No boot ROM: nothing boots from the network, and loading it costs a millisecond. */
	add(b, "-device", "virtio-net-%s,id=%s,netdev=" QEMU_NET_PREFIX "%s,mac=%s%s%s", b->bus, id,
	    n->name, mac, b->in->spec->machine == MACHINE_Q35 ? ",romfile=" : "", at);
}

bool qemu_is_virtiofs(const QemuArgs *in, const SpecShare *share)
{
	/* Memory that is loaded knew none: QEMU cannot save them. */
	if (in->incoming || share->type == SHARE_9P)
		return false;
	return share->type == SHARE_VIRTIOFS || (in->virtiofs && !share->readonly);
}

bool qemu_shares_memory(const QemuArgs *in)
{
	if (in->ram)
		return false;
	for (guint i = 0; i < in->spec->shares->len; i++)
		if (qemu_is_virtiofs(in, in->spec->shares->pdata[i]))
			return true;
	return in->spec->shared_memory;
}

static void add_virtiofs(const Build *b, const SpecShare *share)
{
	g_autofree char *run = escape(b->in->run_dir);
	g_autofree char *id = g_strconcat(QEMU_SHARE_ID, share->name, NULL), *at = place(b, id);

	add(b, "-chardev", "socket,id=%s,path=%s/%s", id, run, id);
	add(b, "-device", "vhost-user-fs-%s,id=%s,chardev=%s,tag=%s%s", b->bus, id, id, share->name,
	    at);
}

/* QEMU serves it itself, with the owner's rights; files that the guest makes are the owner's. */
static void add_9p(const Build *b, const SpecShare *share)
{
	g_autofree char *path = escape(share->path);

	add(b, "-fsdev",
	    "local,id=share-%s,security_model=none,multidevs=remap,readonly=%s,path=%s",
	    share->name, share->readonly ? "on" : "off", path);
	add(b, "-device", "virtio-9p-%s,id=share-%s,fsdev=share-%s,mount_tag=%s", b->bus,
	    share->name, share->name, share->name);
}

static void add_share(const Build *b, const SpecShare *share)
{
	if (qemu_is_virtiofs(b->in, share))
		add_virtiofs(b, share);
	else
		add_9p(b, share);
}

/* ---- slots ---- */

int qemu_slot(GHashTable *slots, const char *id)
{
	gpointer value;

	return g_hash_table_lookup_extended(slots, id, NULL, &value) ? GPOINTER_TO_INT(value) : -1;
}

typedef enum SlotKind { SLOT_PCI, SLOT_MAC, SLOT_LEASE, SLOT_TARGET } SlotKind;

static SlotKind slot_kind(const char *id)
{
	if (g_str_has_prefix(id, QEMU_MAC_ID))
		return SLOT_MAC;
	if (g_str_has_prefix(id, QEMU_LEASE_ID))
		return SLOT_LEASE;
	return g_str_has_prefix(id, QEMU_TARGET_ID) ? SLOT_TARGET : SLOT_PCI;
}

static bool is_taken(GHashTable *slots, int slot, SlotKind kind)
{
	GHashTableIter it;
	gpointer id, value;

	g_hash_table_iter_init(&it, slots);
	while (g_hash_table_iter_next(&it, &id, &value))
		if (GPOINTER_TO_INT(value) == slot && slot_kind(id) == kind)
			return true;
	return false;
}

/* Unless it has one. */
static void take_slot(GHashTable *slots, const char *prefix, const char *name)
{
	char *id = g_strconcat(prefix, name, NULL);
	int slot = 0;

	if (qemu_slot(slots, id) >= 0) {
		g_free(id);
		return;
	}
	while (is_taken(slots, slot, slot_kind(id)))
		slot++;
	g_hash_table_insert(slots, id, GINT_TO_POINTER(slot));
}

void qemu_slots_cloned(GHashTable *slots, const Spec *spec)
{
	for (guint i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];
		char *id = g_strconcat(QEMU_LEASE_ID, n->name, NULL);
		const int met = qemu_slot(slots, id);

		if (n->mac)
			g_free(id);
		else
			g_hash_table_insert(slots, id, GINT_TO_POINTER(MAX(met, 0) + 1));
	}
}

GHashTable *qemu_slots_new(void)
{
	return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
}

void qemu_slots_fill(const QemuArgs *in)
{
	GHashTable *slots = in->slots;
	const Spec *s = in->spec;
	const bool pci = s->machine == MACHINE_Q35;

	for (guint i = 0; i < s->disks->len; i++) {
		const SpecDisk *d = s->disks->pdata[i];

		if (d->bus == BUS_SCSI)
			take_slot(slots, QEMU_TARGET_ID, d->name);
		else if (pci)
			take_slot(slots, QEMU_DISK_ID, d->name);
	}
	if (pci && has_scsi_disk(s))
		take_slot(slots, QEMU_SCSI_ID, "");
	/* Behind the disks: the guest's /dev/vda is to be the first of them. */
	if (pci && s->cloud_init.given)
		take_slot(slots, QEMU_SEED_ID, "");
	for (guint i = 0; i < s->nics->len; i++) {
		const SpecNic *n = s->nics->pdata[i];

		if (pci)
			take_slot(slots, QEMU_NIC_ID, n->name);
		take_slot(slots, QEMU_MAC_ID, n->name);
	}
	for (guint i = 0; pci && i < s->shares->len; i++) {
		const SpecShare *share = s->shares->pdata[i];

		if (qemu_is_virtiofs(in, share))
			take_slot(slots, QEMU_SHARE_ID, share->name);
	}
	if (pci && has_usb_device(s))
		take_slot(slots, QEMU_USB_ID, "");
	for (guint i = 0; pci && i < s->devices->len; i++) {
		const SpecDevice *d = s->devices->pdata[i];

		if (d->pci)
			take_slot(slots, QEMU_DEVICE_ID, d->name);
	}
}

char *qemu_slots_text(GHashTable *slots, unsigned bridges)
{
	g_autoptr(GList) ids = g_list_sort(g_hash_table_get_keys(slots), (GCompareFunc)strcmp);
	GString *s = g_string_new(NULL);

	g_string_printf(s, "bridges=%u", bridges);
	for (GList *l = ids; l; l = l->next)
		g_string_append_printf(s, ",%s=%d", (char *)l->data, qemu_slot(slots, l->data));
	return g_string_free(s, FALSE);
}

GHashTable *qemu_slots_parse(const char *text, unsigned *ret_bridges)
{
	g_auto(GStrv) parts = g_strsplit(text ? text : "", ",", -1);
	GHashTable *slots = qemu_slots_new();
	uint64_t n;

	*ret_bridges = 1;
	for (unsigned i = 0; parts[i]; i++) {
		char *equals = strchr(parts[i], '=');

		if (!equals || !specval_number(equals + 1, 0, MAX_SLOT, &n, NULL))
			continue;
		*equals = '\0';
		if (!strcmp(parts[i], "bridges"))
			*ret_bridges = CLAMP((unsigned)n, 1, MAX_BRIDGES);
		else
			g_hash_table_insert(slots, g_strdup(parts[i]), GINT_TO_POINTER((int)n));
	}
	return slots;
}

unsigned qemu_bridges(GHashTable *slots)
{
	GHashTableIter it;
	gpointer id, value;
	int last = 0;

	g_hash_table_iter_init(&it, slots);
	while (g_hash_table_iter_next(&it, &id, &value))
		if (slot_kind(id) == SLOT_PCI)
			last = MAX(last, GPOINTER_TO_INT(value));
	return (unsigned)last / QEMU_BRIDGE_SLOTS + 1;
}

/*
 * A conventional bridge takes 31 devices and costs a start nothing, where each PCIe port costs the
 * firmware and the guest's kernel milliseconds.
 */
static void add_bridges(const Build *b)
{
	if (b->in->spec->machine != MACHINE_Q35)
		return;
	for (unsigned i = 0; i < MAX(b->in->bridges, qemu_bridges(b->in->slots)); i++)
		add(b, "-device", "pci-bridge,id=hot%u,chassis_nr=%u,addr=0x%x", i, i + 1,
		    FIRST_BRIDGE - i);
}

static void build_init(Build *b, const QemuArgs *in, GPtrArray *argv)
{
	*b = (Build){
		.in = in,
		.argv = argv,
		.bus = in->spec->machine == MACHINE_MICROVM ? "device" : "pci",
	};
}

void qemu_device_argv(const QemuArgs *in, const char *key, GPtrArray *argv)
{
	const void *object = spec_named(in->spec, key);
	Build b;

	build_init(&b, in, argv);
	if (in->controller)
		add_controller(&b, in->controller);
	/* Not the one to boot: that cannot come later. */
	if (g_str_has_prefix(key, "disks."))
		add_disk(&b, object, G_MAXUINT);
	else if (g_str_has_prefix(key, "nics."))
		add_nic(&b, object);
	else if (g_str_has_prefix(key, "shares."))
		add_share(&b, object);
	else
		add_device(&b, object);
}

char *qemu_block_node(const char *prefix, const char *disk)
{
	return node_name(prefix, disk);
}

void qemu_argv(const QemuArgs *in, GPtrArray *argv)
{
	Build b;

	build_init(&b, in, argv);
	g_ptr_array_add(argv, g_strdup(in->binary));
	add_machine(&b);
	add_control(&b);
	add_boot(&b);
	add_bridges(&b);
	add_controllers(&b);
	for (guint i = 0; i < in->spec->disks->len; i++)
		add_disk(&b, in->spec->disks->pdata[i], i);
	add_seed(&b);
	for (guint i = 0; i < in->spec->nics->len; i++)
		add_nic(&b, in->spec->nics->pdata[i]);
	for (guint i = 0; i < in->spec->shares->len; i++)
		add_share(&b, in->spec->shares->pdata[i]);
	for (guint i = 0; i < in->spec->devices->len; i++)
		add_device(&b, in->spec->devices->pdata[i]);
}

static bool check_nic(const SpecNic *n, GError **err)
{
	struct in_addr addr;

	if (n->network && strcmp(n->network, "user"))
		return err_set(err, EOPNOTSUPP,
			       "nics.%s.network: backend 'qemu' has no network '%s', only 'user'",
			       n->name, n->network);
	for (guint i = 0; i < n->ports->len; i++) {
		const SpecPort *p = n->ports->pdata[i];
		if (inet_pton(AF_INET, p->address, &addr) != 1)
			return err_set(err, EOPNOTSUPP,
				       "nics.%s.ports: QEMU's user network can only listen on "
				       "IPv4 addresses, not on '%s'",
				       n->name, p->address);
	}
	return true;
}

static bool check_share(const SpecShare *share, const QemuHost *host, GError **err)
{
	if (share->type != SHARE_VIRTIOFS)
		return true;
	if (!host->virtiofsd)
		return err_set(err, EOPNOTSUPP,
			       "shares.%s.type: virtiofs needs virtiofsd, which is not installed "
			       "(on Debian: apt install qemu-system-common)",
			       share->name);
	if (share->readonly)
		return err_set(err, EOPNOTSUPP,
			       "shares.%s.readonly: virtiofsd cannot keep the guest from writing; "
			       "use type: 9p",
			       share->name);
	return true;
}

static bool check_microvm(const Spec *s, GError **err)
{
	if (s->machine != MACHINE_MICROVM)
		return true;
	if (!s->kernel)
		return err_set(err, EINVAL,
			       "machine: microvm can only boot a kernel; set "
			       "boot.kernel, or machine: q35");
	if (s->firmware == FIRMWARE_UEFI)
		return err_set(err, EOPNOTSUPP, "firmware: microvm has no uefi");
	if (spec_display(s) != DISPLAY_NONE)
		return err_set(err, EOPNOTSUPP,
			       "display: a microvm has none; set machine: q35, or display: none");
	if (s->max_cpus || s->max_memory)
		return err_set(err, EOPNOTSUPP,
			       "%s: a microvm keeps what it starts with; set machine: q35",
			       s->max_cpus ? "max_cpus" : "max_memory");
	if (s->devices->len)
		return err_set(err, EOPNOTSUPP,
			       "devices: a microvm has no bus for them; set machine: q35");
	/* 24 mmio slots, of which serial and rng take two. */
	if (s->disks->len + s->nics->len + s->cloud_init.given > 22)
		return err_set(err, EOPNOTSUPP,
			       "machine: microvm takes at most 22 disks and nics, a seed for "
			       "cloud-init included");
	return true;
}

static bool check_accel(const Spec *s, const QemuHost *host, GError **err)
{
	if (s->accel == ACCEL_KVM && !host->kvm)
		return err_set(err, EOPNOTSUPP, "accel: kvm is not usable here: %s",
			       host->kvm_why ? host->kvm_why : "not probed yet");
	return true;
}

bool qemu_check(const QemuHost *host, const Spec *s, GError **err)
{
	if (!s->kernel && !s->disks->len)
		return err_set(err, EINVAL,
			       "there is nothing to boot: set boot.kernel, or attach a "
			       "disk");
	if (MAX(s->cpus, s->max_cpus) > MAX_CPUS_Q35)
		return err_set(err, EOPNOTSUPP, "cpus: backend 'qemu' takes at most %d",
			       MAX_CPUS_Q35);
	if (s->firmware == FIRMWARE_UEFI && !host->uefi_code)
		return err_set(err, EOPNOTSUPP,
			       "firmware: uefi needs OVMF, which is not installed "
			       "(on Debian: apt install ovmf)");
	/* What is left of the root bus. */
	if (s->shares->len > MAX_SHARES)
		return err_set(err, EOPNOTSUPP, "shares: backend 'qemu' takes at most %d",
			       MAX_SHARES);
	if (!check_accel(s, host, err) || !check_microvm(s, err))
		return false;
	for (guint i = 0; i < s->nics->len; i++) {
		if (!check_nic(s->nics->pdata[i], err))
			return false;
	}
	for (guint i = 0; i < s->shares->len; i++) {
		if (!check_share(s->shares->pdata[i], host, err))
			return false;
	}
	return true;
}
