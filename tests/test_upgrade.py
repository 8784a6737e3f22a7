# SPDX-License-Identifier: Apache-2.0
"""Another version takes over, and nobody in the mount notices; or the old one goes on."""
import os
import shutil
import signal
import subprocess

import pytest

from lib.crash import Client, crash, successor
from lib.daemon import BINARY
from lib.util import until, wait_blocked


@pytest.fixture
def installed(box):
    """vmfs from a copy that can be replaced, as a package does it."""
    copy = box.base / "bin" / "vmfs"
    copy.parent.mkdir()
    shutil.copy(BINARY, copy)
    command = box.command
    box.command = lambda *args: [copy, *command(*args)[1:]]
    box.start()

    def replace(source):
        shutil.copy(source, copy.with_suffix(".new"))
        os.rename(copy.with_suffix(".new"), copy)
    box.replace = replace
    return box


def test_upgrade(installed):
    fs, vm = installed, installed.vm("web1", "backend: sim\n")
    reader, fd = vm.follow("console"), os.open(vm / "state", os.O_RDONLY)
    wait_blocked(reader.proc.pid)
    fs.replace(BINARY)
    new, old = os.stat(fs.base / "bin/vmfs").st_ino, fs.pid
    fs.proc.send_signal(signal.SIGHUP)
    successor(fs, old)
    assert os.stat(f"/proc/{fs.pid}/exe").st_ino == new
    assert os.pread(fd, 100, 0) == b"stopped\n"
    vm.do("start")
    reader.expect("sim: boot")
    assert os.pread(fd, 100, 0) == b"running\n"
    os.close(fd)
    until(lambda: "a new version serves" in fs.log_text, "the keeper says so")
    words = [*fs.supervisor.told]
    reload = next(n for n, word in enumerate(words) if "RELOADING" in word)
    assert int(words[reload]["MONOTONIC_USEC"]) > 0
    until(lambda: any("READY" in word for word in fs.supervisor.told[reload:]), "it is ready")
    assert os.stat(f"/proc/{crash(fs)}/exe").st_ino == new
    # A second one: the first was no exception.
    old = fs.pid
    fs.proc.send_signal(signal.SIGHUP)
    successor(fs, old)


def upgrade(fs, *args):
    return subprocess.run([BINARY, "--upgrade", f"--state-dir={fs.state}",
                           f"--runtime-dir={fs.run}", *args], capture_output=True, text=True,
                          timeout=60, check=False)


def test_upgrade_by_command(installed):
    """It returns when the new version serves, and those who wait in the mount go on."""
    fs, vm = installed, installed.vm("web1", "backend: sim\n")
    reader = vm.follow("console")
    wait_blocked(reader.proc.pid)
    for _ in range(2):
        fs.replace(BINARY)
        done = upgrade(fs, fs.mnt)
        assert (done.returncode, done.stdout) == (0, f"the new version serves {fs.mnt}\n")
        assert os.stat(f"/proc/{fs.pid}/exe").st_ino == os.stat(fs.base / "bin/vmfs").st_ino
    vm.do("start")
    reader.expect("sim: boot")


def test_upgrade_by_command_that_fails(installed):
    """What is told is who serves now."""
    fs, vm, old = installed, installed.vm("web1", "backend: sim\n"), installed.pid
    inode = os.stat(f"/proc/{old}/exe").st_ino
    fs.replace("/bin/false")
    done = upgrade(fs, fs.mnt)
    assert (done.returncode, done.stdout) == (
        1, f"the new version ended with status 1 before it served; the old one serves {fs.mnt}\n")
    assert fs.pid != old and os.stat(f"/proc/{fs.pid}/exe").st_ino == inode
    (fs.base / "bin/vmfs").unlink()
    old, done = fs.pid, upgrade(fs, fs.mnt)
    assert done.returncode == 1 and "No such file" in done.stdout and fs.pid == old
    assert vm.state == "stopped"


def test_upgrade_of_another_mount(fs):
    old, other = fs.pid, fs.base / "other"
    other.mkdir()
    done = upgrade(fs, other)
    assert done.returncode == 1 and "somewhere else" in done.stdout
    done = upgrade(fs, fs.mnt, f"--runtime-dir={other}")
    assert done.returncode == 1 and "cannot reach the keeper" in done.stderr
    assert fs.pid == old
    fs.stop()
    assert upgrade(fs, fs.mnt).returncode == 1 and not (fs.run / "keeper").exists()


def test_two_upgrades_at_once(installed):
    """One after the other; and one whose caller leaves is done all the same."""
    fs, old = installed, installed.pid
    clients = [Client(upgrade, fs, fs.mnt) for _ in range(3)]
    assert [c.result().returncode for c in clients] == [0, 0, 0]
    with subprocess.Popen([BINARY, "--upgrade", f"--state-dir={fs.state}",
                           f"--runtime-dir={fs.run}", fs.mnt], stdout=subprocess.PIPE) as gone:
        before = successor(fs, old)
        until(lambda: fs.pid != before or gone.poll() is not None, "it is under way")
        gone.kill()
    until(lambda: upgrade(fs, fs.mnt).returncode == 0, "another one")


@pytest.mark.parametrize("program", ["/bin/false", "/etc/hostname"])
def test_upgrade_to_what_does_not_come_up(installed, program):
    """The old one again, and nobody has noticed."""
    fs, vm = installed, installed.vm("web1", "backend: sim\n")
    reader = vm.follow("console")
    wait_blocked(reader.proc.pid)
    fs.replace(program)
    old, inode = fs.pid, os.stat(f"/proc/{fs.pid}/exe").st_ino
    fs.proc.send_signal(signal.SIGHUP)
    until(lambda: "the old one goes on" in fs.log_text, "the keeper says so")
    successor(fs, old)
    assert os.stat(f"/proc/{fs.pid}/exe").st_ino == inode
    vm.do("start")
    reader.expect("sim: boot")
    until(lambda: "READY" in fs.supervisor.told[-1], "it is ready")


@pytest.mark.slow
def test_upgrade_to_what_hangs(installed):
    fs, vm = installed, installed.vm("web1", "backend: sim\n")
    fs.replace(shutil.which("cat"))  # waits for its input
    (fs.base / "bin/vmfs").unlink()
    (fs.base / "bin/vmfs").symlink_to(shutil.which("yes"))
    old = fs.pid
    fs.proc.send_signal(signal.SIGHUP)
    until(lambda: "the old one goes on" in fs.log_text, "the keeper says so", 60)
    successor(fs, old)
    assert vm.state == "stopped"
