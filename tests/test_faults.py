# SPDX-License-Identifier: Apache-2.0
"""Faults of all kinds: each is survived, costs no more than it must, and is told of truthfully."""
import itertools
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from errno import EAGAIN, EDQUOT, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, errorcode
from pathlib import Path

import pytest

from lib.backends import Sim
from lib.faults import VMM, Faults, survived
from lib.util import alive, processes, put, unmount_disk, until

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


@pytest.fixture
def faulty(box):
    """A running vmfs whose system calls can be made to fail: fs.faults."""
    box.faults = Faults(box.base)
    box.env = box.faults.env
    yield box.start()
    box.faults.none()
    box.faults.clock(0)


# kill -9 at any moment, under a load whose outcome is known

class Load:
    """Work that only this thread does on its VMs, so that it knows what must come of it."""

    def __init__(self, fs, seed):
        self.fs, self.chance = fs, random.Random(seed)
        self.done, self.stop = 0, threading.Event()
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self.thread.start()
        return self

    def _run(self):
        try:
            while not self.stop.is_set():
                self.turn()
                self.done += 1
        except BaseException as e:
            self.error = e

    def finish(self):
        self.stop.set()
        self.thread.join(120)
        assert not self.thread.is_alive(), f"{type(self).__name__} hangs"
        if self.error:
            raise self.error
        assert self.done, f"{type(self).__name__} has done nothing"
        self.check()

    def turn(self):
        raise NotImplementedError

    def check(self):
        pass


class Commands(Load):
    """Verbs, each legal in the state that its VM must be in; none may fail."""

    MOVES = {"stopped": [("start", "running"), ("running", "running"), ("stopped", "stopped")],
             "running": [("stop 0", "stopped"), ("kill", "stopped"), ("pause", "paused"),
                         ("running", "running")],
             "paused": [("resume", "running"), ("kill", "stopped"), ("paused", "paused")]}

    def __init__(self, fs, seed, vms):
        super().__init__(fs, seed)
        self.vms = {vm: "stopped" for vm in vms}

    def turn(self):
        vm = self.chance.choice(list(self.vms))
        verb, after = self.chance.choice(self.MOVES[self.vms[vm]])
        vm.do(verb)
        self.vms[vm] = after
        assert vm.state == after, f"{vm.name} is {vm.state} after '{verb}', not {after}"

    def check(self):
        for vm, state in self.vms.items():
            assert vm.state == state, vm.name
            assert vm.read("error") == "", vm.read("error")


class Documents(Load):
    """Edits in the ways of a shell, of sed -i and of vim."""

    def __init__(self, fs, seed, vm):
        super().__init__(fs, seed)
        self.vm, self.text = vm, vm.spec

    def turn(self):
        text = f"backend: sim\ncpus: {self.chance.randrange(1, 64)}\n# {'x' * 3000}\n"
        way = self.chance.randrange(3)
        if way == 0:
            self.vm.write("spec.yaml", text)
        else:
            if way == 2:
                os.rename(self.vm / "spec.yaml", self.vm / "spec.yaml~")
            put(self.vm / "edit.tmp", text, os.O_CREAT | os.O_EXCL)
            os.rename(self.vm / "edit.tmp", self.vm / "spec.yaml")
            if way == 2:
                os.unlink(self.vm / "spec.yaml~")
        self.text = text
        assert self.vm.spec == text

    def check(self):
        assert self.vm.spec == self.text
        assert not [n for n in os.listdir(self.vm.dir) if "tmp" in n or "~" in n]


class Names(Load):
    """mkdir, mv, rmdir."""

    def __init__(self, fs, seed):
        super().__init__(fs, seed)
        self.names = set()

    def turn(self):
        if len(self.names) < 4:
            name = f"n{self.done}"
            os.mkdir(self.fs.mnt / name)
            self.names.add(name)
        else:
            name = self.chance.choice(sorted(self.names))
            self.names.remove(name)
            if self.chance.random() < 0.5:
                os.rename(self.fs.mnt / name, self.fs.mnt / f"{name}m")
                self.names.add(f"{name}m")
            else:
                os.rmdir(self.fs.mnt / name)
        assert {n for n in os.listdir(self.fs.mnt) if n.startswith("n")} == self.names


