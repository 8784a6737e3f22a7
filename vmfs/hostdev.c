/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/hostdev.h"

#include <errno.h>
#include <string.h>

#ifdef HAVE_UDEV
#include <libudev.h>
#include <linux/filter.h>
#include <sys/socket.h>
#endif

#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/node.h"
#include "vmfs/notify.h"
#include "vmfs/publish.h"
#include "vmfs/registry.h"

#define VFIO_DRIVER "vfio-pci"

static struct {
	GPtrArray *all; /* of HostDev, by ascending number */
	uint32_t next;
#ifdef HAVE_UDEV
	struct udev *udev;
	struct udev_monitor *monitor;
	Watch *watch;
#endif
} host = { .next = 1 };

const HostDev *hostdev_after(HostBus bus, uint32_t number)
{
	for (guint i = 0; host.all && i < host.all->len; i++) {
		const HostDev *d = host.all->pdata[i];

		if (d->number > number && d->bus == bus && !d->hidden)
			return d;
	}
	return NULL;
}

static HostDev *find(HostBus bus, const char *address, bool hidden)
{
	for (guint i = 0; host.all && i < host.all->len; i++) {
		HostDev *d = host.all->pdata[i];

		if (d->bus == bus && d->hidden == hidden && !strcmp(d->address, address))
			return d;
	}
	return NULL;
}

const HostDev *hostdev_find(HostBus bus, const char *address)
{
	return find(bus, address, false);
}

const HostDev *hostdev_by_number(uint32_t number)
{
	for (guint i = 0; host.all && i < host.all->len; i++) {
		const HostDev *d = host.all->pdata[i];

		if (d->number == number && !d->hidden)
			return d;
	}
	return NULL;
}

const HostDev *hostdev_of(const SpecDevice *d)
{
	return d->pci ? hostdev_find(HOSTDEV_PCI, d->pci) : hostdev_find(HOSTDEV_USB, d->usb);
}

/* What a machine of another host names is there. */
static bool names(const Vm *vm, const Spec *spec, const HostDev *dev)
{
	if (strcmp(vm_host(vm), "local"))
		return false;
	for (guint i = 0; i < spec->devices->len; i++) {
		const SpecDevice *d = spec->devices->pdata[i];

		if (!strcmp(dev->address, d->pci ? d->pci : d->usb) &&
		    !d->pci == (dev->bus == HOSTDEV_USB))
			return true;
	}
	return false;
}

static bool runs_with(const Vm *vm, const HostDev *dev)
{
	return vm_is_live(vm) && vm->bv && names(vm, vm->bv->spec, dev);
}

const Vm *hostdev_user(const HostDev *dev)
{
	const GPtrArray *all = registry_all();

	for (guint i = 0; i < all->len; i++)
		if (runs_with(all->pdata[i], dev))
			return all->pdata[i];
	for (guint i = 0; i < all->len; i++)
		if (names(all->pdata[i], ((const Vm *)all->pdata[i])->spec, dev))
			return all->pdata[i];
	return NULL;
}

bool hostdev_check(const Vm *vm, const SpecDevice *d, GError **err)
{
	const HostDev *dev = hostdev_of(d);
	const char *kind = d->pci ? "pci" : "usb", *address = d->pci ? d->pci : d->usb;
	const Vm *user;

	if (!hostdev_is_known())
		return err_set(err, EOPNOTSUPP,
			       "devices.%s: this vmfs was built without libudev, and knows no "
			       "devices",
			       d->name);
	if (!dev)
		return err_set(err, ENOENT,
			       "devices.%s: there is no device %s on this host; see "
			       ".vmfs/devices/%s",
			       d->name, address, kind);
	user = hostdev_user(dev);
	if (user && user != vm && runs_with(user, dev))
		return err_set(err, EBUSY, "devices.%s: VM '%s' runs with %s; take it away there",
			       d->name, user->name, address);
	if (!d->pci)
		return true;
	if (!dev->iommu_group)
		return err_set(
			err, EOPNOTSUPP,
			"devices.%s: %s has no IOMMU group: this host has no IOMMU, or it is "
			"off (intel_iommu=on on the kernel's command line, and in the firmware)",
			d->name, address);
	if (g_strcmp0(dev->driver, VFIO_DRIVER) != 0)
		return err_set(err, EBUSY,
			       "devices.%s: %s is bound to %s%s of this host, not to vfio-pci: "
			       "driverctl set-override %s vfio-pci gives it away",
			       d->name, address, dev->driver ? "driver " : "no driver",
			       dev->driver ? dev->driver : "", address);
	return true;
}

