# SPDX-License-Identifier: Apache-2.0
"""Whoever waits in the mount while the daemon dies, and who takes over."""
import os
import signal
import struct
import threading
from pathlib import Path

from lib.util import until


class Client(threading.Thread):
    """A system call in the background; its result or its error."""

    def __init__(self, call, *args):
        super().__init__(daemon=True)
        self.call, self.args, self.value, self.error = call, args, None, None
        self.start()

    def run(self):
        try:
            self.value = self.call(*self.args)
        except Exception as e:  # whatever the program would have seen
            self.error = e

    def result(self, timeout=30):
        self.join(timeout)
        assert not self.is_alive(), f"{self.call} is not answered"
        if self.error:
            raise self.error
        return self.value

    def blocks(self):
        """Wait until it sleeps in the mount."""
        wchan = Path(f"/proc/self/task/{until(lambda: self.native_id, 'it runs')}/wchan")
        until(lambda: "wait_answer" in wchan.read_text(), "it waits in the mount")
        return self


def successor(fs, old):
    """Wait until the one that takes over answers; its pid."""
    until(lambda: fs.pid != old, "another daemon")
    fs.host("version")
    return fs.pid


def crash(fs, sig=signal.SIGKILL):
    return successor(fs, fs.crash(sig))


HEAD, SLOT, AREA = 64 << 10, (1 << 20) + (64 << 10), 1 << 30
STATE = 24 + 3 * os.pathconf("/", "PC_PATH_MAX") + 8 + 1024  # vmfs/keep.h: `current`


def kept(fs):
    """What a successor would be told: {kind: {key}}."""
    fds = Path(f"/proc/{fs.proc.pid}/fd")
    name, = (fd for fd in fds.iterdir() if os.readlink(fd).startswith("/memfd:vmfs"))
    found = {}
    with open(name, "rb") as memory:
        memory.seek(STATE)
        area, first, second = struct.unpack("=20xIQQ", memory.read(40))
        memory.seek(HEAD + SLOT + area * AREA)
        log = memory.read((first, second)[area])
    at = 0
    while at < len(log):
        size, kind, op, key = struct.unpack_from("=IHHQ", log, at)
        keys = found.setdefault(kind, set())
        (keys.discard if op == 2 else keys.add)(key)
        at += 16 + (size + 7 & ~7)
    return found
