# SPDX-License-Identifier: Apache-2.0
"""A supervisor such as systemd: restarts, and the descriptors that it holds for vmfs."""
import os
import signal
import subprocess

import pytest

from lib.daemon import ROOT
from lib.util import alive, mounts, until, wait_blocked

NAMES = {"vmfs-mount", "vmfs-memory", "vmfs-state", "vmfs-runtime"}


@pytest.fixture
def held(box):
    """vmfs under a supervisor with a descriptor store."""
    box.supervisor.holds = True
    return box.start()


def stop(fs):
    """As on `systemctl stop`: nothing is held any more."""
    assert fs.end(signal.SIGTERM) == 0
    assert any("STOPPING" in words for words in fs.supervisor.told)
    until(lambda: not fs.supervisor.held, "nothing is held")
    assert str(fs.mnt) not in mounts()


def test_all_die_and_nobody_notices(held):
    """A whole control group is killed: no process is left, and the mount goes on with the next."""
    fs, vm = held, held.vm("web1", "backend: sim\n")
    assert set(fs.supervisor.held) == NAMES
    console, state = vm.follow("console"), os.open(vm / "state", os.O_RDONLY)
    waiting = vm.follow(".io/wait/running")
    for reader in (console, waiting):
        wait_blocked(reader.proc.pid)
    fifo = fs.base / "go"
    os.mkfifo(fifo)
    shell = fs.spawn("bash", "-c", f"cd {vm.dir} && read <{fifo} && cat state ../web1/state")
    for _ in range(3):
        fs.kill9()
        assert str(fs.mnt) in mounts()
        late = fs.spawn("cat", vm / "state")
        wait_blocked(late.proc.pid)
        fs.restart()
        assert late.finish() == 0 and late.text == "stopped\n"
    assert mounts().count(str(fs.mnt)) == 1
    vm.do("start")
    assert waiting.finish() == 0 and waiting.text == "running\n"
    console.expect("sim: boot")
    assert os.pread(state, 100, 0) == b"running\n"
    os.close(state)
    fifo.write_text("\n")
    assert shell.finish() == 0 and shell.text == "running\n" * 2
    stop(fs)


def test_a_command_is_done_once(held):
    """It had begun when all died: the next ones go on with it."""
    fs, vm = held, held.vm("web1", "backend: sim\n")
    vm.sim("hang start")
    events = vm.events()
    order = fs.spawn("bash", "-c", f"echo start > {vm / 'state'}; echo answer $?")
    until(lambda: vm.status.get("operation", "").startswith("start"), "it starts")
    fs.kill9()
    fs.restart()
    order.expect("^answer 0$")
    assert vm.state == "running"
    assert len(events.text.split(" state running\n")) <= 2
    stop(fs)


def test_restart_without_a_gap(held):
    """The signal of a restart: the keeper goes, the daemon serves until the next keeper is there."""
    fs, vm = held, held.vm("web1", "backend: sim\n")
    reader, old = vm.follow("console"), fs.pid
    wait_blocked(reader.proc.pid)
    assert fs.end(signal.SIGUSR1) == 0
    assert fs.pid == old and vm.state == "stopped"
    fs.restart()
    assert fs.pid != old and not alive(old) and set(fs.supervisor.held) == NAMES
    vm.do("start")
    reader.expect("sim: boot")
    stop(fs)


def test_restart_without_a_store(fs, vm):
    """The same where the supervisor holds nothing, and by one that starts the next at once."""
    old = fs.pid
    assert fs.end(signal.SIGUSR1) == 0
    fs.restart()
    assert vm.state == "stopped" and fs.pid != old and mounts().count(str(fs.mnt)) == 1


def test_unmounted_meanwhile(held):
    """What is held is then of no use: it is mounted anew."""
    fs, vm = held, held.vm("web1", "backend: sim\n")
    fs.kill9()
    subprocess.run(["fusermount3", "-uz", fs.mnt], check=True)
    fs.restart()
    assert vm.state == "stopped" and mounts().count(str(fs.mnt)) == 1
    stop(fs)


def test_store_that_has_lost_something(held):
    """Less than all is nothing: the dead mount is cleared away."""
    fs, vm = held, held.vm("web1", "backend: sim\n")
    fs.kill9()
    os.close(fs.supervisor.held.pop("vmfs-memory"))
    fs.restart()
    assert vm.state == "stopped" and mounts().count(str(fs.mnt)) == 1


@pytest.mark.slow
def test_daemon_that_does_not_make_room(held):
    """It is frozen: the next keeper does not serve beside it, and the one after that takes over."""
    fs, vm = held, held.vm("web1", "backend: sim\n")
    old = fs.pid
    os.kill(old, signal.SIGSTOP)
    fs.end(signal.SIGKILL)
    fs.launch()
    try:
        assert fs.proc.wait(60) == 1
    finally:
        os.kill(old, signal.SIGCONT)
    fs.proc = None
    assert "does not make room" in fs.log_text
    assert vm.state == "stopped" and fs.pid == old
    fs.restart()
    assert vm.state == "stopped" and not alive(old)
    stop(fs)


def test_unit_holds_what_vmfs_gives():
    unit = dict(line.split("=", 1) for line in
                (ROOT / "contrib/systemd/vmfs.service.in").read_text().splitlines()
                if "=" in line and not line.startswith("#"))
    assert int(unit["FileDescriptorStoreMax"]) >= len(NAMES)
    assert unit["RestartKillSignal"] == "SIGUSR1" and unit["KillMode"] == "process"
