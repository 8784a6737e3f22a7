# SPDX-License-Identifier: Apache-2.0
"""A host with other devices than it has: sysfs and the kernel's messages, by umockdev.

It is made by a process of its own (this file as a program), for who tells of a device must see the
mock as well: it takes calls as lines of JSON, and answers each with a line.
"""
import json
import os
import subprocess
import sys

PRELOAD = "libumockdev-preload.so.0"


class MockHost:
    """What a vmfs that is started with env() finds in /sys."""

    def __init__(self):
        options = os.environ.get("ASAN_OPTIONS", "")
        env = {"LD_PRELOAD": PRELOAD, "ASAN_OPTIONS": f"{options}:verify_asan_link_order=0"}
        self.proc = subprocess.Popen(["/usr/bin/python3", __file__], env={**os.environ, **env},
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.root = self.call("get_root_dir")
        self.env = {**env, "UMOCKDEV_DIR": self.root}

    def call(self, name, *args):
        self.proc.stdin.write(json.dumps([name, *args]) + "\n")
        self.proc.stdin.flush()
        return json.loads(self.proc.stdout.readline())

    def close(self):
        self.proc.stdin.close()
        assert self.proc.wait(10) == 0
        self.proc.stdout.close()

    def pci(self, address, vendor="0x10de", device="0x1b80", group=None, driver=None):
        path = self.call("add_device", "pci", address, None,
                         ["vendor", vendor, "device", device, "class", "0x030000"], [])
        if group is not None:
            self.call("set_attribute_link", path, "iommu_group",
                      f"../../kernel/iommu_groups/{group}")
        if driver:
            self.call("set_attribute_link", path, "driver", f"../../bus/pci/drivers/{driver}")
        return path

    def tell(self, path, action):
        self.call("uevent", path, action)

    def driver(self, path, name):
        """It is bound to another one."""
        link = f"{self.root}{path}/driver"
        if os.path.lexists(link):
            os.unlink(link)
        self.call("set_attribute_link", path, "driver", f"../../bus/pci/drivers/{name}")
        self.tell(path, "bind")

    def usb(self, address, bus=1, number=5, **attributes):
        values = {"idVendor": "0951", "idProduct": "1666", "bDeviceClass": "00",
                  "busnum": str(bus), "devnum": str(number), "manufacturer": "Kingston",
                  "product": "DataTraveler", **attributes}
        return self.call("add_device", "usb", address, None,
                         [x for pair in values.items() for x in pair],
                         ["DEVTYPE", "usb_device", "DEVNAME", f"bus/usb/{bus:03}/{number:03}"])

    def remove(self, path):
        self.tell(path, "remove")
        self.call("remove_device", path)


def main():
    import gi
    gi.require_version("UMockdev", "1.0")
    from gi.repository import UMockdev
    bed = UMockdev.Testbed.new()
    for line in sys.stdin:
        name, *args = json.loads(line)
        print(json.dumps(getattr(bed, name)(*args)), flush=True)


if __name__ == "__main__":
    main()