class Typing(Load):
    """Someone types, and someone reads: the reader sees all that the log has, once."""

    def __init__(self, fs, seed, vm):
        super().__init__(fs, seed)
        self.vm = vm
        vm.do("start")
        self.reader = vm.follow("console")

    def turn(self):
        self.vm.write("console", f"line {self.done}\n", 0)
        if self.done % 10 == 0:
            self.reader.expect(f"^line {self.done}$")

    def check(self):
        self.vm.sim("print end")
        self.reader.expect("^end$")
        assert self.reader.text == self.vm.read("console.log")
        lines = [line for line in self.reader.text.splitlines() if line.startswith("line")]
        assert [line for line, _ in itertools.groupby(lines)] == [f"line {n}"
                                                                 for n in range(self.done)]


class Waiting(Load):
    """Readers that block until it is true."""

    def __init__(self, fs, seed, vm):
        super().__init__(fs, seed)
        self.vm = vm

    def turn(self):
        waiter = self.fs.spawn("cat", self.vm / ".io/wait/running")
        self.vm.do("start")
        assert waiter.finish() == 0 and waiter.text == "running\n"
        waiter.close()  # a thousand of them are too many for select(2)
        self.fs.followers.remove(waiter)
        self.vm.do("kill")
        assert self.vm.wait("stopped") == "stopped"


class Watching(Load):
    """A poller sees each change, and reads what is true then."""

    def __init__(self, fs, seed, vm):
        super().__init__(fs, seed)
        self.vm, self.fd = vm, os.open(vm / "state", os.O_RDONLY)
        self.poller = select.poll()
        self.poller.register(self.fd, select.POLLPRI)

    def turn(self):
        word = "start" if self.done % 2 == 0 else "kill"
        os.pread(self.fd, 100, 0)
        self.vm.do(word)
        assert self.poller.poll(30000), "the change is not told"
        assert os.pread(self.fd, 100, 0) == (b"running\n" if word == "start" else b"stopped\n")

    def check(self):
        os.close(self.fd)


class Snapshots(Load):
    """Taken, gone back to, dropped. What a crash cuts off is told of, and is not there."""

    def __init__(self, fs, seed, vm):
        super().__init__(fs, seed)
        self.vm, self.words, self.cut_off, self.memory = vm, {}, 0, None
        vm.do("start")

    def turn(self):
        if len(self.words) < 3:
            self.take(f"s{self.done}")
        elif self.chance.random() < 0.5:
            name = self.chance.choice(sorted(self.words))
            self.vm.do(f"restore {name}")
            self.memory = self.words[name]
        else:
            name = self.chance.choice(sorted(self.words))
            os.rmdir(self.vm / "snapshots" / name)
            del self.words[name]
        assert sorted(os.listdir(self.vm / "snapshots")) == sorted(self.words)

    def take(self, name):
        self.memory = f"word{self.done}"
        self.vm.sim(f"remember {self.memory}")
        os.mkdir(self.vm / "snapshots" / name)
        self.vm.wait("snapshots")
        if name in os.listdir(self.vm / "snapshots"):
            self.words[name] = self.memory
        else:
            assert name in self.vm.error("ECANCELED", "snapshot")[2]
            self.cut_off += 1

    def check(self):
        assert self.vm.state == "running"
        sim = Sim(self.fs)
        for name, word in [(None, self.memory), *self.words.items()]:
            if name:
                self.vm.do(f"restore {name}")
            assert sim.recall(self.vm) == word, name
        self.vm.do("kill")
        for name in self.words:
            os.rmdir(self.vm / "snapshots" / name)


