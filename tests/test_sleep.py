# SPDX-License-Identifier: Apache-2.0
"""Sleep and wake: memory on the disk and back, whatever happens in between."""
import os
import shutil
import signal
import time
from errno import EALREADY, EBADMSG, EBUSY, ECANCELED, EIO, ENOENT, ENOSPC, ESRCH

import pytest

from lib.util import alive, fails, until


def data(fs):
    """The data directory of the only VM."""
    return next((fs.state / "vms").glob("*/data"))


@pytest.fixture
def up(backend):
    vm = backend.vm()
    backend.up(vm)
    backend.remember(vm, "blue")
    return vm


def test_sleep_and_wake(up, backend, fs):
    pid = up.read("pid")
    events = up.events()
    up.do("sleep")
    assert up.state == "asleep" and up.read("pid") == up.read("ip") == ""
    assert not pid or not alive(int(pid))
    events.expect(" state stopping$")
    events.expect(" state asleep$")
    assert up.wait("asleep") == "asleep"
    up.do("wake")
    assert up.state == "running" and up.read("error") == ""
    events.expect(" state starting$")
    events.expect(" state running$")
    assert backend.recall(up) == "blue"
    assert up.wait("ip", 60).split()[0] == backend.ip
    until(lambda: not (data(fs) / "sleep").exists(), "what it slept in is gone")
    up.do("sleep")
    up.do("wake")
    assert backend.recall(up) == "blue"


def test_sleeps_over_a_restart_of_the_daemon(up, backend, fs):
    up.do("sleep")
    fs.kill9()
    fs.restart()
    assert up.state == "asleep"
    up.do("wake")
    assert backend.recall(up) == "blue"


def test_sleeps_over_a_restart_of_the_host(up, backend, fs):
    """Nothing that is in memory is left of the run-time directory."""
    up.do("sleep")
    since = up.status["since"][:19]
    fs.stop()
    shutil.rmtree(fs.run)
    fs.restart()
    assert up.state == "asleep"
    # libvirt keeps no time.
    assert backend.name == "libvirt" or up.status["since"][:19] == since
    assert up.status["backend"] == backend.name
    up.do("wake")
    assert backend.recall(up) == "blue"


def test_paused_machine_sleeps(up, backend):
    up.do("pause")
    up.do("sleep")
    assert up.state == "asleep"
    up.do("wake")
    assert up.state == "running" and backend.recall(up) == "blue"


def test_nouns(up, backend):
    for noun in ("asleep", "asleep", "running"):
        up.do(noun)
        assert up.state == noun
    assert backend.recall(up) == "blue"


def test_what_cannot_be_done_asleep(up, backend, fs):
    up.do("sleep")
    for verb, errno in (("start", EBUSY), ("stop", ESRCH), ("pause", ESRCH), ("resume", ESRCH),
                        ("reset", ESRCH), ("stopped", ESRCH), ("sleep", EALREADY)):
        with fails(errno):
            up.do(verb)
    up.error("EALREADY")
    with fails(ESRCH):
        up.do("stop")
    up.error("ESRCH", "wake", "kill")
    with fails(EBUSY):
        up.dir.rmdir()
    up.error("EBUSY", "asleep", "kill")
    assert up.state == "asleep"
    if backend.name == "libvirt":  # which has the memory by that name
        with fails(EBUSY):
            os.rename(up.dir, fs.mnt / "renamed")
    else:
        os.rename(up.dir, fs.mnt / "renamed")
        up.name = "renamed"
    up.do("wake")
    assert up.state == "running"


def test_what_cannot_be_woken(backend):
    vm = backend.vm()
    with fails(EBUSY):
        vm.do("wake")
    with fails(ESRCH):
        vm.do("sleep")
    vm.do("start")
    with fails(EALREADY):
        vm.do("wake")


def test_kill_gives_up_the_memory(up, backend, fs):
    up.do("sleep")
    up.do("kill")
    assert up.state == "stopped"
    assert not (data(fs) / "sleep").exists()
    fs.kill9()
    fs.restart()
    assert up.state == "stopped"
    up.do("start")
    up.wait("agent", 60)
    assert backend.recall(up) == ""


