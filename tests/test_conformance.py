# SPDX-License-Identifier: Apache-2.0
"""One suite that every backend passes: the life of a VM as its user sees it."""
import os
import re
from errno import EALREADY, EBUSY, EINVAL, ENOSPC, EOPNOTSUPP, EPIPE, ESRCH

import pytest

from lib.util import alive, exists, fails, get, until


@pytest.fixture
def up(backend):
    """A VM whose guest has booted."""
    vm = backend.vm()
    backend.up(vm)
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
        assert up.status["pid"] == up.read("pid").strip()


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
    backend.up(vm)
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


# Commands in the guest


def with_exec(vm, backend):
    if "exec" not in vm.fs.host(f"backends/{backend.name}/capabilities").split():
        assert not (vm / "exec").exists()
        pytest.skip(f"{backend.name} runs no commands in its guest")
    return vm


def with_agent(vm, backend):
    """The VM, running commands in its guest, where its backend can have it do so."""
    with_exec(vm, backend)
    backend.up(vm)
    vm.wait("agent", 60)
    return vm


@pytest.fixture
def guest_up(backend):
    return with_agent(backend.vm(), backend)


def test_exec(guest_up):
    """As in the tree's manual: a command, its output, its end."""
    vm = guest_up
    vm.fs.sh("mkdir web1/exec/j; echo 'echo hello' > web1/exec/j/cmd")
    assert vm.fs.sh("timeout 30 cat web1/exec/j/stdout").stdout == "hello\n"
    assert vm.read("exec/j/status") == "exit 0\n" and vm.read("exec/j/cmd") == "echo hello\n"
    vm.fs.sh("rmdir web1/exec/j")
    assert os.listdir(vm / "exec") == []


def test_exec_statuses(guest_up):
    for command, status in (("false", "exit 1"), ("exit 3", "exit 3"), ("nonsense", "exit 127")):
        with guest_up.job(command) as job:
            assert (job.out(), job.status) == (b"", status)


def test_exec_stderr(guest_up):
    with guest_up.job("echo oops >&2") as job:
        assert (job.out(), job.err()) == (b"", b"oops\n")


def test_exec_stdin(guest_up):
    data = os.urandom(300_000)
    with guest_up.job("cat") as job:
        writer = guest_up.fs.spawn("bash", "-c", f"cat {job.file(data)} > {job / 'stdin'}")
        assert job.out() == data
        assert writer.finish() == 0 and job.status == "exit 0"
        with fails(EPIPE):
            job.write("stdin", "more")


def test_exec_stdin_before_the_command(guest_up):
    with guest_up.job() as job:
        assert job.status == "new"
        job.write("stdin", "early\n")
        job.run("cat")
        assert job.out() == b"early\n"


def test_exec_stdin_ends_with_its_last_writer(guest_up):
    with guest_up.job("cat") as job:
        out = guest_up.follow(f"exec/{job.name}/stdout")
        guest_up.fs.sh(f"exec 3>{job / 'stdin'}; echo one >&3; echo two >&3; exec 3>&-")
        out.expect("one\ntwo\n")
        assert out.finish() == 0


def test_exec_signal(guest_up):
    with guest_up.job("sleep 600") as job:
        assert job.status == "running"
        with fails(EBUSY):
            job.dir.rmdir()
        with fails(EBUSY):
            job.run("echo no")
        with fails(EINVAL):
            job.write("status", "stop it\n")
        job.write("status", "signal 15\n")
        assert job.out() == b"" and job.status == "signal 15"
        with fails(ESRCH):
            job.write("status", "signal 9\n")
        with fails(EALREADY):
            job.run("echo again")


def test_exec_output_that_nobody_reads(guest_up):
    """The guest waits: neither it nor vmfs keeps what is too much."""
    with guest_up.job("yes") as job:
        with open(job / "stdout", "rb", buffering=0) as out:
            data = b""
            while len(data) < 1_000_000:
                data += out.read(65536)
        assert data == (b"y\n" * len(data))[:len(data)]
        assert job.status == "running"
        job.write("status", "signal 9\n")
        left = job.out()
        assert len(left) < 8 << 20 and set(left) <= set(b"y\n")
        assert job.status == "signal 9"


def test_exec_many_at_once(guest_up):
    jobs = [guest_up.job("cat") for _ in range(8)]
    with fails(ENOSPC):
        (guest_up / "exec/one-more").mkdir()
    for n, job in enumerate(jobs):
        job.write("stdin", f"job {n}\n")
    assert [job.out() for job in jobs] == [b"job %d\n" % n for n in range(8)]
    for job in jobs:
        assert job.status == "exit 0"
        job.dir.rmdir()


