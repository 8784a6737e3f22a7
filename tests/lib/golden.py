# SPDX-License-Identifier: Apache-2.0
"""
Guests that have booted, as snapshots: whoever needs one but is not about booting has it in a tenth
of the time.
"""
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lib.util import until

NAME = "golden"
TAR = ["tar", "--record-size=1M"]  # what it reads and writes at once


class Golden:
    def __init__(self):
        self.base = Path(tempfile.mkdtemp(prefix="vmfs-golden-", dir="/tmp"))
        self.tars = {}  # by spec

    def keep(self, vm):
        """Of a VM that runs, unless it is made of files that no other has."""
        if tempfile.gettempdir() in vm.spec:
            return
        tar = self.base / f"{len(self.tars)}.tar"
        (vm / "snapshots" / NAME).mkdir()
        vm.wait("snapshots", 60)
        subprocess.run([*TAR, "-cf", tar, "-C", vm / "snapshots", NAME], check=True)
        self._forget(vm)
        self.tars[vm.spec] = tar

    def has(self, vm):
        return vm.spec in self.tars

    def restore(self, vm):
        """Into one that is stopped."""
        subprocess.run([*TAR, "-xf", self.tars[vm.spec], "-C", vm / "snapshots"], check=True)
        until(lambda: vm.read(f"snapshots/{NAME}/state") == "ready\n", "it is imported")
        vm.do(f"restore {NAME}")
        self._forget(vm)

    def _forget(self, vm):
        (vm / "snapshots" / NAME).rmdir()
        stored = vm.fs.state / "vms" / vm.read("id").strip() / "data"
        until(lambda: not list(stored.glob("snap.*")), "nothing is left of it")

    def close(self):
        shutil.rmtree(self.base)


class Saved:
    """Those of a libvirtd: what domains that had booted had in memory, for others of the same XML."""

    UUID = re.compile(rb"<uuid>.*</uuid>")

    def __init__(self, libvirtd):
        self.libvirtd, self.images = libvirtd, {}

    def _xml(self, vm):
        """The domain's, and what of it is not its own."""
        xml = self.libvirtd.virsh("dumpxml", "--inactive", vm.name).stdout.encode()
        return xml, self.UUID.sub(b"", xml).replace(bytes(vm.fs.base), b"")

    def keep(self, vm):
        """Of a VM that runs, which goes on."""
        xml, alike = self._xml(vm)
        path = self.libvirtd.dir / f"golden{len(self.images)}"
        self.libvirtd.virsh("save", vm.name, path)
        self.images[alike] = path, self.UUID.search(xml)[0], bytes(vm.fs.base)
        self._resume(vm, path)

    def has(self, vm):
        return self._xml(vm)[1] in self.images

    def restore(self, vm):
        """Into one that is stopped."""
        xml, alike = self._xml(vm)
        path, *old = self.images[alike]
        new = [self.UUID.search(xml)[0], bytes(vm.fs.base)]
        assert [*map(len, new)] == [*map(len, old)]
        with open(path, "r+b") as image:
            head = image.read(8192)
            for a, b in zip(old, new):
                head = head.replace(a, b)
            image.seek(0)
            image.write(head)
        self.images[alike] = (path, *new)
        self._resume(vm, path)

    def _resume(self, vm, path):
        self.libvirtd.virsh("restore", path)
        vm.wait("running")