/* ---- libudev ---- */

#ifdef HAVE_UDEV

bool hostdev_is_known(void)
{
	return true;
}

static void clear_facts(HostDev *d)
{
	g_clear_pointer(&d->vendor, g_free);
	g_clear_pointer(&d->device, g_free);
	g_clear_pointer(&d->class, g_free);
	g_clear_pointer(&d->driver, g_free);
	g_clear_pointer(&d->iommu_group, g_free);
	g_clear_pointer(&d->name, g_free);
	g_clear_pointer(&d->node, g_free);
}

static void hostdev_free(void *arg)
{
	HostDev *d = arg;

	clear_facts(d);
	g_free(d->address);
	g_free(d);
}

/* What a device says of itself is not trusted to be text. */
static char *attribute(struct udev_device *dev, const char *name)
{
	const char *value = udev_device_get_sysattr_value(dev, name);
	char *text;

	if (!value)
		return NULL;
	if (g_str_has_prefix(value, "0x"))
		value += 2;
	text = g_utf8_make_valid(value, -1);
	g_strdelimit(g_strstrip(text), "\n\r\t", ' ');
	return text;
}

/* By the database of names, where that is installed. */
static char *database_name(struct udev_device *dev)
{
	const char *modalias = udev_device_get_sysattr_value(dev, "modalias");
	struct udev_hwdb *hwdb = modalias ? udev_hwdb_new(host.udev) : NULL;
	struct udev_list_entry *list, *vendor, *model;
	char *name = NULL;

	if (!hwdb)
		return NULL;
	list = udev_hwdb_get_properties_list_entry(hwdb, modalias, 0);
	vendor = udev_list_entry_get_by_name(list, "ID_VENDOR_FROM_DATABASE");
	model = udev_list_entry_get_by_name(list, "ID_MODEL_FROM_DATABASE");
	if (vendor || model)
		name = g_strdup_printf("%s%s%s", vendor ? udev_list_entry_get_value(vendor) : "",
				       vendor && model ? " " : "",
				       model ? udev_list_entry_get_value(model) : "");
	udev_hwdb_unref(hwdb);
	return name;
}

static void read_pci(HostDev *d, struct udev_device *dev)
{
	g_autofree char *link = g_build_filename(udev_device_get_syspath(dev), "iommu_group", NULL);
	g_autofree char *group = g_file_read_link(link, NULL);

	d->vendor = attribute(dev, "vendor");
	d->device = attribute(dev, "device");
	d->class = attribute(dev, "class");
	if (group) {
		d->iommu_group = g_path_get_basename(group);
		d->node = g_strdup_printf("/dev/vfio/%s", d->iommu_group);
	}
	d->name = database_name(dev);
}

static void read_usb(HostDev *d, struct udev_device *dev)
{
	g_autofree char *maker = attribute(dev, "manufacturer"),
			*product = attribute(dev, "product");

	d->vendor = attribute(dev, "idVendor");
	d->device = attribute(dev, "idProduct");
	d->class = attribute(dev, "bDeviceClass");
	d->node = g_strdup(udev_device_get_devnode(dev));
	if (maker || product)
		d->name = g_strdup_printf("%s%s%s", maker ? maker : "", maker && product ? " " : "",
					  product ? product : "");
	else
		d->name = database_name(dev);
}

static void read_facts(HostDev *d, struct udev_device *dev)
{
	clear_facts(d);
	d->driver = g_strdup(udev_device_get_driver(dev));
	if (d->bus == HOSTDEV_PCI)
		read_pci(d, dev);
	else
		read_usb(d, dev);
}

/* 0: none that is shown, as the interfaces of a USB device, or the root of a bus. */
static HostBus bus_of(struct udev_device *dev)
{
	const char *subsystem = udev_device_get_subsystem(dev),
		   *type = udev_device_get_devtype(dev);

	if (!g_strcmp0(subsystem, "pci"))
		return HOSTDEV_PCI;
	if (!g_strcmp0(subsystem, "usb") && !g_strcmp0(type, "usb_device") &&
	    g_ascii_isdigit(*udev_device_get_sysname(dev)))
		return HOSTDEV_USB;
	return 0;
}

static HostDev *add(HostBus bus, struct udev_device *dev)
{
	HostDev *d = g_new0(HostDev, 1);

	d->number = host.next++;
	d->bus = bus;
	d->address = g_strdup(udev_device_get_sysname(dev));
	read_facts(d, dev);
	g_ptr_array_add(host.all, d);
	return d;
}

