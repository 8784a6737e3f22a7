# SPDX-License-Identifier: Apache-2.0
"""Deadlines, errnos, reading and writing as a user's programs do, and /proc."""
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from errno import errorcode
from pathlib import Path

import pytest

PATIENCE = 30  # seconds; generous, for no test measures speed


def until(cond, what, timeout=PATIENCE):
    """Wait until cond() is true and return its value. For what no file announces."""
    end = time.monotonic() + timeout
    while not (value := cond()):
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.01)
    return value


@contextmanager
def deadline(seconds=PATIENCE):
    """Fail when the system calls inside take longer. Only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(*_):
        raise AssertionError(f"no answer within {seconds} s")

    handler = signal.signal(signal.SIGALRM, expired)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def fails(*errnos):
    """The block must raise an OSError with one of these errnos."""
    with pytest.raises(OSError) as caught:
        yield
    got = caught.value.errno
    assert got in errnos, (f"{caught.value}: {errorcode.get(got)}, "
                           f"not {' or '.join(errorcode[e] for e in errnos)}")


def put(path, data, flags=os.O_TRUNC):
    """Open, write, close, as `echo` does: one write(2) unless it is cut short. All may fail."""
    data = data.encode() if isinstance(data, str) else data
    with deadline():
        fd = os.open(path, os.O_WRONLY | flags)
        try:
            while data:
                data = data[os.write(fd, data):]
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)


def get(path, timeout=PATIENCE):
    """The whole of a file, as `cat` gets it."""
    with deadline(timeout), open(path, "rb", buffering=0) as f:
        return f.read()


def exists(path):
    return os.path.lexists(path)


def links(vm, kind="disks"):
    """What is attached: names to targets."""
    return {n: os.readlink(vm / kind / n) for n in os.listdir(vm / kind)}


def unmount(mnt):
    """`fusermount3 -u`, which says EBUSY for the moment in which a watcher is being told."""
    until(lambda: subprocess.run(["fusermount3", "-u", mnt], capture_output=True, cwd="/",
                                 check=False).returncode == 0, f"{mnt} can be unmounted")


def mounts():
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def unmount_disk(path):
    """As soon as the last process that was killed has let go of it."""
    until(lambda: not subprocess.run(["umount", path], check=False).returncode, f"{path} is free")


def processes(word):
    """Pids of the other processes that have this word in their command line."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if word.encode() in Path("/proc", pid, "cmdline").read_bytes():
                found.add(int(pid))
    return found - {os.getpid()}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_blocked(pid, timeout=PATIENCE):
    """Wait until the process (or one of those it is a shell for) sleeps in a FUSE request."""
    def asleep():
        if not alive(pid):
            raise AssertionError(f"process {pid} ended instead of blocking")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids = [pid, *map(int, children)]
        return any("wait_answer" in Path(f"/proc/{p}/wchan").read_text() for p in pids)
    until(asleep, f"process {pid} blocks in the mount", timeout)


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
ERROR = re.compile(rf"{TIME} (?P<verb>\S+) (?P<errno>E[A-Z0-9]+): (?P<sentence>\S.*)\n")
