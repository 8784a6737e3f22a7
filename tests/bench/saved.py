# SPDX-License-Identifier: Apache-2.0
"""Memory on the disk: clones of a snapshot, the pause of one, sleep and wake; and disks plugged."""
import array
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import changes
from changes import Columns, Starts
from daemon import Daemon
from measure import Missing, Series, Watch
from peers import until

AT_ONCE = 20
SHARED = 8  # clones among which the memory of one is measured
UNLIMITED = 1 << 50


class Qmp:
    """A monitor of QEMU's own, as a program would use it that has nothing else."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 60
        while self.sock.connect_ex(str(path)):  # its name is there before anybody listens
            if time.monotonic() > end:
                raise Missing("no monitor within 60 s")
            time.sleep(0.0005)
        self.lines = self.sock.makefile("r")
        self.lines.readline()
        self.events = []
        self("qmp_capabilities")

    def __call__(self, command, fd=None, **args):
        text = json.dumps({"execute": command, "arguments": args}).encode() + b"\n"
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                                         array.array("i", [fd]))]
        self.sock.sendmsg([text], rights)
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                raise Missing(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
            self.events.append(answer)

    def event(self, name, **data):
        """Wait for one."""
        while True:
            answer = self.events.pop(0) if self.events else json.loads(self.lines.readline())
            if answer.get("event") == name and data.items() <= answer["data"].items():
                return

    def migrate(self, command, path, flags):
        fd = os.open(path, flags, 0o600)
        try:
            self("getfd", fd=fd, fdname="file")
        finally:
            os.close(fd)
        self.events.clear()
        self(command, uri="fd:file")
        self.event("MIGRATION", status="completed")

    def save(self, path):
        """The pause of a guest whose memory is written to a file, in seconds."""
        begin = time.monotonic()
        self("stop")
        self.migrate("migrate", path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        return begin

    def prepare(self):
        self("migrate-set-parameters", **{"max-bandwidth": UNLIMITED})
        self("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])

    def resume(self):
        while True:  # it says that it has completed before it can go on
            if self("query-status")["status"] != "finish-migrate":
                break
        self("cont")

    def close(self):
        self.lines.close()
        self.sock.close()


def booted(vm):
    """The guest's shell and its agent are there, and it has fallen idle."""
    until(lambda: "guest# " in (vm / "console.log").read_text(errors="replace"), "a shell", 120)
    (vm / "wait/agent").read_text()
    time.sleep(changes.SETTLE)


def ready(vm, name):
    (vm / "wait/snapshots").read_text()
    if (vm / f"snapshots/{name}/state").read_text() != "ready\n":
        raise Missing((vm / "error").read_text().strip())


