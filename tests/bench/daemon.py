# SPDX-License-Identifier: Apache-2.0
"""vmfs itself, as the tests start it, on directories of the bench's."""
import os
from contextlib import suppress
from pathlib import Path

from lib.daemon import Vmfs

from machine import say

SIM = "backend: sim\n"


class Daemon(Vmfs):
    def __init__(self, bench, *args, **env):
        super().__init__(bench.directory("vmfs"))
        self.run = bench.directory("vmfs", fast=True)
        self.bench, self.env = bench, env
        bench.cleanup.callback(self.finish)
        self.start(*args)

    def finish(self):
        for problem in self.close():
            say(problem)

    def pids(self):
        """Its processes, in case it is more than one."""
        found, binary = [self.proc.pid], os.readlink(f"/proc/{self.proc.pid}/exe")
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                for child in map(int, children.read_text().split()):
                    with suppress(OSError):
                        if os.readlink(f"/proc/{child}/exe") == binary:
                            found.append(child)
        return found

    def path(self, *names):
        return self.mnt.joinpath(*names)

    def make(self, name, spec=SIM):
        """A VM; the path of its directory."""
        path = self.mnt / name
        path.mkdir()
        if spec:
            (path / "spec.yaml").write_text(spec)
        return path

    def fill(self, first, last, spec=SIM):
        for i in range(first, last):
            self.make(f"fill-{i}", spec)

    def write(self, name, *texts):
        """Turns of writing to a file of a VM."""
        return self.bench.turns("turn", "write", self.path(name), *texts)
