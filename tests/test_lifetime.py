# SPDX-License-Identifier: Apache-2.0
"""autostart, restart and expires: what happens to a machine without anyone asking."""
import os
import shutil
import signal
import time
from datetime import datetime, timedelta, timezone
from errno import EBADMSG, EINVAL

import pytest

from lib.util import alive, exists, fails, get, until


def spec(*lines):
    return "".join(f"{line}\n" for line in ("backend: sim", *lines))


def crashing(fs, *lines, name="web1"):
    return fs.vm(name, spec("restart_delay: 10ms", *lines)).to("running")


def restarts(vm):
    return int(vm.status.get("restarts", 0))


def parse_time(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def in_seconds(seconds):
    when = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


# restart

@pytest.mark.parametrize("policy, order, again", [
    ("never", "die", False), ("on-crash", "die", True), ("always", "die", True),
    ("on-crash", "panic", True), ("never", "poweroff", False), ("on-crash", "poweroff", False),
    ("always", "poweroff", True),
])
def test_when_it_is_started_again(fs, policy, order, again):
    vm = crashing(fs, f"restart: {policy}")
    events = vm.events()
    vm.sim(order)
    events.expect(r" state (crashed|stopped)$")
    if again:
        events.expect(r" restart \d{4}-")
        events.expect(" state running$")
        assert restarts(vm) == 1
    else:
        other = crashing(fs, "restart: on-crash", name="web2")
        other.sim("die")
        until(lambda: restarts(other) == 1, "another is started again meanwhile")
        assert vm.state in ("crashed", "stopped") and restarts(vm) == 0
        assert "restart" not in vm.status


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_its_user_ends_it(fs, verb):
    vm = crashing(fs, "restart: always")
    vm.do(verb)
    assert vm.state == "stopped" and "restart" not in vm.status
    vm.do("start")
    vm.sim("die")
    until(lambda: restarts(vm) == 1 and vm.state == "running", "it is started again")
    vm.do("kill")
    vm.do("start")
    assert restarts(vm) == 0  # counted since its user started it


@pytest.mark.parametrize("order", ["stop", "kill", "stopped"])
def test_cancelled_while_it_waits(fs, order):
    vm = fs.vm("web1", spec("restart: on-crash", "restart_delay: 1h")).to("running")
    events = vm.events()
    vm.sim("die")
    events.expect(r" restart \d{4}-")
    assert vm.state == "crashed" and vm.status["reason"] == "signal-9"
    left = parse_time(vm.status["restart"]) - datetime.now(timezone.utc)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    vm.do(order)
    events.expect(" restart -$")
    assert vm.state == "stopped" and "restart" not in vm.status
    assert vm.read("error") == ""


def test_started_by_hand_while_it_waits(fs):
    vm = fs.vm("web1", spec("restart: on-crash", "restart_delay: 1h")).to("running")
    vm.sim("die")
    until(lambda: "restart" in vm.status, "it waits")
    vm.do("start")
    assert vm.state == "running" and "restart" not in vm.status and restarts(vm) == 0


def test_a_new_document_ends_the_waiting(fs):
    vm = fs.vm("web1", spec("restart: on-crash", "restart_delay: 1h")).to("running")
    vm.sim("die")
    until(lambda: "restart" in vm.status, "it waits")
    vm.write("spec.yaml", spec("restart: never"))
    assert "restart" not in vm.status and vm.state == "crashed"


def test_removed_while_it_waits(fs):
    vm = fs.vm("web1", spec("restart: on-crash", "restart_delay: 50ms")).to("running")
    vm.sim("die")
    until(lambda: vm.status.get("restart") or restarts(vm), "it waits")
    vm.do("stop")
    vm.dir.rmdir()
    assert fs.names() == []


def test_the_pause_doubles(fs):
    """50, 100, 200 ms: by the times that status tells."""
    vm = fs.vm("web1", spec("restart: on-crash", "restart_delay: 50ms")).to("running")
    events = vm.events()
    pauses = []
    for _ in range(3):
        vm.sim("die")
        events.expect(" state crashed$")
        line = events.expect(r"^(\S+) web1 restart (\S+)$")
        pauses.append(parse_time(line[2]) - parse_time(line[1]))
        events.expect(" state running$")
    for pause, ms in zip(pauses, (50, 100, 200)):
        assert timedelta(milliseconds=ms - 20) < pause <= timedelta(milliseconds=ms)
    assert restarts(vm) == 3


def test_a_start_that_fails_is_tried_again(fs):
    vm = crashing(fs, "restart: on-crash")
    events = vm.events()
    vm.sim("fail start ENOSPC")
    vm.sim("die")
    events.expect(" error .* start ENOSPC: ")
    events.expect(" state running$")
    assert restarts(vm) == 2 and vm.read("error") == ""


def test_a_start_that_is_killed_is_not(fs):
    vm = crashing(fs, "restart: on-crash")
    events = vm.events()
    vm.sim("hang start")
    vm.sim("die")
    events.expect(" state starting$")
    vm.do("kill")
    assert vm.state == "stopped" and "restart" not in vm.status


def test_a_start_by_hand_that_fails_is_not(fs):
    vm = fs.vm("web1", spec("restart: always", "restart_delay: 10ms"))
    vm.sim("fail start EIO")
    with pytest.raises(OSError):
        vm.do("start")
    assert vm.state == "stopped" and "restart" not in vm.status


def test_the_daemon_is_restarted_while_it_waits(fs):
    vm = fs.vm("web1", spec("restart: on-crash", "restart_delay: 2s")).to("running")
    vm.sim("die")
    until(lambda: "restart" in vm.status, "it waits")
    fs.kill9()
    fs.restart()
    until(lambda: vm.state == "running", "it is started again")
    assert restarts(vm) == 1
    fs.stop()
    fs.restart()
    assert restarts(vm) == 1


def test_takes_effect_at_once(fs):
    vm = fs.vm("web1", spec()).to("running")
    vm.write("spec.yaml", spec("restart: on-crash", "restart_delay: 10ms", "autostart: true",
                               "expires: 1d", "stop_timeout: 1s"))
    assert vm.read("pending") == ""
    vm.sim("die")
    until(lambda: restarts(vm) == 1 and vm.state == "running", "it is started again")


@pytest.mark.qemu
def test_qemu_that_is_killed(qemu):
    vm = qemu.vm(spec=qemu.spec(extra="restart: on-crash\nrestart_delay: 10ms\n"))
    vm.do("start")
    pid = vm.pid
    events = vm.events()
    os.kill(pid, signal.SIGKILL)
    events.expect(" state crashed$")
    events.expect(" state running$")
    assert vm.pid != pid and alive(vm.pid)


@pytest.mark.qemu
def test_qemu_that_is_killed_while_nobody_looks(fs, qemu):
    vm = qemu.vm(spec=qemu.spec(extra="restart: on-crash\nrestart_delay: 10ms\n"))
    vm.do("start")
    pid = vm.pid
    fs.kill9()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), "it is gone")
    fs.restart()
    until(lambda: vm.state == "running", "it is started again")


