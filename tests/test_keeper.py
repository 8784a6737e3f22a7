# SPDX-License-Identifier: Apache-2.0
"""The mount never dies: the daemon is killed, crashes or is replaced, and nobody in it notices."""
import ctypes
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import threading
import time
from contextlib import suppress
from errno import ECANCELED, EINVAL, EIO
from pathlib import Path

import pytest

from lib.crash import Client, crash, kept, successor
from lib.daemon import BINARY
from lib.util import alive, exists, fails, mounts, until, wait_blocked


def stored(fs, name):
    """What the daemon has stored of the only VM there is."""
    path, = (fs.state / "vms").iterdir()
    return (path / name).read_text() if (path / name).exists() else ""


def under_way(vm, verb):
    until(lambda: vm.status.get("operation", "").startswith(verb), f"'{verb}' is under way")


@pytest.mark.parametrize("sig", ["KILL", "TERM", pytest.param("ABRT", marks=pytest.mark.slow)])
def test_shell_goes_on(fs, vm, sig):
    """A shell that stands in the tree, with files open, through ten deaths of the daemon."""
    script = f"""cd web1; exec 5<state
    for i in 1 2 3 4 5 6 7 8 9 10; do
        kill -{sig} $(cat {fs.run}/daemon.pid)
        echo start >state && cat state && echo "stop 0" >state && cat state || exit 1
        [ "$(pwd)" = {vm.dir} ] || exit 2
    done
    cat <&5; ls ../web1 >/dev/null"""
    out = fs.sh(script).stdout.split()
    assert out == ["running", "stopped"] * 10 + ["stopped"]
    assert mounts().count(str(fs.mnt)) == 1
    assert fs.proc.poll() is None


def test_blocked_readers_are_answered(fs, vm):
    vm.write("spec.yaml", "backend: sim\nsim: {ip: 192.0.2.7}\n")
    waiting = [vm.follow(".io/wait/ip"), vm.follow(".io/wait/running")]
    following = [vm.follow("console"), vm.events()]
    for reader in waiting + following:
        wait_blocked(reader.proc.pid)
    crash(fs)
    crash(fs)
    vm.do("start")
    assert waiting[0].finish() == 0 and waiting[0].text == "192.0.2.7\n"
    assert waiting[1].finish() == 0 and waiting[1].text == "running\n"
    following[0].expect("sim: boot")
    following[1].expect(" state running$")


def test_interrupt_of_a_reader_from_before(fs, vm):
    reader = vm.follow("console")
    wait_blocked(reader.proc.pid)
    crash(fs)
    assert reader.interrupt() != 0


def test_killed_reader_is_not_missed(fs, vm):
    """It dies while nobody serves: the successor finds its request, and nobody to answer."""
    reader = vm.follow("console")
    wait_blocked(reader.proc.pid)
    os.kill(fs.pid, signal.SIGSTOP)
    reader.proc.send_signal(signal.SIGKILL)
    crash(fs)
    until(lambda: not alive(reader.proc.pid), "the reader has ended")
    assert vm.state == "stopped"


def test_console_without_loss_or_repetition(fs, vm):
    vm.do("start")
    first = vm.follow("console")
    first.expect("sim: boot")
    for n in range(60):
        vm.sim(f"print line {n}")
        if n % 10 == 5:
            fs.crash()
    late = vm.follow("console")
    for reader in (first, late):
        reader.expect("line 59$")
        lines = [line for line in reader.text.splitlines() if line.startswith("line ")]
        assert lines == [f"line {n}" for n in range(60)]
    assert first.text.count("sim: boot") == 1


def test_slow_console_reader_keeps_its_place(fs, vm):
    """One that has read a part goes on where it was."""
    vm.do("start")
    vm.sim("print " + "x" * 3000)
    vm.sim("print end")
    fd = os.open(vm / "console", os.O_RDONLY)
    text = os.read(fd, 1000)
    crash(fs)
    while not text.endswith(b"end\n"):
        text += os.read(fd, 700)
    os.close(fd)
    assert text == b"sim: boot\n" + b"x" * 3000 + b"\nend\n"