def kill_at_random(fs, n, loads, seed, longest=0.25):
    chance = random.Random(seed)
    for kill in range(n):
        if kill % 2:
            fs.host("version")  # else it may not even serve yet
        time.sleep(chance.random() * longest)  # not to wait for something: any moment will do
        with suppress(ProcessLookupError):
            fs.crash()
        broken = [load for load in loads if load.error]
        assert not broken, broken[0].error


def sim_loads(fs, vms):
    plain = [fs.vm(f"s{n}", "backend: sim\nsim: {boot: 30ms}\n") for n in range(vms)]
    third = max(1, vms // 3)
    return [Commands(fs, 1, plain[:third]), Commands(fs, 2, plain[third:2 * third]),
            Documents(fs, 3, fs.vm("doc", "backend: sim\n")), Names(fs, 4),
            Snapshots(fs, 8, fs.vm("snap", "backend: sim\n")),
            Typing(fs, 5, fs.vm("con", "backend: sim\n")),
            Waiting(fs, 6, fs.vm("wait", "backend: sim\n")),
            Watching(fs, 7, fs.vm("watch", "backend: sim\n"))]


def check_nothing_is_left(fs):
    """After all VMs are removed: no VMM, no file."""
    for name in fs.names():
        vm = fs.vm(name)
        if vm.state not in ("stopped", "crashed"):
            vm.do("kill")
        vm.dir.rmdir()
    assert {p.relative_to(fs.state).parts[0] for p in fs.state.rglob("*")} <= {
        "boot", "format", "hosts", "lock", "next", "root", "vms"}
    assert not list((fs.state / "vms").iterdir())
    assert {p.name for p in fs.run.iterdir()} == {"lock", "keeper", "keeper.pid",
                                                   "daemon.pid", "takeover"}


def run_loads(fs, loads, kills, what, longest=0.25):
    for load in loads:
        load.start()
    try:
        kill_at_random(fs, kills, loads, kills, longest)
    finally:
        for load in loads:
            load.stop.set()
    for load in loads:
        load.finish()
    survived(what, kills=kills, lost=0,
             **{type(load).__name__.lower(): sum(x.done for x in loads if type(x) is type(load))
                for load in loads})


def test_kills_under_load(fs):
    run_loads(fs, sim_loads(fs, 12), 20, "kill -9 of the daemon, sim VMs")
    check_nothing_is_left(fs)


class RealCommands(Commands):
    MOVES = {"stopped": [("start", "running")],
             "running": [("kill", "stopped"), ("pause", "paused"), ("stop 0", "stopped")],
             "paused": [("resume", "running"), ("kill", "stopped")]}


def check_one_vmm_each(fs):
    """No VMM is orphaned, none doubled."""
    vms = [fs.vm(name) for name in fs.names() if name.startswith("q")]
    assert sorted(vm.pid for vm in vms if vm.state != "stopped") == sorted(
        pid for pid in processes(f"{fs.run}/") if "qemu" in os.readlink(f"/proc/{pid}/exe"))


@pytest.mark.qemu
@pytest.mark.parametrize("kills, sims, reals", [
    (10, 0, 1), pytest.param(200, 100, 3, marks=pytest.mark.slow)])
def test_kills_under_load_with_real_machines(fs, qemu, kills, sims, reals):
    loads = [RealCommands(fs, n, [qemu.vm(f"q{n}")]) for n in range(reals)]
    loads += sim_loads(fs, sims) if sims else []
    # Rarer: a start that is killed takes seconds to be begun anew, and there is to be work done.
    run_loads(fs, loads, kills, f"kill -9 of the daemon, {reals} QEMU, {sims} sim VMs", longest=1)
    check_one_vmm_each(fs)
    check_nothing_is_left(fs)


def test_stops_of_the_daemon(fs, vm):
    """SIGSTOP and SIGCONT: whoever asks meanwhile waits, and is answered."""
    loads = [Commands(fs, 1, [vm]), Names(fs, 2)]
    for load in loads:
        load.start()
    for _ in range(10):
        time.sleep(0.05)  # of work
        pid = fs.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)  # for this long it stands still
        os.kill(pid, signal.SIGCONT)
    for load in loads:
        load.finish()
    survived("SIGSTOP of the daemon", stops=10, lost=0)


