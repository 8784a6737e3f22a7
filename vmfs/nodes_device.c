/* SPDX-License-Identifier: Apache-2.0 */
/* .vmfs/devices/{pci,usb}/ADDRESS/: the devices of this host. */
#include <string.h>

#include "vmfs/hostdev.h"
#include "vmfs/node.h"

static const char *const buses[] = { [HOSTDEV_PCI] = "pci", [HOSTDEV_USB] = "usb" };

static uint32_t next_bus(const NodeRef *dir, uint32_t after, char name[256])
{
	(void)dir;
	if (after + 1 >= G_N_ELEMENTS(buses))
		return 0;
	g_strlcpy(name, buses[after + 1], 256);
	return after + 1;
}

static uint32_t find_bus(const NodeRef *dir, const char *name)
{
	(void)dir;
	for (uint32_t i = 1; i < G_N_ELEMENTS(buses); i++)
		if (!strcmp(buses[i], name))
			return i;
	return 0;
}

static uint32_t next_device(const NodeRef *dir, uint32_t after, char name[256])
{
	const HostDev *d = hostdev_after((HostBus)dir->sub, after);

	if (!d)
		return 0;
	g_strlcpy(name, d->address, 256);
	return d->number;
}

static uint32_t find_device(const NodeRef *dir, const char *name)
{
	const HostDev *d = hostdev_find((HostBus)dir->sub, name);

	return d ? d->number : 0;
}

static void show(GString *out, const char *value)
{
	if (value && *value)
		g_string_append_printf(out, "%s\n", value);
}

#define SHOW(member)                                                                               \
	static void show_##member(const NodeRef *r, GString *out)                                  \
	{                                                                                          \
		const HostDev *d = hostdev_by_number(r->sub);                                      \
                                                                                                   \
		show(out, d ? d->member : NULL);                                                   \
	}

SHOW(vendor)
SHOW(device)
SHOW(class)
SHOW(driver)
SHOW(iommu_group)
SHOW(name)

static void show_attached(const NodeRef *r, GString *out)
{
	const HostDev *d = hostdev_by_number(r->sub);
	const Vm *vm = d ? hostdev_user(d) : NULL;

	show(out, vm ? vm->name : NULL);
}

static bool is_pci(const NodeRef *r)
{
	const HostDev *d = hostdev_by_number(r->sub);

	return d && d->bus == HOSTDEV_PCI;
}

bool devices_present(const NodeRef *r)
{
	(void)r;
	return hostdev_is_known();
}

#define REG(mode) (S_IFREG | (mode))

// clang-format off
static const Node device_rows[] = {
	{ 183, "vendor", REG(0444), .show = show_vendor, .doc = "number of its vendor, as lspci and lsusb have it" },
	{ 184, "device", REG(0444), .show = show_device, .doc = "the vendor's number of it" },
	{ 185, "class", REG(0444), .show = show_class, .doc = "what it is, as a number" },
	{ 186, "driver", REG(0444), .show = show_driver,
	  .doc = "the host's driver that it is bound to; a PCI device can be given to a VM when that is vfio-pci" },
	{ 187, "iommu_group", REG(0444), .show = show_iommu_group, .present = is_pci,
	  .doc = "devices of one group go to one VM; empty: there is no IOMMU" },
	{ 188, "name", REG(0444), .show = show_name, .doc = "its name, where one is known" },
	{ 189, "attached", REG(0444), .show = show_attached, .doc = "the VM in whose devices/ it is" },
	{ 0 },
};
static const Dir device_dir = { .rows = device_rows };
static const Node device_row = {
	182, "ADDRESS", S_IFDIR | 0755, .dir = &device_dir,
	.doc = "a device, like 0000:01:00.0 or 1-2; comes and goes as the host sees it",
};
static const Dir bus_dir = { .child = &device_row, .next = next_device, .find = find_device };
const Node devices_bus_row = {
	181, "BUS", S_IFDIR | 0755, .dir = &bus_dir, .doc = "pci or usb",
};
const Dir devices_dir_of_host = { .child = &devices_bus_row, .next = next_bus, .find = find_bus };
// clang-format on