def test_spec_changed_asleep(up, backend, fs, disk):
    """It wakes with what it slept with, is given what can be given live, and says what it lacks."""
    up.do("sleep")
    assert up.read("pending") == ""
    up.write("spec.yaml", backend.text.replace("cpus: 1", "cpus: 2"))
    assert up.read("pending") == "cpus\n"
    fs.kill9()
    fs.restart()
    assert up.read("pending") == "cpus\n"
    os.symlink(disk(), up / "disks/late")
    assert up.read("pending").split() == ["cpus", "disks.late"]
    up.do("wake")
    until(lambda: up.read("pending") == "cpus\n", "the disk is attached")
    assert backend.recall(up) == "blue" and up.read("error") == ""
    with fails(EBUSY):
        up.write("spec.yaml", "backend: " + ("qemu" if backend.name == "sim" else "sim") + "\n")
    os.unlink(up / "spec.yaml.rej")
    up.do("kill")
    assert up.read("pending") == ""


@pytest.mark.sample(3)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "link", "version"])
def test_damaged_memory(up, backend, fs, damage):
    if backend.name == "libvirt":
        pytest.skip("its memory is in a file of libvirt's own")
    up.do("sleep")
    memory = data(fs) / "sleep/memory"
    manifest = data(fs) / "sleep/manifest"
    good, text = memory.read_bytes(), manifest.read_text()
    errno = EBADMSG
    if damage == "flip":
        memory.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    elif damage == "truncate":
        os.truncate(memory, len(good) - 1)
    elif damage == "remove":
        memory.rename(data(fs) / "elsewhere")
        errno = {"qemu": ENOENT, "sim": EBADMSG}[backend.name]
    elif damage == "manifest":
        manifest.write_text(text[:-10])
    elif damage == "link":
        memory.rename(data(fs) / "elsewhere")
        memory.symlink_to(data(fs) / "elsewhere")
    elif damage == "version":
        manifest.write_text(text.replace("vmfs snapshot 1", "vmfs snapshot 2"))
    with pytest.raises(OSError) as e:
        up.do("wake")
    if damage not in ("link", "version"):
        assert e.value.errno == errno
    up.error(None, "cannot be used")
    assert up.state == "asleep" and up.read("pid") == ""
    if damage in ("remove", "link"):
        memory.unlink(missing_ok=True)
        (data(fs) / "elsewhere").rename(memory)
    memory.write_bytes(good)
    manifest.write_text(text)
    up.do("wake")
    assert backend.recall(up) == "blue"


@pytest.mark.sample(3)
@pytest.mark.parametrize("after_ms", [0, 5, 20, 60, 150])
@pytest.mark.parametrize("verb", ["sleep", "wake"])
def test_kill9_of_the_daemon_in_the_middle(up, backend, fs, verb, after_ms):
    """It is what it was before, or what it was to be, and has lost nothing."""
    if verb == "wake":
        up.do("sleep")
    fs.spawn("bash", "-c", f"echo {verb} > {up / 'state'}")
    time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
    fs.kill9()
    fs.restart()
    if backend.settled(up) == "asleep":
        up.do("wake")
    assert backend.recall(up) == "blue"


def test_daemon_is_replaced_in_the_middle_of_sleep(up, backend, fs):
    """Its successor goes on; what it clears away of the sleep before is not the new one's."""
    for after_ms in (20, 50):
        writer = fs.spawn("bash", "-c", f"echo sleep > {up / 'state'}")
        time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
        fs.crash()
        assert writer.finish(60) == 0, writer.text + up.read("error")
        assert up.state == "asleep" and up.read("error") == ""
        up.do("wake")
    assert backend.recall(up) == "blue"


@pytest.mark.sample(3)
@pytest.mark.qemu
@pytest.mark.parametrize("after_ms", [0, 10, 40, 80])
def test_kill9_of_qemu_in_the_middle_of_sleep(qemu, fs, after_ms):
    vm = qemu.vm()
    qemu.up(vm)
    pid = vm.pid
    events = vm.events()
    writer = fs.spawn("bash", "-c", f"echo sleep > {vm / 'state'}")
    events.expect(" state stopping$")
    time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
    if alive(pid):
        os.kill(pid, signal.SIGKILL)
    writer.finish()
    assert vm.state in ("crashed", "asleep")
    assert (data(fs) / "sleep").exists() == (vm.state == "asleep")
    vm.do("kill" if vm.state == "asleep" else "start")


@pytest.mark.qemu
def test_kill9_of_qemu_in_the_middle_of_wake(qemu, fs):
    vm = qemu.vm()
    qemu.up(vm)
    qemu.remember(vm, "blue")
    vm.do("sleep")
    events = vm.events()
    writer = fs.spawn("bash", "-c", f"echo wake > {vm / 'state'}")
    pid = int(events.expect(r" pid (\d+)$")[1])
    os.kill(pid, signal.SIGKILL)
    writer.finish()
    assert vm.state == "asleep"
    vm.error("EIO", "killed")
    vm.do("wake")
    assert qemu.recall(vm) == "blue"