def test_events_without_loss(fs, vm):
    follower, everything = vm.events(), fs.spawn("cat", fs.mnt / ".vmfs/events")
    everything.expect(" web1 state stopped")
    for n in range(6):
        vm.do("start" if n % 2 == 0 else "kill")
        fs.crash()
    want = ["stopped", *["starting", "running", "stopping", "stopped"] * 3]
    for reader in (follower, everything):
        for word in want[1:]:
            reader.expect(f" state {word}$")
        got = [line.split()[3] for line in reader.text.splitlines() if line.split()[2] == "state"]
        assert got == want
        times = [line.split()[0] for line in reader.text.splitlines()]
        assert times == sorted(times)


# Commands and changes that are under way

@pytest.mark.parametrize("verb, after", [("start", "running"), ("pause", "paused"),
                                         ("kill", "stopped"), ("stop 5", "stopped"),
                                         ("running", "running")])
def test_command_under_way(fs, vm, verb, after):
    """The shell that gave it is told of its end, by whoever has brought it about."""
    if verb not in ("start", "running"):
        vm.do("start")
    word = {"running": "start"}.get(verb, verb.split()[0])
    vm.sim(f"hang {word}")
    events = vm.events()
    client = Client(vm.do, verb)
    under_way(vm, word)
    crash(fs)
    client.result()
    assert vm.state == after and vm.read("error") == ""
    assert len(events.text.split(f" state {after}\n")) <= 2


def test_command_in_close(fs, vm):
    """Longer than a write may take: it is close(2) that waits."""
    vm.do("start")
    vm.sim("hang stop")
    fd = os.open(vm / "state", os.O_WRONLY)
    os.write(fd, b"stop 60\n")
    closing = Client(os.close, fd).blocks()
    crash(fs)
    closing.result()
    assert vm.state == "stopped"


def test_command_that_nobody_waits_for(fs, vm):
    vm.sim("hang start")
    vm.write("state", "start\n", os.O_NONBLOCK)
    crash(fs)
    assert vm.wait("running") == "running"
    assert vm.read("error") == ""


def test_kill_of_a_command(fs, vm):
    vm.do("start")
    vm.sim("hang stop")
    vm.sim("hang kill")
    stopping = Client(vm.do, "stop 60")
    under_way(vm, "stop")
    killing = Client(vm.do, "kill")
    under_way(vm, "kill")
    crash(fs)
    killing.result()
    with fails(ECANCELED):
        stopping.result()
    assert vm.state == "stopped"


@pytest.mark.parametrize("verb", ["reboot", "reset"])
def test_what_cannot_be_done_twice_is_not(fs, vm, verb):
    vm.do("start")
    vm.sim(f"hang {verb}")
    client = Client(vm.do, verb)
    under_way(vm, verb)
    crash(fs)
    with pytest.raises(OSError):
        client.result()
    assert vm.error("ECANCELED", verb)
    assert vm.read("console.log").count("sim: boot") == 1 and vm.state == "running"


def test_restore_under_way(fs, vm):
    """The snapshot is that of its order, and its shell is told when it is there again."""
    vm.do("start")
    for name in ("s1", "s2"):
        (vm / "snapshots" / name).mkdir()
        vm.wait("snapshots")
    before = vm.read("console.log").count("sim: boot")
    vm.sim("hang restore")
    client = Client(vm.do, "restore s1")
    under_way(vm, "restore")
    crash(fs)
    client.result()
    assert vm.state == "running" and vm.read("error") == ""
    assert vm.read("console.log").count("sim: boot") == before
    vm.sim("hang restore")
    fd = os.open(vm / "state", os.O_WRONLY)
    os.write(fd, b"restore s2\n")
    closing = Client(os.close, fd).blocks()
    crash(fs)
    closing.result()
    assert vm.state == "running" and sorted(os.listdir(vm / "snapshots")) == ["s1", "s2"]