# The disk

ORDERS = {
    "mkdir": lambda vm: os.mkdir(vm.fs.mnt / "new"),
    "rmdir": lambda vm: os.rmdir(vm.fs.mnt / "old"),
    "mv": lambda vm: os.rename(vm.fs.mnt / "old", vm.fs.mnt / "moved"),
    "spec": lambda vm: vm.write("spec.yaml", "backend: sim\ncpus: 9\n"),
    "chmod": lambda vm: os.chmod(vm.dir, 0o711),
    "chmod-file": lambda vm: os.chmod(vm / "state", 0o600),
    "start": lambda vm: vm.do("start"),
}


def outlook(fs):
    """All that a user sees of it and that is stored."""
    seen = {}
    for name in fs.names():
        vm = fs.vm(name)
        seen[name] = (vm.spec, vm.read("id"), vm.state, oct(vm.dir.stat().st_mode),
                      oct((vm / "state").stat().st_mode))
    return seen


@pytest.mark.parametrize("order", ORDERS)
def test_error_at_every_write_of_the_store(faulty, order, thorough):
    """The n-th system call of the store fails, for each n: done or not done, as was told."""
    fs, faults = faulty, faulty.faults
    injected = 0
    for errno, n in itertools.product((ENOSPC, EIO) if thorough else (ENOSPC,), range(40)):
        for name in fs.names():
            victim = fs.vm(name)
            if victim.state == "running":
                victim.do("kill")
            victim.dir.rmdir()
        vm = fs.vm("web1", "backend: sim\n")
        fs.vm("old", "backend: sim\n")
        before = outlook(fs)
        faults.store(errno, n)
        refused = None
        try:
            ORDERS[order](vm)
        except OSError as e:
            refused = e.errno
        hit = faults.get("error") == 0
        faults.none()
        after = outlook(fs)
        if refused:
            assert refused in (errno, EIO) and after == before, f"call {n} of {order}"
        fs.kill9()
        fs.restart()
        until(lambda: fs.vm("web1").state == after["web1"][2], "the same state")
        assert outlook(fs) == after, f"call {n} of {order}, after a restart"
        if not hit:
            break  # it does not make as many calls
        injected += 1
    assert injected
    survived(f"errors of the disk under {order}", injected=injected, lost=0)


def test_full_disk(box):
    """A small file system, full: what needs room fails with ENOSPC, and the rest goes on."""
    box.state.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", box.state],
                      capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        fs = box.start()
        vm = fs.vm("web1", "backend: sim\n")
        with suppress(OSError), open(box.state / "filler", "wb", 0) as f:
            while True:
                f.write(bytes(4096))
        for order in (lambda: fs.vm("web2"),
                      lambda: vm.write("spec.yaml", "backend: sim\n" + "# full\n" * 2000)):
            with pytest.raises(OSError) as caught:
                order()
            assert caught.value.errno in (ENOSPC, EDQUOT)
        assert fs.names() == ["web1"] and vm.spec == "backend: sim\n"
        (vm / "spec.yaml.rej").unlink()
        vm.do("start")
        fs.crash()
        assert vm.state == "running"
        (box.state / "filler").unlink()
        fs.vm("web2")
        vm.write("spec.yaml", "backend: sim\ncpus: 3\n")
    finally:
        fs.stop()
        unmount_disk(box.state)


# What the kernel refuses

