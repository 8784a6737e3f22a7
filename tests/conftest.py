# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a daemon and a mount for each test, a real guest for the session."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

sys.dont_write_bytecode = True

import pytest

pytest.register_assert_rewrite("lib.crash", "lib.util", "lib.vm", "lib.daemon", "lib.backends", "lib.guest")

from lib.backends import BACKENDS, Libvirt, Qemu, Sim
from lib import faults
from lib.golden import Golden
from lib.daemon import BINARY, ROOT, Vmfs
from lib.libvirtd import Libvirtd, missing, places

HUNG = 180  # seconds after which a test is a failure whatever it waits for
HUNG_SLOW = 1200


# A shell's background job ignores ^C, and what it starts inherits that; a handler does not survive exec.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    # Those with guests last long: the short ones are what the end is shared out of.
    items.sort(key=lambda item: not item.get_closest_marker("qemu"))
    if config.getoption("--all"):
        return
    seen = Counter()
    for item in items:
        slow = item.get_closest_marker("slow")
        sample = item.get_closest_marker("sample")
        if sample and item.get_closest_marker("qemu"):
            test = (item.function, item.callspec.params.get("backend"))
            slow = slow or seen[test] % sample.args[0]
            seen[test] += 1
        if slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with --all"))


def is_worker(config):
    """Of pytest-xdist: the tests run in several processes, and one that runs none is over them."""
    return hasattr(config, "workerinput")


def pytest_configure(config):
    if not is_worker(config):
        config.places = ExitStack()
        config.places.enter_context(places())


def pytest_unconfigure(config):
    if not is_worker(config):
        config.places.close()


def pytest_sessionfinish(session):
    if is_worker(session.config):
        session.config.workeroutput["faults"] = faults.table


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    faults.table += getattr(node, "workeroutput", {}).get("faults", [])


def pytest_terminal_summary(terminalreporter):
    """The faults that were survived, with counts."""
    for what, counts in sorted(faults.table, key=lambda row: row[0]):
        terminalreporter.write_line(
            f"{what:45} " + "  ".join(f"{name} {n}" for name, n in counts.items()))


def pytest_collection_finish(session):
    if not BINARY.exists() and not session.config.option.collectonly:
        pytest.exit(f"{BINARY} is missing: build vmfs, or set VMFS_BIN", 1)


@pytest.fixture
def box(request):
    """A daemon, not started, with directories of its own. Nothing of it survives the test."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    base = Path(tempfile.mkdtemp(prefix="vmfs-", dir="/tmp"))
    base.chmod(0o711)  # the scratch users of test_perms pass through
    box = Vmfs(base)
    # A daemon that answers nothing would hang the test for ever. Its death frees all who wait.
    limit = HUNG_SLOW if request.node.get_closest_marker("slow") else HUNG
    watchdog = threading.Timer(limit, box.give_up, [f"the test took over {limit} s"])
    watchdog.start()
    try:
        yield box
    finally:
        watchdog.cancel()
        problems = box.close()
        print(box.log_text)  # pytest shows it when the test failed
        shutil.rmtree(base, ignore_errors=True)
        if base.exists():
            problems.append(f"{base} cannot be removed")
    assert not problems, "\n".join(problems)


@pytest.fixture
def fs(box, request):
    """A daemon, mounted at fs.mnt."""
    marker = request.node.get_closest_marker("daemon")
    args = list(marker.args) if marker else []
    callspec = getattr(request.node, "callspec", None)
    if callspec and callspec.params.get("backend") == "libvirt":
        args.append(f"-ohost=local={request.getfixturevalue('domains').uri}")
    return box.start(*args)


@pytest.fixture
def vm(fs):
    """A stopped VM of the sim backend."""
    return fs.vm("web1", "backend: sim\n")


@pytest.fixture(scope="session")
def guest():
    """The small guest of contrib/mkguest: kernel, initrd, disk (qcow2), rawdisk."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("qemu-system-x86_64 is not installed")
    out = subprocess.run([ROOT / "contrib/mkguest"], stdout=subprocess.PIPE, text=True,
                         timeout=1800, check=True).stdout
    values = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return SimpleNamespace(**{k: values[k] for k in ("kernel", "initrd", "disk", "rawdisk")})


@pytest.fixture(scope="session")
def libvirtd():
    """A libvirtd of our own, for the session."""
    if why := missing():
        pytest.skip(why)
    found = Libvirtd()
    yield found
    found.close()


@pytest.fixture
def sim(fs):
    return Sim(fs)


@pytest.fixture(scope="session")
def golden():
    """Where a guest that has booted is kept; one is, as soon as it is needed."""
    found = Golden()
    yield found
    found.close()


@pytest.fixture
def qemu(fs, guest, golden):
    return Qemu(fs, guest, golden)


@pytest.fixture
def domains(libvirtd):
    """That libvirtd, without domains before and after."""
    libvirtd.clear()
    yield libvirtd
    libvirtd.clear()


@pytest.fixture
def libvirt(fs, guest, domains):
    return Libvirt(fs, guest, domains)


MARKS = {"qemu": [pytest.mark.qemu], "libvirt": [pytest.mark.qemu, pytest.mark.libvirt]}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, [])) for name in BACKENDS])
def backend(request):
    """Each backend in turn: how to have a VM of it, and how to make its guest do things."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def thorough(request):
    """Whether this is the long run: where a part of the rounds is enough in the other."""
    return request.config.getoption("--all")


@pytest.fixture
def scratch():
    """A directory outside of the mount."""
    path = Path(tempfile.mkdtemp(prefix="vmfs-scratch-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def disk(scratch):
    """Makes raw disks; returns a path."""
    def make(name="data.raw"):
        path = scratch / name
        with open(path, "wb") as f:
            f.truncate(8 << 20)
        return path
    return make


@pytest.fixture
def up(vm):
    """A running VM of the sim backend."""
    vm.do("start")
    return vm