def test_snapshot_that_a_crash_cuts_off(fs, vm):
    """Its mkdir was answered, for the rest takes long: what became of it is told."""
    vm.do("start")
    vm.sim("hang snapshot")
    (vm / "snapshots/s1").mkdir()
    assert vm.read("snapshots/s1/state") == "taking\n"
    crash(fs)
    assert os.listdir(vm / "snapshots") == [] and "s1" in vm.error("ECANCELED", "snapshot")[2]
    vm.do("pause")
    crash(fs)
    assert vm.read("error") == "", "it is told again"
    vm.do("resume")
    (vm / "snapshots/s1").mkdir()
    vm.wait("snapshots")
    assert vm.read("snapshots/s1/state") == "ready\n" and vm.read("error") == ""


def test_snapshot_that_is_taken_stays(fs, vm):
    """Its maker might be about to import files into it; a crash meanwhile does not cost it."""
    vm.do("start")
    vm.sim("remember blue")
    (vm / "snapshots/s1").mkdir()
    # For half a second it goes on to say that it is being taken.
    until(lambda: "state=ready" in stored(fs, "snapshots"), "it is stored as taken")
    crash(fs)
    assert vm.read("snapshots/s1/state") == "ready\n" and vm.read("error") == ""
    vm.do("restore s1")


def test_failed_command_stays_failed(fs, vm):
    """It failed before the crash, and close(2) asks after it."""
    vm.do("start")
    vm.sim("ignore stop")
    fd = os.open(vm / "state", os.O_WRONLY)
    os.write(fd, b"stop 60\n")
    vm.do("kill")
    crash(fs)
    with pytest.raises(OSError):
        os.close(fd)
    assert vm.state == "stopped"


def test_namespace_exactly_once(fs):
    """mkdir, mv and rmdir while the daemon is killed again and again: each is done, and once."""
    stop, chance = threading.Event(), random.Random(1)

    def killer():
        while not stop.is_set():
            time.sleep(chance.random() * 0.2)  # any moment will do
            crash(fs)

    def worker(letter):
        for n in range(25):
            name = fs.mnt / f"{letter}{n}"
            os.mkdir(name)
            ino = name.stat().st_ino
            os.rename(name, fs.mnt / f"{letter}{n}.moved")
            assert (fs.mnt / f"{letter}{n}.moved").stat().st_ino == ino
            if n % 2:
                os.rmdir(fs.mnt / f"{letter}{n}.moved")

    killing = threading.Thread(target=killer)
    killing.start()
    try:
        workers = [Client(worker, letter) for letter in "abc"]
        for client in workers:
            client.result(120)
    finally:
        stop.set()
        killing.join()
    assert fs.names() == sorted(f"{c}{n}.moved" for c in "abc" for n in range(0, 25, 2))
    assert len(fs.names()) == len({fs.vm(name).read("id") for name in fs.names()})


# Documents

def test_document_half_written(fs, vm):
    fd = os.open(vm / "spec.yaml", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"backend: sim\n")
    crash(fs)
    os.write(fd, b"cpus: 7\n")
    crash(fs)
    assert vm.spec == "backend: sim\n"
    os.close(fd)
    assert vm.spec == "backend: sim\ncpus: 7\n"


def test_document_emptied(fs, vm):
    fd = os.open(vm / "spec.yaml", os.O_WRONLY | os.O_TRUNC)
    crash(fs)
    os.close(fd)
    until(lambda: vm.spec == "", "it is empty")


def test_refused_document(fs, vm):
    fd = os.open(vm / "spec.yaml", os.O_WRONLY | os.O_TRUNC)
    with fails(EINVAL):
        os.write(fd, b"cpus: none\n")
    crash(fs)
    with fails(EINVAL):
        os.write(fd, b"cpus: 2\n")
    with fails(EINVAL):
        os.close(fd)
    assert vm.spec == "backend: sim\n" and vm.read("spec.yaml.rej") == "cpus: none\n"