# autostart

def reboot(fs):
    """As if the host had: nothing runs, and the run-time directory is empty."""
    fs.stop()
    shutil.rmtree(fs.run)
    (fs.state / "boot").write_text("00000000-0000-0000-0000-000000000000\n")
    fs.restart()


def test_autostart(fs):
    vms = [fs.vm(f"web{i}", spec("autostart: true")) for i in range(10)]
    other = fs.vm("other", spec())
    other.do("start")
    fs.stop()
    fs.restart()
    assert {vm.state for vm in vms} == {"stopped"} and other.state == "running"
    reboot(fs)
    for vm in vms:
        vm.wait("running")
    assert other.state == "stopped"
    vms[0].do("stop")
    fs.stop()
    fs.restart()
    until(lambda: vms[1].state == "running", "they are found")
    assert vms[0].state == "stopped"  # by hand, and not since the boot


def test_autostart_that_fails(fs):
    vm = fs.vm("web1", spec("autostart: true"))
    with fails(EINVAL, EBADMSG):
        vm.write("spec.yaml", "nonsense: true\n")
    good = fs.vm("web2", spec("autostart: true"))
    reboot(fs)
    good.wait("running")
    until(lambda: vm.read("error"), "it is told")
    assert vm.error("EBADMSG", "spec.yaml.rej")[0] == "start"
    assert vm.state == "stopped"


@pytest.mark.qemu
def test_autostart_of_qemu(fs, qemu):
    vm = qemu.vm(spec=qemu.spec(extra="autostart: true\n"))
    vm.do("start")
    os.kill(vm.pid, signal.SIGKILL)
    vm.wait("crashed")
    reboot(fs)
    vm.wait("running")