static NodeRef directory(HostBus bus)
{
	return (NodeRef){ .node = &devices_bus_row, .sub = bus };
}

static bool came(void *arg)
{
	HostDev *d = arg;

	d->hidden = false;
	return true;
}

static bool went(void *arg)
{
	g_ptr_array_remove(host.all, arg);
	return true;
}

static void take(struct udev_device *dev)
{
	const char *action = udev_device_get_action(dev), *address = udev_device_get_sysname(dev);
	const HostBus bus = bus_of(dev);
	HostDev *d = bus ? find(bus, address, false) : NULL;
	const NodeRef dir = directory(bus);

	if (!bus)
		return;
	if (!g_strcmp0(action, "remove")) {
		if (d)
			publish(PUBLISH_RMDIR, &dir, address, NULL, went, d);
	} else if (d) {
		read_facts(d, dev);
	} else if (!g_strcmp0(action, "add") && !find(bus, address, true)) {
		d = add(bus, dev);
		d->hidden = true;
		publish(PUBLISH_MKDIR, &dir, address, NULL, came, d);
	}
}

static void told(void *arg, int status, int events)
{
	struct udev_device *dev;

	(void)arg;
	(void)status;
	(void)events;
	while ((dev = udev_monitor_receive_device(host.monitor))) {
		take(dev);
		udev_device_unref(dev);
	}
}

static void enumerate(void)
{
	struct udev_enumerate *e = udev_enumerate_new(host.udev);
	struct udev_list_entry *entry;

	udev_enumerate_add_match_subsystem(e, "pci");
	udev_enumerate_add_match_subsystem(e, "usb");
	udev_enumerate_scan_devices(e);
	udev_list_entry_foreach(entry, udev_enumerate_get_list_entry(e))
	{
		struct udev_device *dev =
			udev_device_new_from_syspath(host.udev, udev_list_entry_get_name(entry));
		const HostBus bus = dev ? bus_of(dev) : 0;

		if (bus)
			(void)add(bus, dev);
		if (dev)
			udev_device_unref(dev);
	}
	udev_enumerate_unref(e);
}

/*
 * The kernel tells of every FUSE mount, loop device and veth (add@/devices/virtual/...), on a host
 * of containers all day long: an idle daemon is not to wake for them. In place of libudev's filter,
 * which lets all messages of the kernel's pass and looks at them when they are read.
 */
static void leave_out_virtual(int fd)
{
	const uint32_t virtual = 0x2f766972; /* "/vir" */
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, strlen("add@/devices")),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, virtual, 2, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, strlen("remove@/devices")), /* and change@ */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, virtual, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
	};
	const struct sock_fprog filter = { .len = G_N_ELEMENTS(code), .filter = code };

	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) < 0)
		log_warning("the daemon wakes for virtual devices too: %s", g_strerror(errno));
}

/* The kernel's own messages: there is not always a udevd that passes them on. */
static bool listen_to_kernel(void)
{
	host.monitor = udev_monitor_new_from_netlink(host.udev, "kernel");
	if (!host.monitor)
		return false;
	udev_monitor_filter_add_match_subsystem_devtype(host.monitor, "pci", NULL);
	udev_monitor_filter_add_match_subsystem_devtype(host.monitor, "usb", "usb_device");
	if (udev_monitor_enable_receiving(host.monitor) < 0)
		return false;
	leave_out_virtual(udev_monitor_get_fd(host.monitor));
	host.watch = watch_start(udev_monitor_get_fd(host.monitor), UV_READABLE, told, NULL);
	return true;
}

void hostdev_open(void)
{
	host.all = g_ptr_array_new_with_free_func(hostdev_free);
	host.udev = udev_new();
	if (!host.udev)
		return;
	/* Before the list is made: what comes meanwhile is told of. */
	if (!listen_to_kernel())
		log_warning("the kernel tells of no devices that come and go: %s",
			    g_strerror(errno));
	enumerate();
}

void hostdev_close(void)
{
	watch_stop(&host.watch, false);
	g_clear_pointer(&host.monitor, udev_monitor_unref);
	g_clear_pointer(&host.udev, udev_unref);
	g_clear_pointer(&host.all, g_ptr_array_unref);
}

#else

bool hostdev_is_known(void)
{
	return false;
}

void hostdev_open(void)
{
}

void hostdev_close(void)
{
}

#endif
