# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost: kill -9 and restart of the daemon, VMs that live or die without it."""
import json
import os
import random
import signal
import socket
import threading
import time
from contextlib import suppress
from errno import EINVAL, ENOTCONN, ETIMEDOUT

import pytest

from lib.daemon import Vmfs
from lib.util import alive, exists, fails, get, mounts, put, unmount, until, wait_blocked

SETTLED = ("stopped", "running", "crashed")


def crash(fs):
    fs.kill9()
    return fs.restart()


def test_stale_mount_is_cleaned_up(fs, vm):
    fs.kill9()
    with fails(ENOTCONN):
        os.listdir(fs.mnt)
    fs.restart()
    assert vm.state == "stopped"
    assert mounts().count(str(fs.mnt)) == 1


def test_stale_mount_with_somebody_inside(fs, vm):
    """A shell that stands in the dead tree does not keep the new one out."""
    sleeper = fs.spawn("bash", "-c", f"cd {vm.dir} && echo in && exec sleep 1000")
    sleeper.expect("in")
    crash(fs)
    assert vm.state == "stopped"
    assert mounts().count(str(fs.mnt)) == 1


def test_everything_is_remembered(fs, vm):
    spec = "# exact text\nbackend: sim\ncpus:   3\nsim: {ip: 192.0.2.7}\n"
    vm.write("spec.yaml", spec)
    if os.geteuid() == 0:
        os.chown(vm.dir, 1234, 5678)
    vm.do("start")
    vm.sim("print on the console")
    os.chmod(vm.dir, 0o750)
    os.chmod(vm / "state", 0o660)
    with fails(EINVAL):
        vm.do("frobnicate")
    (vm / "scratch").touch()
    vm.wait("ip")

    def seen():
        st = vm.dir.stat()
        return ({n: vm.read(n) for n in ("state", "id", "error", "console.log", "spec.yaml", "ip")},
                vm.status["since"], (st.st_mode, st.st_uid, st.st_gid, st.st_ino),
                [(vm / n).stat().st_mode for n in ("state", "spec.yaml", ".io/console")])

    before = seen()
    crash(fs)
    until(lambda: vm.state == "running", "the VM is found again")
    until(lambda: vm.read("ip"), "its address too")
    assert seen() == before
    assert not exists(vm / "scratch")  # in memory, as promised


@pytest.mark.parametrize("state", ["stopped", "running", "paused", "crashed"])
def test_state_is_remembered(fs, vm, state):
    vm.to(state)
    since = vm.status["since"]
    crash(fs)
    until(lambda: vm.state == state, f"{state} again")
    assert vm.status["since"] == since
    if state == "crashed":
        assert vm.status["reason"] == "guest-panic"
    vm.do({"stopped": "start", "running": "pause", "paused": "resume", "crashed": "start"}[state])


def test_console_goes_on(fs, vm):
    vm.to("running").sim("print before")
    crash(fs)
    until(lambda: vm.state == "running", "the VM is found again")
    vm.sim("print after")
    until(lambda: "after" in vm.read("console.log"), "the new line")
    assert vm.read("console.log").count("before") == 1
    vm.follow("console").expect("after")


def test_refused_document_is_remembered(fs, vm):
    with fails(EINVAL):
        vm.write("spec.yaml", "cpus: zero\n")
    error = vm.read("error")
    crash(fs)
    assert vm.read("spec.yaml.rej") == "cpus: zero\n"
    assert vm.read("error") == error
    with pytest.raises(OSError):
        vm.do("start")
    os.unlink(vm / "spec.yaml.rej")
    crash(fs)
    assert not exists(vm / "spec.yaml.rej")
    vm.do("start")


def test_pending_is_remembered(fs, vm):
    vm.to("running").write("spec.yaml", "backend: sim\ncpus: 5\n")
    crash(fs)
    until(lambda: vm.state == "running", "the VM is found again")
    assert vm.read("pending").split() == ["cpus"]


