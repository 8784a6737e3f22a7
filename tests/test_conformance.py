# SPDX-License-Identifier: Apache-2.0
"""One suite that every backend passes: the life of a VM as its user sees it."""
import os
import re
from errno import EALREADY, EBUSY, EINVAL, ESRCH

import pytest

from lib.util import alive, exists, fails, get, until


@pytest.fixture
def up(backend):
    """A VM whose guest has booted."""
    vm = backend.vm()
    vm.do("start")
    backend.booted(vm)
    return vm


def test_life(backend, fs):
    """The main job, as in the README."""
    fs.sh("mkdir web1")
    (fs.base / "web.yaml").write_text(backend.text)
    fs.sh(f"cp {fs.base}/web.yaml web1/spec.yaml; echo start > web1/state")
    vm = fs.vm("web1")
    assert vm.state == "running"
    assert fs.sh("ip=$(timeout 60 cat web1/wait/ip); echo $ip").stdout.split()[0] == backend.ip
    assert vm.read("ip").splitlines()[0] == backend.ip
    fs.sh("echo 'stop 10' > web1/state")
    assert vm.state == "stopped" and vm.read("pid") == "" and vm.read("ip") == ""
    assert vm.read("error") == ""
    fs.sh("rmdir web1")
    assert fs.names() == []


def test_status(up, backend):
    status = up.status
    assert status["state"] == "running"
    assert status["backend"] == backend.name
    assert status["host"] == "local"
    assert "since" in status and "operation" not in status
    if up.read("pid"):
        assert status["pid"] == up.read("pid").strip()


def test_pid(up):
    """Of a process that is there while the VM runs and not after; empty if there is none."""
    text = up.read("pid")
    assert text == "" or alive(int(text))
    up.do("kill")
    assert up.read("pid") == ""
    assert text == "" or not alive(int(text))


def test_console_round_trip(up, backend):
    typed, shown = backend.type()
    console = up.follow("console")
    up.write("console", typed, 0)
    console.expect(re.escape(shown))
    until(lambda: shown in up.read("console.log"), "console.log has it too")
    late = up.follow("console")
    late.expect(re.escape(shown))


def test_tty(up, backend):
    typed, shown = backend.type()
    fd = os.open(up / "tty", os.O_RDWR | os.O_NOCTTY)
    try:
        assert os.isatty(fd)
    finally:
        os.close(fd)
    console = up.follow("console")
    up.fs.sh("stty -F web1/tty > /dev/null; printf '%s' \"$TYPED\" > web1/tty",
             env={"TYPED": typed})
    console.expect(re.escape(shown))


def test_agent(up):
    up.wait("agent", 60)


def test_graceful_stop(up, backend):
    events = up.events()
    up.do("stop 30")
    assert up.state == "stopped"
    events.expect(" state stopping$")
    events.expect(" state stopped$")


def test_forced_stop(backend):
    vm = backend.stubborn_vm()
    vm.do("stop 1")
    assert vm.state == "stopped" and vm.read("pid") == ""
    vm.do("start")  # it left nothing that is in the way
    assert vm.state == "running"


def test_kill_while_stop_waits(backend):
    vm = backend.stubborn_vm()
    events = vm.events()
    waiting = vm.fs.spawn("bash", "-c", f"echo 'stop 600' > {vm / 'state'}")
    events.expect(" state stopping$")
    vm.do("kill")
    assert vm.state == "stopped"
    waiting.finish()


def test_kill_at_once(backend):
    vm = backend.vm()
    vm.do("start")
    vm.do("kill")
    assert vm.state == "stopped"
    vm.do("start")
    assert vm.state == "running"


def test_pause_and_resume(up, backend):
    typed, shown = backend.type()
    up.do("pause")
    assert up.state == "paused"
    with fails(EALREADY):
        up.do("pause")
    up.do("resume")
    assert up.state == "running"
    console = up.follow("console")
    up.write("console", typed, 0)
    console.expect(re.escape(shown))


@pytest.mark.parametrize("verb", ["reboot", "reset"])
def test_boots_again(up, backend, verb):
    up.wait("agent", 60)
    watch, pid = backend.watch(up), up.read("pid")
    up.do(verb)
    assert up.state == "running"
    backend.rebooted(watch)
    assert up.read("pid") == pid