def pss(pid):
    """Bytes, each shared page as a part of one."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss: +(\d+)", text, re.M)[1]) << 10


class Clones:
    """A snapshot of the guest that `its` starts, and machines made of it."""

    def __init__(self, its):
        self.its, self.bench, self.vmfs = its, its.bench, its.vmfs
        gold = self.vmfs.make("gold", self.bench.spec())
        (gold / "state").write_text("start\n")
        booted(gold)
        self.cold_pss = pss(int((gold / "pid").read_text()))
        (gold / "snapshots/s").mkdir()
        ready(gold, "s")
        (gold / "state").write_text("kill\n")
        self.count = 0

    def make(self):
        self.count += 1
        return self.vmfs.make(f"c{self.count}", "from: gold/snapshots/s\n")

    @staticmethod
    def remove(vm):
        (vm / "state").write_text("kill\n")
        vm.rmdir()

    def start(self):
        """Seconds to running vCPUs."""
        vm = self.make()
        took = self.vmfs.write(f"{vm.name}/state", "start\n").seconds()
        self.remove(vm)
        return took

    def answer(self):
        """Seconds until the guest has done what was typed right after the start."""
        vm = self.make()
        turn = self.vmfs.write(f"{vm.name}/state", "start\n")
        console = Watch(self.bench.helper("watch"), "read", vm / "console", "answer")
        try:
            begin = turn.run()[0]
            (vm / "console").write_text("echo an''swer\n")
            return console.after(begin, timeout=60)
        finally:
            console.close()
            self.remove(vm)

    def at_once(self, n):
        """Seconds until all of n run; what else is to be known of them then."""
        vms = [self.make() for _ in range(n)]
        threads = [threading.Thread(target=(vm / "state").write_text, args=("start\n",))
                   for vm in vms]
        begin = time.monotonic()
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        took = time.monotonic() - begin
        states = {(vm / "state").read_text() for vm in vms}
        if states != {"running\n"}:
            raise Missing(f"of {n} clones some are {', '.join(states)}".replace("\n", ""))
        return took, vms

    def together(self, n):
        took, vms = self.at_once(n)
        for vm in vms:
            self.remove(vm)
        return took

    def memory(self, n, fresh):
        """Mean PSS of n that have just begun to run, or have answered too."""
        vms = self.at_once(n)[1]
        asked = [] if fresh else vms
        for vm in asked:
            (vm / "console").write_text("echo an''swer\n")
        for vm in asked:
            until(lambda vm=vm: "\nanswer" in (vm / "console.log").read_text(errors="replace"),
                  "an answer", 60)
        sizes = [pss(int((vm / "pid").read_text())) for vm in vms]
        for vm in vms:
            self.remove(vm)
        return sum(sizes) / n


def clone(bench, report):
    """A new VM that begins as a snapshot of another one, against bare QEMU and against a boot."""
    its = Starts(bench)
    clones = Clones(its)
    first = Series([clones.start()])
    report.add("start of the first clone, which makes a template", first)
    got = Columns()
    for _ in range(bench.pick(21, 7)):
        got.take(("clone",), lambda: (clones.start(),))
        got.take(("qmp", "cont", "up", "reap"), its.bare)
    report.add("start of a clone, to running vCPUs", got["clone"],
               ("bare QEMU, exec to QMP", got["qmp"]), within=1.3)
    got = Columns()
    for _ in range(bench.pick(7, 3)):
        got.take(("answer",), lambda: (clones.answer(),))
        got.take(("up", "kill"), its.boot)
        got.take(("one", "many"), lambda: (clones.together(1), clones.together(AT_ONCE)))
    report.add("start of a clone, to the guest's answer", got["answer"],
               ("echo start to GUEST-UP", got["up"]), within=0.1)
    report.add(f"{AT_ONCE} clones at once, to all running", got["many"],
               ("one", got["one"]), within=25)
    cold = Series([clones.cold_pss])
    for n, fresh in (1, True), (1, False), (SHARED, False):
        report.add(f"PSS of a clone {'just started' if fresh else 'that has answered'}, of {n}",
                   Series([clones.memory(n, fresh)]),
                   ("a guest that has booted", cold), within=0.25, unit="B")


class Monitored:
    """A VM whose QEMU has a monitor for others too, and a file for what they save."""

    def __init__(self, bench, spec=""):
        dirs = bench.directory("qmp", fast=True)
        wrapper = dirs / "qemu-system-x86_64"
        wrapper.write_text(changes.WRAPPER.format(qemu=shutil.which("qemu-system-x86_64"),
                                                  dir=dirs))
        wrapper.chmod(0o755)
        self.vmfs = Daemon(bench, PATH=f"{dirs}:{os.environ['PATH']}")
        self.vm = self.vmfs.make("g", bench.spec() + spec)
        (self.vm / "state").write_text("start\n")
        booted(self.vm)
        self.data = next(self.vmfs.state.glob("vms/*/data"))
        self.file, self.socket = self.data / "bare.memory", dirs / "1"

    def qmp(self):
        return Qmp(self.socket)


def pauses(its, rounds):
    """The guest's pause: of a snapshot, and of the same by QMP alone."""
    got = Columns()
    qmp = its.qmp()
    qmp.prepare()

    def bare():
        begin = qmp.save(its.file)
        qmp.resume()
        return (time.monotonic() - begin,)

    def snapshot():
        (its.vm / "snapshots/s").mkdir()
        ready(its.vm, "s")
        text = (its.vm / "snapshots/s/manifest").read_text()
        (its.vm / "snapshots/s").rmdir()
        return (float(re.search(r"^# paused ([\d.]+) ms", text, re.M)[1]) / 1000,)

    for _ in range(rounds):
        got.take(("snapshot",), snapshot)
        got.take(("bare",), bare)
    qmp.close()
    return got