def test_ids_are_not_given_twice(fs):
    ids = {fs.vm(name).read("id") for name in "abc"}
    crash(fs)
    ids |= {fs.vm(name).read("id") for name in "def"}
    assert len(ids) == 6


def test_inode_numbers_are_never_reused(fs, vm):
    old = vm.dir.stat().st_ino
    vm.dir.rmdir()
    crash(fs)
    vm.dir.mkdir()
    assert vm.dir.stat().st_ino != old


def test_rename_and_rmdir_are_remembered(fs, vm):
    fs.vm("gone").dir.rmdir()
    os.rename(vm.dir, fs.mnt / "web2")
    crash(fs)
    assert fs.names() == ["web2"]


def test_half_done_start(fs, vm):
    events = vm.events()
    vm.sim("hang start")
    vm.write("state", "start\n", os.O_NONBLOCK)
    events.expect(" state starting$")
    crash(fs)
    until(lambda: vm.state in SETTLED, "finished or undone")
    vm.sim("ok start")
    vm.do("running")
    vm.do("stop")


def test_half_done_stop(fs, vm):
    vm.to("running").sim("ignore stop")
    vm.write("state", "stop 600\n", os.O_NONBLOCK)
    assert vm.state == "stopping"
    crash(fs)
    until(lambda: vm.state in SETTLED, "finished or undone")
    if vm.state == "running":
        vm.do("kill")
    vm.do("start")


def test_blocked_programs_end_with_the_daemon(fs, vm):
    readers = [vm.follow(name) for name in ("console", "wait/ip")]
    for reader in readers:
        wait_blocked(reader.proc.pid)
    fs.kill9()
    for reader in readers:
        assert reader.finish() != 0
    fs.restart()
    assert vm.state == "stopped"


def test_sigterm_leaves_vms(fs, vm):
    vm.to("running")
    fs.stop()
    fs.restart()
    until(lambda: vm.state == "running", "the VM is found again")


def test_second_daemon_is_refused(fs, vm):
    other = fs.base / "other"
    other.mkdir()
    vm.to("running")
    first, mnt = fs.proc, fs.mnt
    fs.mnt = other
    try:
        fs.launch()
        assert fs.wait_exit() == 1
    finally:
        fs.proc, fs.mnt = first, mnt
    assert " " in fs.log_text.strip().splitlines()[-1]  # a sentence
    assert str(fs.state) in fs.log_text
    assert str(other) not in mounts()
    assert vm.state == "running"
    vm.do("stop")


@pytest.mark.parametrize("seed", range(3))
def test_acknowledged_is_kept(fs, seed):
    """kill -9 in the midst of work: what was answered is there, what was not is all or nothing."""
    chance = random.Random(seed)
    docs = [f"backend: sim\ncpus: {n}\n" + "# pad\n" * 500 for n in range(1, 9)]
    made, removed, spec, tried = set(), set(), docs[0], docs[0]
    enough, limit = threading.Event(), chance.randrange(5, 60)
    fs.vm("doc", docs[0])

    def work():
        nonlocal spec, tried
        n = 0
        try:
            while True:
                name = f"web{n}"
                os.mkdir(fs.mnt / name)
                made.add(name)
                tried = docs[n % len(docs)]
                put(fs.mnt / "doc/spec.yaml", tried)
                spec = tried
                if n % 3 == 2:
                    removed.add(f"web{n - 1}")
                    os.rmdir(fs.mnt / f"web{n - 1}")
                n += 1
                if n >= limit:
                    enough.set()
        except OSError:
            enough.set()

    worker = threading.Thread(target=work)
    worker.start()
    enough.wait(60)
    fs.kill9()
    worker.join(30)
    assert not worker.is_alive() and len(made) >= limit
    fs.restart()
    names = set(fs.names()) - {"doc"}
    last = max(removed, key=lambda name: int(name[3:]))  # perhaps not answered
    assert made - removed <= names
    assert not (removed - {last}) & names
    assert len(names - made) <= 1
    assert get(fs.mnt / "doc/spec.yaml").decode() in (spec, tried)