def test_editor_goes_on(fs, vm):
    """A scratch file, open and half-written, then renamed into place."""
    fd = os.open(vm / "spec.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    os.write(fd, b"backend: sim\n")
    crash(fs)
    os.write(fd, b"cpus: 5\n")
    os.close(fd)
    assert (vm / "spec.tmp").stat().st_mode & 0o777 == 0o640
    crash(fs)
    os.rename(vm / "spec.tmp", vm / "spec.yaml")
    assert vm.spec == "backend: sim\ncpus: 5\n" and not exists(vm / "spec.tmp")


def test_editor_that_moves_the_document_away(fs, vm):
    os.rename(vm / "spec.yaml", vm / "spec.yaml~")
    crash(fs)
    fd = os.open(vm / "spec.yaml", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"backend: sim\ncpus: 6\n")
    os.close(fd)
    os.unlink(vm / "spec.yaml~")
    assert vm.spec == "backend: sim\ncpus: 6\n"


def test_one_read_is_of_one_piece(fs):
    """A text that takes several reads is that of the first one."""
    for n in range(40):
        fs.vm(f"web{n}", "backend: sim\n")
    fd = os.open(fs.mnt / ".vmfs/list", os.O_RDONLY)
    head = os.pread(fd, 100, 0)
    fs.vm("web0").do("start")
    crash(fs)
    text = head + os.pread(fd, 65536, 100)
    os.close(fd)
    assert text.count(b" stopped ") == 40 and text.count(b"\n") == 40


def test_readers_of_texts_do_not_mix(fs):
    """Many files are open at once, each read in parts: each text is that of its first part."""
    for n in range(3):
        fs.vm(f"web{n}", "backend: sim\n")
    names = [fs.mnt / ".vmfs/list", *(fs.mnt / f"web{n}" / "status" for n in range(3))]
    fds = {path: os.open(path, os.O_RDONLY) for path in names}
    first = {path: os.pread(fd, 4096, 0) for path, fd in fds.items()}
    texts = {path: os.pread(fd, 7, 0) for path, fd in fds.items()}
    for n in range(3):
        fs.vm(f"web{n}").do("start")
    crash(fs)
    for at in range(7, 400, 7):
        for path, fd in fds.items():
            texts[path] += os.pread(fd, 7, at)
    assert texts == first
    assert all(os.pread(fd, 4096, 0) != first[path] for path, fd in fds.items())
    for fd in fds.values():
        os.close(fd)


# Those who watch

def test_pollers_are_woken(fs, vm):
    files = {name: os.open(vm / name, os.O_RDONLY) for name in ("state", "status", "error")}
    console = os.open(vm / "console", os.O_RDONLY)
    poller = select.poll()
    for fd in files.values():
        os.read(fd, 4096)
        poller.register(fd, select.POLLPRI)
    poller.register(console, select.POLLIN)
    assert poller.poll(0) == []
    client = Client(poller.poll, 30000)
    until(lambda: "poll" in Path(f"/proc/self/task/{client.native_id}/wchan").read_text(), "sleep")
    crash(fs)
    assert client.is_alive()
    vm.do("start")
    ready = client.result()
    assert ready and all(fd in (*files.values(), console) for fd, _ in ready)
    for name in ("state", "status"):
        assert select.select([], [], [files[name]], 5)[2]
    assert select.select([console], [], [], 5)[0]
    for fd in (*files.values(), console):
        os.close(fd)


def test_unseen_change_stays_unseen(fs, vm):
    """Changed before the crash, and not read since: poll says so; what was read stays read."""
    changed, read = (os.open(vm / "state", os.O_RDONLY) for _ in range(2))
    os.read(changed, 100)
    vm.do("start")
    os.read(read, 100)
    crash(fs)
    assert select.select([], [], [changed], 0)[2]
    assert not select.select([], [], [read], 0)[2]
    os.close(changed)
    os.close(read)


def test_inotify_goes_on(fs, vm):
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(fd, bytes(vm / "state"), 2) > 0  # IN_MODIFY
    crash(fs)
    crash(fs)
    vm.write("spec.yaml", "backend: sim\n")
    vm.do("start")

    def modified():
        data = os.read(fd, 4096) if select.select([fd], [], [], 0)[0] else b""
        return data and struct.unpack_from("iI", data)[1] & 2
    until(modified, "IN_MODIFY")
    os.close(fd)


def test_attributes_do_not_age(fs, vm):
    """What the kernel remembers of before the crash is corrected by what changed with it."""
    before = (vm / "state").stat()
    vm.do("start")
    crash(fs)
    after = (vm / "state").stat()
    assert after.st_ino == before.st_ino and after.st_size == len("running\n")
    assert vm.dir.stat().st_mtime == vm.dir.stat().st_mtime


def test_removed_vm_that_is_open(fs, vm):
    fds = [os.open(vm / name, os.O_RDONLY) for name in ("state", "console", "events")]
    os.read(fds[2], 4096)
    os.rmdir(vm.dir)
    crash(fs)
    assert os.read(fds[1], 100) == b""
    for fd in fds:
        with suppress(OSError):
            os.read(fd, 100)
        os.close(fd)
    assert fs.names() == []


# The keeper

def test_answered_after_the_unmount(fs, vm):
    """SIGTERM to the keeper frees those who wait."""
    reader = vm.follow("console")
    wait_blocked(reader.proc.pid)
    crash(fs)
    fs.stop()
    assert reader.finish() != 0
    assert not (fs.run / "daemon.pid").exists() and not (fs.run / "keeper.pid").exists()


def test_pid_files(fs):
    assert int((fs.run / "keeper.pid").read_text()) == fs.proc.pid
    old = fs.pid
    assert crash(fs) != old
    assert Path(f"/proc/{fs.pid}/stat").read_text().rpartition(")")[2].split()[1] == str(fs.proc.pid)


def test_daemon_that_hangs_is_ended(fs, vm):
    os.kill(fs.pid, signal.SIGSTOP)
    assert fs.end(signal.SIGTERM) == 0
    assert str(fs.mnt) not in mounts()


def test_keeper_that_sleeps(fs, vm):
    """SIGSTOP of the keeper: the daemon serves; a successor comes when the keeper is back."""
    fs.proc.send_signal(signal.SIGSTOP)
    vm.do("start")
    old = fs.crash()
    client = Client(vm.read, "state").blocks()
    fs.proc.send_signal(signal.SIGCONT)
    assert client.result() == "running\n"
    successor(fs, old)


def test_keeper_that_dies(fs, vm):
    """The daemon serves on, and the next vmfs, as a supervisor starts it, takes the mount over."""
    reader, fd = vm.follow("console"), os.open(vm / "state", os.O_RDONLY)
    wait_blocked(reader.proc.pid)
    old = fs.pid
    fs.end(signal.SIGKILL)
    assert vm.state == "stopped"
    other = fs.base / "other"
    other.mkdir()
    wrong = subprocess.run([BINARY, "-f", f"--state-dir={fs.state}", f"--runtime-dir={fs.run}",
                            other], capture_output=True, text=True, timeout=30, check=False,
                           env=fs.environ())
    assert wrong.returncode == 1 and "another vmfs uses" in wrong.stderr
    fs.restart()
    assert fs.pid != old and not alive(old)
    assert mounts().count(str(fs.mnt)) == 1
    vm.do("start")
    assert os.pread(fd, 100, 0) == b"running\n"
    os.close(fd)
    reader.expect("sim: boot")
    crash(fs)
    assert vm.state == "running"
    again = subprocess.run(fs.command(), capture_output=True, text=True, timeout=30, check=False,
                           env=fs.environ())
    assert again.returncode == 1 and "another vmfs uses" in again.stderr


def test_keeper_is_small_and_idle(fs, vm):
    status = Path(f"/proc/{fs.proc.pid}/status")

    def switches():
        return [line for line in status.read_text().splitlines() if "ctxt_switches" in line]
    before = switches()
    for _ in range(100):
        vm.read("state")
    assert switches() == before


def test_removed_vms_are_not_kept(fs, vm):
    """Whether the kernel forgets a file before its VM is gone, or after it."""
    def turn(number):
        other = fs.vm(f"other{number}", "backend: sim\n")
        other.read("state"), other.read("ip"), (other / "disks").is_dir()
        other.dir.rmdir()
    turn(0)
    before = until(lambda: kept(fs), "something is kept")
    assert any(before.values())
    for number in range(50):
        turn(number)

    def as_before():
        if sum(map(len, kept(fs).values())) <= sum(map(len, before.values())):
            return True
        # What is looked up while its directory goes stays in the kernel's cache.
        with suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("2")
        return False
    until(as_before, "as much is kept as before")


def test_successor_that_fails_is_tried_again(fs, vm):
    """Nobody is told an error because the daemon cannot come up for a while."""
    kept = (fs.state / "format").read_text()
    (fs.state / "format").write_text("no format of vmfs\n")
    fs.crash()
    client = Client(vm.read, "state").blocks()
    until(lambda: fs.log_text.count("another one takes over") >= 3, "it is tried again and again")
    assert client.is_alive()
    (fs.state / "format").write_text(kept)
    assert client.result() == "stopped\n"


# Requests that kill

POISON = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
struct fuse_session;
struct fuse_buf { size_t size; int flags; void *mem; };
void fuse_session_process_buf(struct fuse_session *se, const struct fuse_buf *buf)
{
	void (*next)(struct fuse_session *, const struct fuse_buf *) =
		dlsym(RTLD_NEXT, "fuse_session_process_buf");
	if (memmem(buf->mem, buf->size, "poison", 6))
		abort();
	next(se, buf);
}
"""


def test_poison(box, scratch):
    """A request that kills every daemon that handles it is refused; the others go on."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    (scratch / "poison.c").write_text(POISON)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", scratch / "poison.so", scratch / "poison.c"],
                   check=True)
    box.env = {"LD_PRELOAD": str(scratch / "poison.so"),
               "ASAN_OPTIONS": "verify_asan_link_order=0:handle_abort=0"}
    fs = box.start()
    vm = fs.vm("web1", "backend: sim\n")
    reader = vm.follow("console")
    wait_blocked(reader.proc.pid)
    with fails(EIO):
        os.mkdir(fs.mnt / "poison")
    with fails(EIO):
        vm.write("state", "poison\n")
    assert "lookup" in fs.log_text and "write" in fs.log_text and "EIO" in fs.log_text
    assert fs.log_text.count("another one takes over") == 4
    vm.do("start")
    reader.expect("sim: boot")
    assert fs.names() == ["web1"]