def test_no_more_descriptors(fs, vm, guest):
    """EMFILE in the daemon: an order fails that needs one, and goes when there are some again."""
    machine = fs.vm("real", f"backend: qemu\naccel: tcg\nboot: {{kernel: {guest.kernel}}}\n")
    before = resource.prlimit(fs.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{fs.pid}/fd"))
    refused = 0
    for spare in range(12):
        resource.prlimit(fs.pid, resource.RLIMIT_NOFILE, (used + spare, before[1]))
        try:
            machine.do("start")
        except OSError as e:
            assert e.errno in (EMFILE, ENFILE, EIO, EAGAIN), e
            refused += 1
        vm.do("start")
        vm.do("kill")
        resource.prlimit(fs.pid, resource.RLIMIT_NOFILE, before)
        if machine.state != "stopped":
            machine.do("kill")
    assert refused
    machine.do("start")
    machine.do("kill")
    survived("too many open files", injected=refused, lost=0)


@pytest.mark.parametrize("errno", [ENOMEM, EAGAIN])
def test_no_process(faulty, guest, errno):
    machine = faulty.vm("real", f"backend: qemu\naccel: tcg\nboot: {{kernel: {guest.kernel}}}\n")
    faulty.faults.set(clone=errno)
    with pytest.raises(OSError) as caught:
        machine.do("start")
    assert caught.value.errno == errno
    machine.error(None, "cannot start")
    assert machine.state == "stopped" and machine.read("pid") == ""
    faulty.faults.none()
    machine.do("start")
    machine.do("kill")
    survived(f"no process to be had ({errorcode[errno]})", injected=1, lost=0)


@pytest.mark.parametrize("seconds", [-86400 * 400, 86400 * 400])
def test_clock_jumps(faulty, seconds):
    """A clock that is set: what is under way goes on, and what waits is answered."""
    vm = faulty.vm("web1", "backend: sim\nsim: {boot: 200ms, ip: 192.0.2.7}\n")
    events, waiter = vm.events(), vm.follow(".io/wait/ip")
    vm.do("start")
    faulty.faults.clock(seconds)
    assert waiter.finish(10) == 0 and waiter.text == "192.0.2.7\n"
    vm.do("stop 1")
    events.expect(" state stopped$")
    faulty.crash()
    assert vm.state == "stopped"
    vm.do("start")
    survived(f"the clock jumps by {seconds // 86400} days", jumps=1, kills=1, lost=0)


# VMMs that misbehave

@pytest.fixture
def misbehaving(box, guest):
    """A vmfs whose QEMU is a script that does as its mode says; and the real one, to probe."""
    bin_dir = box.base / "bin"
    bin_dir.mkdir()
    script, real = bin_dir / "qemu-system-x86_64", shutil.which("qemu-system-x86_64")
    (bin_dir / "vmm.py").write_text(VMM)
    box.env["PATH"] = f"{bin_dir}:{os.environ['PATH']}"

    def mode(word):
        text = f'exec {real} "$@"' if word is None else (
            f'case "$*" in *-pidfile*) ;; *) exec {real} "$@" ;; esac\n'
            f'while [ "$1" != -pidfile ]; do shift; done\n'
            f'exec /usr/bin/python3 {bin_dir}/vmm.py {word} "$2"')
        (bin_dir / "new").write_text(f"#!/bin/sh\n{text}\n")
        (bin_dir / "new").chmod(0o755)
        (bin_dir / "new").rename(script)
    mode(None)
    box.start("-o", "verb_timeout=3")
    until(lambda: "usable yes" in box.host("backends/qemu/status"), "qemu is usable")
    box.mode = mode
    box.machine = box.vm("real", f"backend: qemu\naccel: tcg\n"
                                 f"boot: {{kernel: {guest.kernel}}}\n")
    return box


def rss(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("mode", ["nothing", "garbage", "no-greeting", "partial", "huge", "deep",
                                  "wrong-types", "error"])
def test_vmm_that_talks_nonsense(misbehaving, mode):
    """The start fails or the VM is of no use; nobody else notices, and nothing is left."""
    fs, vm = misbehaving, misbehaving.machine
    other = fs.vm("other", "backend: sim\n")
    before = rss(fs.pid)
    fs.mode(mode)
    with suppress(OSError):
        vm.do("start")
    other.do("start")
    other.do("kill")
    if vm.state != "stopped":
        vm.do("kill")
    assert vm.state == "stopped" and vm.read("pid") == ""
    until(lambda: not processes(f"{fs.base}/bin/vmm.py"), "it is gone")
    assert rss(fs.pid) < before + (200 << 20)
    text = vm.read("error")
    assert text.isprintable() or text == "" or text.rstrip("\n").isprintable()
    fs.mode(None)
    vm.do("start")
    vm.do("kill")
    survived(f"a QEMU that answers: {mode}", injected=1, lost=0)


def test_vmm_that_dies_before_it_is_seen_to(misbehaving):
    """Its monitor ends first. Who waited for it finds no `running` machine afterwards."""
    fs, vm = misbehaving, misbehaving.machine
    fs.mode("dies")
    vm.do("start")
    with pytest.raises(OSError) as caught:
        vm.do("pause")
    assert caught.value.errno == EIO
    assert vm.state == "crashed"
    fs.mode(None)
    vm.do("start")
    vm.do("kill")
    survived("a QEMU that answers: its last", injected=1, lost=0)


@pytest.mark.parametrize("mode", ["events", "hangs-up"])
def test_vmm_that_goes_on_and_on(misbehaving, mode):
    fs, vm = misbehaving, misbehaving.machine
    other = fs.vm("other", "backend: sim\n")
    fs.mode(mode)
    with suppress(OSError):
        vm.do("start")
    for _ in range(20):
        other.do("start")
        other.do("kill")
    fs.crash()
    other.do("start")
    if vm.state != "stopped":
        vm.do("kill")
    until(lambda: not processes(f"{fs.base}/bin/vmm.py"), "it is gone")
    fs.mode(None)
    vm.do("start")
    vm.do("kill")
    survived(f"a QEMU that sends: {mode}", injected=1, lost=0)


@pytest.mark.qemu
def test_vmm_that_stands_still(box, guest):
    """SIGSTOP of QEMU: its orders time out, kill works, and the others go on."""
    fs = box.start("-o", "verb_timeout=2")
    vm = fs.vm("real", f"backend: qemu\naccel: tcg\nboot: {{kernel: {guest.kernel}}}\n")
    other = fs.vm("other", "backend: sim\n")
    vm.do("start")
    pid = vm.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(OSError):
        vm.do("pause")
    other.do("start")
    fs.crash()
    assert other.state == "running" and vm.state in ("running", "unknown", "paused")
    os.kill(pid, signal.SIGCONT)
    until(lambda: vm.state != "unknown", "it is heard again")
    assert vm.pid == pid
    os.kill(pid, signal.SIGSTOP)
    vm.do("kill")
    assert not alive(pid) and vm.state == "stopped"
    survived("SIGSTOP of QEMU", stops=2, lost=0)


@pytest.mark.qemu
def test_console_flood(fs, qemu):
    """A guest that prints without end, and readers that sleep: memory is bounded, all else quick."""
    vm, other = qemu.vm(), fs.vm("other", "backend: sim\n")
    vm.do("start")
    qemu.booted(vm)
    sleepers = [os.open(vm / "console", os.O_RDONLY) for _ in range(20)]
    for fd in sleepers:
        os.read(fd, 10)
    reader = vm.follow("console")
    before = rss(fs.pid)
    vm.write("console", "yes flood > /dev/ttyS0\n", 0)
    log = vm / "console.log"
    size = log.stat().st_size
    until(lambda: log.stat().st_size > size + (1 << 20), "a megabyte is printed", 60)
    start = time.monotonic()
    for _ in range(20):
        other.do("start")
        other.do("kill")
    assert time.monotonic() - start < 10
    fs.crash()
    other.do("start")
    reader.expect("flood")
    assert rss(fs.pid) < before + (100 << 20)
    for fd in sleepers:
        assert len(os.read(fd, 1 << 20)) <= 64 << 10
        os.close(fd)
    vm.do("kill")
    survived("a guest that floods its console", readers=21, kills=1, lost=0)


# What is stored

FILES = ("meta", "spec.yaml", "spec.yaml.rej", "error", "started.yaml")
DAMAGE = {"empty": b"", "zeros": bytes(300), "garbage": os.urandom(300), "half": None,
          "huge": b"x" * (2 << 20)}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_file(fs, name, kind):
    """It costs that VM's detail at most, is told of in its `error`, and no other VM anything."""
    vm, other = fs.vm("web1", "backend: sim\n"), fs.vm("other", "backend: sim\n")
    with pytest.raises(OSError):
        vm.write("spec.yaml", "cpus: none\n")
    fs.stop()
    path = min((fs.state / "vms").iterdir(), key=lambda p: int(p.name)) / name
    whole = path.read_bytes() if path.exists() else b"backend: sim\n"
    path.write_bytes(whole[:len(whole) // 2] if kind == "half" else DAMAGE[kind])
    fs.restart()
    assert "other" in fs.names() and other.spec == "backend: sim\n"
    other.do("start")
    mine = set(fs.names()) - {"other"}
    if name == "meta" and kind == "empty":  # as an unfinished mkdir leaves it
        assert not mine
        return
    assert len(mine) == 1
    damaged = fs.vm(mine.pop())
    assert damaged.state == "stopped"
    if name in ("meta", "spec.yaml") and kind != "empty":
        assert damaged.read("error"), "nothing is said of it"
    os.rmdir(damaged.dir)
    assert fs.names() == ["other"]
    survived(f"a stored file that is damaged: {name}, {kind}", injected=1, lost=0)


def test_damaged_run_file(fs, vm):
    vm.do("start")
    other = fs.vm("other", "backend: sim\n")
    other.do("start")
    fs.kill9()
    (fs.run / f"{vm.dir.name and min(int(p.stem) for p in fs.run.glob('*.run'))}.run").write_bytes(
        b"\xff\0garbage")
    fs.restart()
    assert other.state == "running"
    assert fs.vm("web1").state in ("stopped", "unknown")
    fs.vm("web1").do("running")


def test_bits_that_flip(fs):
    """One byte of meta is another: it is noticed, whatever it still looks like."""
    fs.vm("web1", "backend: sim\n")
    fs.stop()
    meta = fs.state / "vms/1/meta"
    text = meta.read_bytes()
    assert b"web1" in text
    meta.write_bytes(text.replace(b"web1", b"wub1"))
    fs.restart()
    name, = fs.names()
    assert name != "wub1" and "meta" in fs.vm(name).error()[2]
    os.rename(fs.mnt / name, fs.mnt / "web1")
    assert fs.vm("web1").spec == "backend: sim\n"
    fs.kill9()
    fs.restart()
    assert fs.names() == ["web1"]


def test_first_format(box):
    """A state directory as the first version wrote it."""
    shutil.copytree(Path(__file__).parent / "data/state-1", box.state)
    (box.state / "vms/1/data").mkdir(exist_ok=True)
    fs = box.start()
    assert fs.names() == ["db", "web1"]
    vm = fs.vm("web1")
    assert vm.read("id") == "1000\n" and vm.spec.startswith("# a comment\n")
    assert (vm / "state").stat().st_mode & 0o777 == 0o600
    assert vm.read("spec.yaml.rej") == "cpus: none\n" and "EINVAL" in vm.read("error")
    os.mkdir(fs.mnt / "new")
    assert (fs.mnt / "new").stat().st_ino >> 32 >= 257  # what `next` says
    fs.vm("db").do("start")


def test_newer_format(fs):
    fs.stop()
    (fs.state / "format").write_text("2\n")
    fs.launch()
    assert fs.wait_exit() == 1
    assert "another version" in fs.log_text