@pytest.mark.slow
def test_hundred_crashes(fs, vm):
    vm.to("running")
    other = fs.vm("web2", "backend: sim\n")
    for n in range(100):
        other.write("state", ("start" if n % 2 == 0 else "kill") + "\n", os.O_NONBLOCK)
        crash(fs)
        until(lambda: vm.state == "running", "the VM is found again")
        until(lambda: other.state in SETTLED, "finished or undone")
        other.do("running" if n % 2 == 0 else "stopped")


@pytest.mark.parametrize("junk", ["file", "directory", "garbage"])
def test_damaged_state_directory(fs, vm, junk):
    """What does not belong there, or was spoilt, keeps no other VM from coming back."""
    fs.vm("other", "backend: sim\n").to("running")
    fs.stop()
    if junk == "file":
        (fs.state / "vms/junk").write_bytes(b"\xff\0")
    elif junk == "directory":
        (fs.state / "vms/999999").mkdir()
    else:
        victim = min((fs.state / "vms").iterdir(), key=lambda p: (len(p.name), p.name))  # web1's
        for path in [p for p in victim.rglob("*") if p.is_file()]:
            path.write_bytes(b"\xff\0garbage")
    fs.restart()
    assert "other" in fs.names()
    until(lambda: fs.vm("other").state == "running", "the other VM is found again")


# With real machines

@pytest.mark.qemu
def test_qemu_never_noticed(fs, qemu):
    vm = qemu.vm()
    qemu.up(vm)
    vm.wait("ip")
    before = {n: vm.read(n) for n in ("state", "pid", "id", "error", "cmdline")}
    ip, log = vm.read("ip"), vm.read("console.log")
    fs.kill9()
    assert alive(int(before["pid"]))
    fs.restart()
    until(lambda: vm.state == "running", "the VM is found again")
    vm.wait("ip")
    assert vm.read("ip").startswith(ip)  # the guest may have got another one meanwhile
    assert {n: vm.read(n) for n in before} == before
    assert vm.read("console.log").startswith(log)
    console = vm.follow("console")
    vm.write("console", "echo still-$((40 + 2))\n", 0)
    console.expect("still-42")
    vm.do("stop 30")
    assert not alive(int(before["pid"]))


@pytest.mark.qemu
@pytest.mark.parametrize("way", ["SIGTERM", "fusermount3"])
def test_qemu_outlives_the_daemon(fs, qemu, way):
    vm = qemu.vm()
    vm.do("start")
    pid = vm.pid
    if way == "SIGTERM":
        fs.stop()
    else:
        unmount(fs.mnt)
        assert fs.wait_exit() == 0
    assert alive(pid)
    fs.restart()
    until(lambda: vm.state == "running", "the VM is found again")
    assert vm.pid == pid
    vm.follow("console").expect("GUEST-UP", 60)
    vm.do("kill")
    assert not alive(pid)


@pytest.mark.qemu
def test_qemu_dies_unseen(fs, qemu):
    vm = qemu.vm()
    vm.do("start")
    pid = vm.pid
    fs.kill9()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), "the VMM is gone")
    fs.restart()
    until(lambda: vm.state == "crashed", "crashed")
    assert vm.read("pid") == ""
    vm.do("start")
    assert vm.state == "running" and vm.pid != pid


@pytest.mark.sample(2)
@pytest.mark.qemu
@pytest.mark.parametrize("seed", range(4))
def test_qemu_half_done_start(fs, qemu, seed):
    """Killed in the midst of a start: the VM is up, or not there at all, and never twice."""
    vm = qemu.vm()
    vm.write("state", "start\n", os.O_NONBLOCK)
    time.sleep(random.Random(seed).random() * 0.1)  # not to wait for something: any moment will do
    crash(fs)
    until(lambda: vm.state in SETTLED, "finished or undone", 60)
    if vm.state == "running":
        assert alive(vm.pid)
    else:
        assert vm.read("pid") == ""
        vm.do("start")
    qemu.booted(vm)
    pid = vm.pid
    vm.do("kill")
    assert not alive(pid)
    # Fixture: no VMM is left over.