@pytest.mark.parametrize("verb", ["sleep", "wake"])
def test_kill_in_the_middle(up, backend, fs, verb):
    if verb == "wake":
        up.do("sleep")
    events = up.events()
    writer = fs.spawn("bash", "-c", f"echo {verb} > {up / 'state'}")
    events.expect(" operation " + verb)
    try:
        up.do("kill")
    except OSError as e:  # it had come to its end
        assert e.errno == EALREADY
    writer.finish()
    assert up.state == "stopped"
    until(lambda: not (data(fs) / "sleep").exists(), "the memory is gone")
    up.do("start")
    up.wait("agent", 60)
    assert backend.recall(up) == ""


def test_full_disk(sim, fs):
    vm = sim.vm()
    vm.do("start")
    sim.remember(vm, "blue")
    vm.sim("disk full")
    with fails(ENOSPC):
        vm.do("sleep")
    assert vm.state == "running" and not (data(fs) / "sleep").exists()
    vm.sim("disk ok")
    vm.do("sleep")
    vm.do("wake")
    assert sim.recall(vm) == "blue"


@pytest.mark.parametrize("fault,errno", [("fail sleep EIO", EIO), ("fail wake ENOSPC", ENOSPC)])
def test_faults(sim, fault, errno):
    vm = sim.vm()
    vm.do("start")
    sim.remember(vm, "blue")
    vm.sim(fault)
    with fails(errno):
        vm.do("sleep")
        vm.do("wake")
    assert vm.state == ("running" if "sleep" in fault else "asleep")
    if vm.state == "asleep":
        vm.do("wake")
    assert sim.recall(vm) == "blue"


def test_cancelled_sleep_tells_why(sim, fs):
    vm = sim.vm()
    vm.do("start")
    vm.sim("hang sleep")
    waiting = fs.spawn("python3", "-c",
                       f"import os; f = os.open('{vm / 'state'}', os.O_WRONLY)\n"
                       "os.write(f, b'sleep')\n"
                       "try: os.close(f)\nexcept OSError as e: print('errno', e.errno)")
    until(lambda: vm.state == "stopping", "it goes to sleep")
    vm.do("kill")
    waiting.expect(f"errno {ECANCELED}")
    assert vm.state == "stopped"


@pytest.mark.qemu
def test_disk_is_full(qemu, fs):
    """A file system that is too small for the memory."""
    vm = qemu.vm()
    qemu.up(vm)
    qemu.remember(vm, "blue")
    small = data(fs)
    if os.geteuid():
        pytest.skip("mounting needs root")
    until(lambda: vm.read("console.log"), "the console has said something")
    fs.sh(f"mkdir {small}/sleep.d; mount -t tmpfs -o size=8m tmpfs {small}/sleep.d")
    try:
        os.symlink("sleep.d", small / "sleep")
        with pytest.raises(OSError):
            vm.do("sleep")
        assert vm.state == "running"
        assert qemu.recall(vm) == "blue"
    finally:
        fs.sh(f"umount {small}/sleep.d")


@pytest.mark.qemu
def test_clock(qemu):
    """The guest's clock is right soon after it woke, by its agent."""
    vm = qemu.vm()
    qemu.up(vm)
    vm.do("sleep")
    time.sleep(3)  # what a clock that stood still would lack
    vm.do("wake")
    until(lambda: "clock" not in vm.status, "the agent has set the clock")
    told = int(qemu._shell(vm, "echo time:$(date +%s):", r"time:(\d+):")[1])
    assert abs(told - time.time()) < 2


@pytest.mark.qemu
def test_late_clock_is_told(qemu):
    vm = qemu.vm(spec=qemu.spec("vmfs.noagent"))
    vm.do("start")
    qemu.booted(vm)
    vm.do("sleep")
    vm.do("wake")
    assert vm.status["clock"].startswith("late ")


@pytest.mark.qemu
def test_network_after_wake(qemu, fs):
    vm = qemu.vm(spec=qemu.spec(nic='{network: user, ports: ["127.0.0.1:0:22"]}'))
    vm.do("start")
    qemu.booted(vm)
    vm.wait("ip", 60)
    vm.do("sleep")
    assert "port.eth0.22" not in vm.status
    vm.do("wake")
    assert vm.wait("ip", 60).split()[0] == qemu.ip
    until(lambda: "port.eth0.22" in vm.status, "the port is forwarded again")
