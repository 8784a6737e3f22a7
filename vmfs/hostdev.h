/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The PCI and USB devices of this host, as .vmfs/devices shows them: read from sysfs by libudev
 * when the daemon starts, and again when the kernel tells of a change. Loop thread only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmfs/spec.h"

typedef struct Vm Vm;

typedef enum HostBus { HOSTDEV_PCI = 1, HOSTDEV_USB } HostBus;

typedef struct HostDev {
	uint32_t number; /* never another one's */
	HostBus bus;
	char *address; /* "0000:01:00.0", "1-2.3" */
	/* As lspci and lsusb have them, in hexadecimal digits; or NULL, as all of these. */
	char *vendor, *device, *class;
	char *driver;	   /* of this host, that it is bound to */
	char *iommu_group; /* PCI only */
	char *name;
	char *node;  /* what is opened to use it: /dev/bus/usb/001/002, /dev/vfio/7 */
	bool hidden; /* about to come */
} HostDev;

/* Read all of them. Blocks; at start only. */
void hostdev_open(void);
void hostdev_close(void);
/* There can be some: vmfs was built with libudev. */
bool hostdev_is_known(void);

/* Those that are shown. NULL: none. */
const HostDev *hostdev_after(HostBus bus, uint32_t number);
const HostDev *hostdev_find(HostBus bus, const char *address);
const HostDev *hostdev_by_number(uint32_t number);
/* Of what a spec names; NULL: it is not there. */
const HostDev *hostdev_of(const SpecDevice *d);
/* The VM that has it, or would have it at its start; NULL: none. One that is live comes first. */
const Vm *hostdev_user(const HostDev *dev);
/*
 * Could this VM be given it now? ENOENT, EBUSY (another one runs with it, or it is bound to a
 * driver of this host's) or EOPNOTSUPP (no IOMMU), with a sentence. Whether its owner may open it
 * is not looked at.
 */
bool hostdev_check(const Vm *vm, const SpecDevice *d, GError **err);