# With real machines

@pytest.mark.qemu
def test_qemu_goes_on(fs, qemu):
    vm = qemu.vm()
    vm.do("start")
    console = vm.follow("console")
    console.expect("GUEST-UP", 60)
    console.expect("guest# ")
    ip = vm.wait("ip").split()
    before = {n: vm.read(n) for n in ("state", "pid", "id", "error", "cmdline", "status")}
    for n in range(5):
        crash(fs)
        assert {n: vm.read(n) for n in before} == before
        assert set(ip) <= set(vm.read("ip").split())  # it may have got another one since
        vm.write("console", f"echo still-$(({n} + 40))\n", 0)
        console.expect(f"^still-{n + 40}\r?$")
    assert console.text.count("GUEST-UP") == 1
    log = vm.read("console.log").replace("\r", "")
    assert log.startswith(console.text.replace("\r", "")[:1000])
    vm.do("stop 20")
    assert not alive(int(before["pid"]))


@pytest.mark.qemu
@pytest.mark.parametrize("seed", range(4))
def test_qemu_start_under_way(fs, qemu, seed):
    """Killed in the midst of a start: the shell is told that it runs, and one machine runs."""
    vm = qemu.vm()
    client = Client(vm.do, "start")
    time.sleep(random.Random(seed).random() * 0.1)  # any moment will do
    crash(fs)
    client.result()
    assert vm.state == "running" and alive(vm.pid)
    vm.do("kill")
    # Fixture: no VMM is left over.


@pytest.mark.qemu
def test_qemu_stop_under_way(fs, qemu):
    vm = qemu.vm()
    qemu.up(vm)
    pid = vm.pid
    client = Client(vm.do, "stop 20")
    until(lambda: vm.state == "stopping", "it stops")
    crash(fs)
    client.result()
    assert vm.state == "stopped" and not alive(pid)