class Sleeper:
    """The guest of a VM, but with nobody around it."""

    def __init__(self, bench, vm):
        self.dir = bench.directory("bare", fast=True)
        self.file = bench.directory("bare") / "memory"
        text = (vm / "cmdline").read_text()
        words = [w.strip("'") for w in re.findall(r"'[^']*'|\S+", text)]
        self.argv = [self._own(w) for w in words]
        for end in ("in", "out"):
            os.mkfifo(self.dir / f"console.{end}")
        self.proc, self.qmp = None, None
        bench.cleanup.callback(self.close)
        self.spawn()
        self.qmp("cont")
        until(lambda: "guest# " in (self.dir / "log").read_text(errors="replace"), "a shell", 120)
        time.sleep(3 * changes.SETTLE)

    def _own(self, word):
        word = re.sub(r"(?<=,)fd=3", f"path={self.dir}/qmp", word)
        word = re.sub(r"(?<=,)fd=4", f"path={self.dir}/agent", word)
        word = re.sub(r"path=[^,]*/console,logfile=[^,]*", f"path={self.dir}/console,"
                      f"logfile={self.dir}/log", word)
        return re.sub(r"/\S*/pid$", f"{self.dir}/pid", word)

    def spawn(self, *more):
        (self.dir / "qmp").unlink(missing_ok=True)
        self.proc = subprocess.Popen([*self.argv, *more], stdin=subprocess.DEVNULL)
        self.qmp = Qmp(self.dir / "qmp")
        self.qmp.prepare()

    def seconds(self):
        begin = self.qmp.save(self.file)
        self.qmp("quit")
        self.qmp.close()
        self.proc.wait()
        self.spawn("-incoming", "defer")
        self.qmp.migrate("migrate-incoming", self.file, os.O_RDONLY)
        self.qmp("cont")
        return time.monotonic() - begin

    def close(self):
        if self.proc:
            self.proc.kill()
            self.proc.wait()


def plugs(its, disk, rounds):
    """From the order to the line that the guest's kernel prints of its new disk."""
    vm, got, qmp = its.vm, Columns(), its.qmp()
    (vm / "console").write_text("dmesg -n 7\n")
    time.sleep(changes.SETTLE)

    def timed(plug):
        log = vm / "console.log"
        before = log.stat().st_size
        watch = its.vmfs.bench.helper("watch")
        console = Watch(watch, "read", vm / "console", "[vda]")
        try:
            time.sleep(0.2)  # for what it is shown of the past
            begin = time.monotonic_ns()
            plug()
            took = console.after(begin, timeout=30)
        finally:
            console.close()
        until(lambda: b"[vda]" in log.read_bytes()[before:], "the line")
        return took

    def by_vmfs():
        took = timed(lambda: (vm / "disks/hot").symlink_to(disk))
        (vm / "disks/hot").unlink()
        return (took,)

    def plug():
        qmp("blockdev-add", **{"driver": "file", "node-name": "f", "filename": str(disk)})
        qmp("blockdev-add", **{"driver": "raw", "node-name": "n", "file": "f"})
        qmp("device_add", driver="virtio-blk-pci", id="bare", drive="n", bus="hot0", addr="0x1d")

    def by_qmp():
        took = timed(plug)
        qmp.events.clear()
        qmp("device_del", id="bare")
        qmp.event("DEVICE_DELETED", device="bare")
        qmp("blockdev-del", **{"node-name": "n"})
        qmp("blockdev-del", **{"node-name": "f"})
        return (took,)

    for _ in range(rounds):
        got.take(("vmfs",), by_vmfs)
        got.take(("qmp",), by_qmp)
    qmp.close()
    return got


def save(bench, report):
    """Memory to a file and back, and a disk plugged, against the same by QMP alone."""
    its = Monitored(bench)
    got = pauses(its, bench.pick(15, 5))
    report.add("the guest's pause of a snapshot", got["snapshot"],
               ("stop, migrate to a file, cont by QMP", got["bare"]), within=1.3)
    disk = bench.directory("disk") / "hot.raw"
    with open(disk, "wb") as f:
        f.truncate(16 << 20)
    got = plugs(its, disk, bench.pick(11, 5))
    report.add("ln -s of a disk, to the guest's kernel telling", got["vmfs"],
               ("blockdev-add, device_add by QMP", got["qmp"]), within=1.2)
    (its.vm / "state").write_text("kill\n")
    vmfs = Daemon(bench)
    vm = vmfs.make("g", bench.spec())
    (vm / "state").write_text("start\n")
    booted(vm)
    bare = Sleeper(bench, vm)
    sleep, wake = (vmfs.write("g/state", f"{verb}\n") for verb in ("sleep", "wake"))
    got = Columns()
    for _ in range(bench.pick(11, 5)):
        got.take(("vmfs",), lambda: (sleep.seconds() + wake.seconds(),))
        got.take(("bare",), lambda: (bare.seconds(),))
        time.sleep(0.5)  # of work for both guests
    report.add("echo sleep; echo wake", got["vmfs"],
               ("save, quit, start, load by QMP", got["bare"]), within=1.3)
