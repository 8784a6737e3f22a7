# SPDX-License-Identifier: Apache-2.0
"""The command: options, background, mount(8), and how it ends."""
import os
import shutil
import subprocess
from errno import ENOSPC
from pathlib import Path

import pytest

from lib.daemon import BINARY
from lib import util
from lib.util import PATIENCE, fails, mounts, processes, until


def vmfs(box, *args, **env):
    return subprocess.run([BINARY, *args], capture_output=True, text=True, timeout=PATIENCE,
                          stdin=subprocess.DEVNULL, env=box.environ(**env))


def dirs(box):
    return [f"--state-dir={box.state}", f"--runtime-dir={box.run}"]


def unmount(box):
    """`fusermount3 -u`, and the daemon in the background ends."""
    util.unmount(box.mnt)
    assert str(box.mnt) not in mounts()
    until(lambda: not processes(str(box.mnt)), "the daemon has ended")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(box, option):
    done = vmfs(box, option)
    assert done.returncode == 0 and not done.stderr
    for word in ("vmfs", "--state-dir", "--runtime-dir", "-f", "-d", "-o", "-V"):
        assert word in done.stdout, word


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(box, option):
    done = vmfs(box, option)
    assert done.returncode == 0
    version = box.start().host("version").strip()
    assert version and version.split()[-1] in done.stdout


@pytest.mark.parametrize("args", [["--no-such-option"], ["-o", "no_such_option=1"], ["-x"], [],
                                  ["-o", "verb_timeout=soon"], ["-o", "ids=9-3"], ["-o", "ids=x"]])
def test_bad_usage(box, args):
    mnt = [str(box.mnt)] if args else []
    done = vmfs(box, "-f", *dirs(box), *args, *mnt)
    assert done.returncode not in (0, -6, -11) and " " in done.stderr.strip()
    assert "Sanitizer" not in done.stderr
    assert str(box.mnt) not in mounts()


def test_mount_point_missing(box):
    done = vmfs(box, "-f", *dirs(box), str(box.base / "nowhere"))
    assert done.returncode != 0 and "nowhere" in done.stderr


def test_mount_point_is_a_file(box):
    (box.base / "file").touch()
    done = vmfs(box, "-f", *dirs(box), str(box.base / "file"))
    assert done.returncode != 0 and "file" in done.stderr


def test_state_directory_cannot_be_made(box):
    (box.base / "file").touch()
    state = f"--state-dir={box.base}/file/s"
    done = vmfs(box, "-f", state, f"--runtime-dir={box.run}", str(box.mnt))
    assert done.returncode != 0 and f"{box.base}/file" in done.stderr
    assert str(box.mnt) not in mounts()


def test_background(box):
    """It returns when the mount is ready, and holds neither the terminal nor the pipe."""
    done = vmfs(box, *dirs(box), str(box.mnt))
    assert done.returncode == 0, done.stderr
    vm = box.vm("web1", "backend: sim\n")
    vm.do("start")
    pids = processes(str(box.mnt))
    assert pids
    for pid in pids:
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) != os.getsid(0)
    unmount(box)
    box.start()
    until(lambda: vm.state == "running", "the VM is found again")


def test_relative_paths(box):
    """They are the caller's, who may well stand elsewhere than the daemon."""
    (box.base / "hosts").write_text("test test:///default\n")
    relative = [os.path.relpath(path, box.base) for path in (box.state, box.run, box.mnt)]
    state, run, mnt = relative
    done = subprocess.run([BINARY, f"--state-dir={state}", f"--runtime-dir={run}",
                           "-o", "hosts=hosts", mnt], cwd=box.base, capture_output=True,
                          text=True, timeout=PATIENCE, env=box.environ())
    assert done.returncode == 0, done.stderr
    pids = processes(f"--state-dir={state}")
    assert pids and str(box.mnt) in mounts()
    box.vm("web1", "backend: sim\n").do("start")
    assert list(box.state.iterdir()) and "test" in os.listdir(box.mnt / ".vmfs/hosts")
    util.unmount(box.mnt)
    until(lambda: not set(pids) & set(processes(f"--state-dir={state}")), "the daemon has ended")
    box.start()
    until(lambda: box.vm("web1").state == "running", "the VM is found again")


def test_background_says_what_is_wrong(box):
    box.start()
    other = box.base / "other"
    other.mkdir()
    done = vmfs(box, *dirs(box), str(other))
    assert done.returncode == 1
    assert str(box.state) in done.stderr and str(other) not in mounts()


def test_options_by_o(box):
    done = vmfs(box, "-o", f"state_dir={box.state},runtime_dir={box.run},ids=100-102", str(box.mnt))
    assert done.returncode == 0, done.stderr
    assert {box.vm(name).read("id") for name in "abc"} <= {"100\n", "101\n", "102\n"}
    with fails(ENOSPC):
        box.vm("d")
    assert box.names() == ["a", "b", "c"]
    box.vm("b").dir.rmdir()
    box.vm("d")
    assert box.state.is_dir()
    unmount(box)


def test_fstab(box):
    """As mount(8) does it for a line of fstab."""
    if not shutil.which("mount.fuse3"):
        pytest.skip("mount.fuse3 is not installed")
    options = f"rw,noatime,nosuid,nodev,_netdev,state_dir={box.state},runtime_dir={box.run}"
    done = subprocess.run(["mount.fuse3", f"{BINARY}#vms", box.mnt, "-o", options], text=True,
                          capture_output=True, timeout=PATIENCE, env=box.environ())
    assert done.returncode == 0, done.stderr
    assert box.vm("web1").state == "stopped"
    unmount(box)


def test_fusermount_ends_it_and_leaves_vms(box):
    box.start()
    vm = box.vm("web1", "backend: sim\n")
    vm.do("start")
    util.unmount(box.mnt)
    assert box.wait_exit() == 0
    assert str(box.mnt) not in mounts()
    box.restart()
    until(lambda: vm.state == "running", "the VM is found again")


@pytest.mark.parametrize("sig", [2, 15])
def test_signals_end_it(box, sig):
    box.start()
    box.vm("web1")
    assert box.end(sig) == 0
    assert str(box.mnt) not in mounts()
    assert os.listdir(box.mnt) == []


def test_debug(box):
    """-d stays in the foreground and tells more."""
    box.start("-d")
    box.vm("web1", "backend: sim\n").do("start")
    assert box.log_text


def test_log_is_quiet(box):
    box.start()
    vm = box.vm("web1", "backend: sim\n")
    vm.do("start")
    vm.do("stop")
    assert box.end(15) == 0
    assert len(box.log_text.splitlines()) < 20, box.log_text


VIRTUAL = Path("/sys/devices/virtual/mem/zero/uevent")  # the kernel tells what is written there


def test_idle_daemon_sleeps(box):
    """An idle daemon does not wake up, nor for what the kernel tells of virtual devices."""
    box.start()
    for n in range(50):
        box.vm(f"web{n}", "backend: sim\n").do("start")
    status = f"/proc/{box.pid}/status"

    def switches():
        with open(status) as f:
            return [line for line in f if "ctxt_switches" in line]

    def quiet():
        before = switches()
        for action in ("add", "change") if os.access(VIRTUAL, os.W_OK) else ():
            VIRTUAL.write_text(action)
        subprocess.run(["sleep", "1"], check=True)  # what is measured is this second
        return switches() == before
    until(quiet, "a second without a wake-up")
