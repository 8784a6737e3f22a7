# SPDX-License-Identifier: Apache-2.0
"""Whoever waits in the mount while the daemon dies, and who takes over."""
import signal
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
