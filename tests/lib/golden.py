# SPDX-License-Identifier: Apache-2.0
"""
A guest that has booted, as a snapshot: whoever needs one but is not about booting has it in a
tenth of the time.
"""
import shutil
import subprocess
import tempfile
from pathlib import Path

from lib.daemon import Vmfs
from lib.util import until

NAME = "golden"


class Golden:
    def __init__(self):
        self.base = Path(tempfile.mkdtemp(prefix="vmfs-golden-", dir="/tmp"))
        self.tar = self.base / "golden.tar"

    def make(self, qemu_of):
        fs = Vmfs(self.base)
        try:
            qemu = qemu_of(fs.start())
            vm = qemu.vm()
            vm.do("start")
            qemu.booted(vm)
            vm.wait("agent", 60)
            (vm / "snapshots" / NAME).mkdir()
            vm.wait("snapshots", 60)
            subprocess.run(["tar", "-C", vm / "snapshots", "-cf", self.tar, NAME], check=True)
        finally:
            problems = fs.close()
        assert not problems, problems

    def restore(self, vm):
        """Into a VM that is stopped, of the same spec."""
        subprocess.run(["tar", "-C", vm / "snapshots", "-xf", self.tar], check=True)
        until(lambda: vm.read(f"snapshots/{NAME}/state") == "ready\n", "it is imported")
        vm.do(f"restore {NAME}")
        (vm / "snapshots" / NAME).rmdir()
        stored = vm.fs.state / "vms" / vm.read("id").strip() / "data"
        until(lambda: not list(stored.glob("snap.*")), "nothing is left of it")

    def close(self):
        shutil.rmtree(self.base)