def test_crash(up, backend):
    backend.crash(up)
    up.wait("crashed", 10)
    assert up.state == "crashed"
    assert up.status["reason"] == backend.after_crash
    assert up.read("pid") == "" and up.read("ip") == ""
    with fails(ESRCH):
        up.do("pause")
    up.do("start")
    assert up.state == "running"


def test_guest_powers_off(up, backend):
    backend.poweroff(up)
    up.wait("stopped")
    assert up.state == "stopped"
    assert up.status["reason"] == "guest-shutdown"
    assert up.read("pid") == ""


def test_errnos(backend):
    vm = backend.vm()
    for verb, errno in (("stop", EALREADY), ("kill", EALREADY), ("pause", ESRCH), ("reset", ESRCH)):
        with fails(errno):
            vm.do(verb)
    vm.do("start")
    with fails(EALREADY):
        vm.do("start")
    with fails(EBUSY):
        vm.dir.rmdir()
    with fails(EBUSY):
        os.rename(vm.dir, vm.fs.mnt / "web2")
    assert vm.state == "running"


def test_nouns(backend):
    vm = backend.vm()
    for noun in ("stopped", "running", "running", "paused", "running", "stopped"):
        vm.do(noun)
        assert vm.state == noun


def test_cmdline_is_a_dry_run(backend):
    vm = backend.vm()
    before = vm.read("cmdline")
    assert before.strip() and vm.state == "stopped" and vm.read("pid") == ""
    assert vm.read("cmdline") == before
    vm.do("start")
    assert vm.read("cmdline") == before


def test_pending(backend):
    vm = backend.vm()
    vm.do("start")
    vm.write("spec.yaml", backend.text.replace("cpus: 1", "cpus: 2"))
    assert vm.read("pending") == "cpus\n"
    vm.do("stopped")
    assert vm.read("pending") == ""
    vm.do("start")
    assert vm.read("pending") == ""


def test_rename_then_start(backend):
    vm = backend.vm()
    vm.do("start")
    vm.do("kill")
    os.rename(vm.dir, vm.fs.mnt / "renamed")
    vm.name = "renamed"
    vm.do("start")
    assert vm.state == "running"


def test_two_machines(backend, fs):
    one, two = backend.vm("one"), backend.vm("two")
    one.do("start")
    two.do("start")
    one.do("kill")
    assert (one.state, two.state) == ("stopped", "running")
    assert not one.read("pid") or one.read("pid") != two.read("pid")


def test_remove_leaves_nothing(backend, fs):
    backend.vm("other")
    before = fs.stored()
    vm = backend.vm()
    vm.do("start")
    backend.booted(vm)
    assert fs.stored() > before
    vm.do("kill")
    vm.dir.rmdir()
    assert not exists(vm.dir)
    until(lambda: fs.stored() <= before, "nothing is left of it on disk")


def test_lives_again_and_again(backend):
    vm = backend.vm()
    for _ in range(5):
        vm.do("start")
        assert vm.state == "running"
        vm.do("kill")
        assert vm.state == "stopped"
    assert vm.read("error") == ""


def test_screen(up):
    """A picture of the display, and only while there is one."""
    picture = get(up / "screen.png")
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert (up / "screen.png").stat().st_size == len(picture)
    up.do("pause")
    assert get(up / "screen.png").startswith(b"\x89PNG")
    up.do("kill")
    assert not exists(up / "screen.png")


def test_stats(up):
    lines = up.read("stats").splitlines()
    counters = {key: int(value) for key, value in map(str.split, lines)}
    assert len(counters) == len(lines)
    assert {"cpu.count", "cpu.time_us", "memory.max", "memory.rss"} <= set(counters)
    assert counters["cpu.count"] == 1
    before = counters["cpu.time_us"]
    until(lambda: f"cpu.time_us {before}\n" not in up.read("stats"), "time goes by")
    up.do("kill")
    assert up.read("stats") == ""


def test_keys(up):
    up.write("keys", "a ret\n")
    with fails(EINVAL):
        up.write("keys", "a nosuchkey\n")
    up.error("EINVAL", "nosuchkey")
    up.write("keys", "ctrl-alt-delete\n")
    assert up.read("error") == ""


def test_monitor(up):
    for _ in range(2):
        done = up.fs.sh("exec 3<>web1/monitor; echo info status >&3; cat <&3")
        assert done.stdout == "VM status: running\n"