# expires

def gone(vm):
    return until(lambda: not exists(vm.dir), "it is removed")


def test_expires(fs):
    vm = fs.vm("web1", spec("expires: 1s"))
    running = fs.vm("web2", spec("expires: 1s")).to("running")
    events = fs.spawn("cat", fs.mnt / ".vmfs/events")
    events.expect(" web2 state running$")
    assert parse_time(vm.status["expires"]) - datetime.now(timezone.utc) <= timedelta(seconds=1)
    gone(vm)
    gone(running)
    events.expect(" web2 expired ")
    events.expect(" web2 state stopping$")
    events.expect(" web2 removed ")
    assert fs.names() == []
    assert not list((fs.state / "vms").glob("*"))


def test_expires_at_a_date(fs):
    vm = fs.vm("web1", spec(f"expires: {in_seconds(2)}"))
    gone(vm)


def test_counted_from_when_it_was_written(fs):
    """Another edit does not prolong it; another value does."""
    vm = fs.vm("web1", spec("expires: 1h"))
    first = vm.status["expires"]
    vm.write("spec.yaml", spec("expires: 1h", "cpus: 2"))
    assert vm.status["expires"] == first
    vm.write("spec.yaml", spec("expires: 2h"))
    later = vm.status["expires"]
    assert parse_time(later) - parse_time(first) >= timedelta(hours=1)
    fs.kill9()
    fs.restart()
    assert vm.status["expires"] == later
    vm.write("spec.yaml", spec())
    assert "expires" not in vm.status


def test_the_daemon_is_away_at_that_time(fs):
    early = fs.vm("early", spec("expires: 1s"))
    late = fs.vm("late", spec("expires: 1h"))
    end = time.time() + 1
    fs.stop()
    until(lambda: time.time() > end, "its time has come")
    fs.restart()
    gone(early)
    assert exists(late.dir)


def test_the_guest_is_asked_first(fs):
    vm = fs.vm("web1", spec("expires: 1s", "stop_timeout: 1s", "restart: always",
                            "restart_delay: 10ms")).to("running")
    vm.sim("ignore stop")
    events = vm.events()
    events.expect(" state stopping$")
    events.expect(" reason forced$")
    gone(vm)


def test_more_time_while_it_is_stopped(fs):
    vm = fs.vm("web1", spec("expires: 1s", "stop_timeout: 600s")).to("running")
    vm.sim("ignore stop")
    vm.events().expect(" state stopping$")
    vm.write("spec.yaml", spec("expires: 1h"))
    vm.do("kill")
    assert vm.state == "stopped"
    vm.do("start")
    assert vm.state == "running"


def test_busy_at_that_time(fs):
    vm = fs.vm("web1", spec("expires: 1s"))
    vm.sim("slow start 1500")
    vm.do("start")
    gone(vm)


def test_an_attached_file_stays(fs, scratch):
    disk = scratch / "disk.raw"
    disk.write_bytes(b"data")
    vm = fs.vm("web1", spec("expires: 1s", f"disks: {{root: {{file: {disk}}}}}"))
    gone(vm)
    assert disk.read_bytes() == b"data"


@pytest.mark.parametrize("line, words", [
    ("expires: soon", "neither"), ("expires: 2020-01-01T00:00:00Z", "future"),
    ("expires: 0s", "future"), ("expires: 2030-01-01", "neither"),
    ("expires: 2030-01-01T00:00:00", "neither"), ("expires: 2030-13-01T00:00:00Z", "neither"),
    ("expires: 99999d", "limit"), ("expires: -1h", "neither"), ("expires: [1h]", "one value"),
    ("restart: sometimes", "never"), ("restart_delay: 1ms", "10ms"),
    ("restart_delay: 2h", "limit"), ("autostart: maybe", "true"),
])
def test_bad_values(vm, line, words):
    with fails(EINVAL, EBADMSG):
        vm.write("spec.yaml", spec(line))
    vm.error(None, words)
    assert exists(vm.dir)


@pytest.mark.qemu
def test_qemu_expires(fs, qemu):
    vm = qemu.vm(spec=qemu.spec(extra="expires: 1h\n"))
    vm.do("start")
    pid = vm.pid
    vm.write("spec.yaml", qemu.spec(extra="expires: 1s\n"))
    gone(vm)
    until(lambda: not alive(pid), "QEMU is gone")
    assert get(fs.mnt / ".vmfs/list") == b""