@pytest.mark.parametrize("meta", [None, b""])
def test_unfinished_mkdir_is_undone(fs, meta):
    """What a mkdir left that was cut off; the number is not given out again."""
    fs.vm("web1", "backend: sim\n")
    fs.stop()
    left = fs.state / "vms/90000"
    (left / "data").mkdir(parents=True)
    if meta is not None:
        (left / "meta").write_bytes(meta)
    fs.restart()
    assert fs.names() == ["web1"] and not left.exists()


class MuteMonitor(threading.Thread):
    """What connects to it is greeted, and hears nothing of what it asks, but perhaps a flood."""

    def __init__(self, path, flood=False):
        super().__init__(daemon=True)
        self.flood, self.broken = flood, threading.Event()
        self.server, self.asked = socket.socket(socket.AF_UNIX), threading.Event()
        self.server.bind(str(path))
        self.server.listen()

    def run(self):
        with suppress(OSError):
            peer, _ = self.server.accept()
            with peer, peer.makefile("rw") as lines:
                lines.write('{"QMP": {"version": {}, "capabilities": []}}\n')
                lines.flush()
                for line in lines:
                    if "qmp_capabilities" in line:
                        lines.write(json.dumps({"return": {}, "id": json.loads(line)["id"]}) + "\n")
                        lines.flush()
                    elif "query-status" in line:
                        self.asked.set()
                        while self.flood:
                            self.say(peer)

    def say(self, peer):
        try:
            peer.sendall(b'{"event": "STOP"}\n{"event": "RESUME"}\n' * 1000)
        except OSError:
            self.broken.set()
            raise

    def close(self):
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.join()


@pytest.mark.qemu
def test_kill_while_the_vm_is_looked_for(fs, qemu):
    """A daemon that still waits for the monitor to tell the state does what it is told."""
    vm = qemu.vm()
    vm.do("start")
    pid, path = vm.pid, fs.run / str(vm.dir.stat().st_ino >> 32) / "qmp"
    fs.kill9()
    path.unlink()
    monitor = MuteMonitor(path)
    monitor.start()
    fs.restart()
    assert monitor.asked.is_set() and "operation adopt" in vm.read("status")
    vm.do("kill")
    assert vm.state == "stopped" and not alive(pid)
    monitor.close()


@pytest.mark.qemu
def test_what_is_stored_may_be_of_the_run_before(fs, qemu):
    """As on a disk that was full: the process that is named is gone, another one runs."""
    vm = qemu.vm()
    run = fs.run / f"{vm.dir.stat().st_ino >> 32}.run"
    vm.do("start")
    old = run.read_bytes()
    vm.do("kill")
    vm.do("start")
    pid = vm.pid
    fs.kill9()
    run.write_bytes(old)
    fs.restart()
    assert vm.state == "running" and vm.pid == pid
    vm.do("kill")
    assert not alive(pid)


@pytest.mark.qemu
def test_flood_from_a_monitor(fs, qemu):
    """Who owns a VM may put anything at its sockets; the daemon has others to listen to as well."""
    vm = qemu.vm()
    vm.do("start")
    pid, path = vm.pid, fs.run / str(vm.dir.stat().st_ino >> 32) / "qmp"
    fs.kill9()
    path.unlink()
    monitor = MuteMonitor(path, flood=True)
    monitor.start()
    fs.restart()
    assert monitor.broken.wait(10)
    monitor.close()
    vm.do("kill")
    assert vm.state == "stopped" and not alive(pid)


def test_end_while_storage_does_not_answer(fs, vm):
    """What looks at a path may hang; the daemon ends all the same when it is told to."""
    (fs.base / "other").mkdir()
    storage = Vmfs(fs.base / "other").start()
    try:
        os.kill(storage.pid, signal.SIGSTOP)
        with fails(ETIMEDOUT):
            vm.write("spec.yaml", f"backend: sim\nboot: {{kernel: {storage.mnt}/kernel}}\n")
        fs.stop()
    finally:
        os.kill(storage.pid, signal.SIGCONT)
        fs.problems += storage.close()