def test_exec_ends_with_the_run(guest_up):
    job = guest_up.job("sleep 600")
    out = guest_up.follow(f"exec/{job.name}/stdout")
    guest_up.do("kill")
    assert out.finish() == 0
    assert job.status == "lost stopped"
    with fails(ESRCH):
        (guest_up / "exec/new").mkdir()
    guest_up.do("start")
    assert os.listdir(guest_up / "exec") == []


def test_exec_ends_with_a_reset(up, backend):
    with_exec(up, backend)
    up.wait("agent", 60)
    job = up.job("sleep 600")
    up.do("reset")
    until(lambda: job.status.startswith("lost "), "the job is lost")
    assert job.out() == b""
    job.dir.rmdir()


def test_exec_in_a_paused_guest(guest_up):
    guest_up.do("pause")
    job = guest_up.job()
    with fails(EBUSY):
        job.run("echo hello")
    guest_up.do("resume")
    with job:
        job.run("echo hello")
        assert job.out() == b"hello\n"


def test_exec_and_sleep(guest_up):
    """What runs would be lost; what has ended is not in the way."""
    with guest_up.job("sleep 600") as job:
        with fails(EBUSY):
            guest_up.do("sleep")
        job.write("status", "signal 9\n")
        job.out()
    done = guest_up.job("echo hello")
    until(lambda: done.status == "exit 0", "it ends")
    guest_up.do("sleep")
    assert (guest_up.state, done.status, done.out()) == ("asleep", "exit 0", b"hello\n")
    guest_up.do("wake")
    guest_up.wait("agent", 60)
    with guest_up.job("echo again") as job:
        assert job.out() == b"again\n"


def test_exec_and_snapshot(backend):
    """A snapshot holds no half of a command: what runs is in its way."""
    up = with_agent(backend.savable_vm(), backend)
    with up.job("sleep 600") as job:
        with fails(EBUSY):
            (up / "snapshots/s1").mkdir()
        up.error("EBUSY", f"exec/{job.name}", "signal 9")
        assert os.listdir(up / "snapshots") == []
        job.write("status", "signal 9\n")
        job.out()
    (up / "snapshots/s1").mkdir()
    up.wait("snapshots", 60)
    assert up.read("snapshots/s1/state") == "ready\n"
    with up.job("echo again") as job:
        assert job.out() == b"again\n"
    up.do("restore s1")
    up.wait("agent", 60)
    with up.job("echo restored") as job:
        assert job.out() == b"restored\n"


def test_exec_blocks_no_recursive_tool(guest_up):
    with guest_up.job("sleep 600") as job:
        guest_up.fs.sh("grep -r nothing web1/exec; cp -r web1/exec $BASE/copy; tar -cf- web1/exec",
                       env={"BASE": str(guest_up.fs.base)}, check=False, timeout=20)
        assert (guest_up.fs.base / f"copy/{job.name}/cmd").read_text() == "sleep 600\n"
        job.write("status", "signal 9\n")
        job.out()


@pytest.fixture
def raw_disk(scratch):
    path = scratch / "data.raw"
    with open(path, "wb") as f:
        f.truncate(8 << 20)
    return path


def test_attach_and_detach(up, raw_disk):
    """Live where the backend can, else at the next start: either way spec.yaml and pending agree."""
    before = up.spec
    os.symlink(raw_disk, up / "disks/data")
    assert os.readlink(up / "disks/data") == str(raw_disk)
    assert str(raw_disk) in up.spec and up.read("pending") in ("", "disks.data\n")
    os.unlink(up / "disks/data")
    assert os.listdir(up / "disks") == [] and up.read("pending") == ""
    assert up.spec == before + "disks: {}\n" and up.read("error") == ""


def test_attach_before_the_start(backend, raw_disk):
    vm = backend.vm()
    os.symlink(raw_disk, vm / "disks/data")
    vm.do("start")
    assert os.listdir(vm / "disks") == ["data"] and vm.read("pending") == ""


def test_scsi(backend, raw_disk):
    """A bus is what was asked for, or is refused."""
    vm = backend.vm()
    text = vm.spec + f"disks: {{data: {{file: {raw_disk}, bus: scsi}}}}\n"
    try:
        vm.write("spec.yaml", text)
    except OSError as e:
        assert e.errno == EOPNOTSUPP
        vm.error("EOPNOTSUPP", "disks.data.bus")
        return
    vm.do("start")
    assert vm.read("pending") == ""
    vm.fs.sh("rm web1/disks/data")
    assert os.listdir(vm / "disks") == [] and vm.read("pending") == ""
