# SPDX-License-Identifier: Apache-2.0
"""Changing: VMs made and removed, started and killed, and who is told of it when."""
import os
import re
import shlex
import shutil
import signal
import subprocess
import time

from daemon import Daemon
from measure import (Missing, Series, Watch, attempt, everywhere, helpers, interleave,
                     placements, traced)
from peers import EmptyFuse, Libvirtd, until

SETTLE = 1  # second that a guest has after GUEST-UP, before it is killed; as in c/bare.c
SYNCS = "fsync,fdatasync,sync_file_range,syncfs,sync,rename,renameat,renameat2"


def define(bench, report):
    """
    A VM made and removed again. Of libvirt's define a power cut leaves the old or the new, for it
    syncs a file before it renames it, and not the name, which the journal writes within its 5 s.
    Of a mkdir it leaves nothing or all, which is on the disk after half a second.
    """
    vmfs, libvirt = Daemon(bench), attempt(Libvirtd, bench)
    xml = attempt(lambda: libvirt.xml("one"))
    subjects = {
        "vmfs": bench.turns("turn", "mkrm", vmfs.path("one")),
        "libvirt": attempt(libvirt.turns, "define", xml),
    }
    pids = {"vmfs": vmfs.pids(), "libvirt": attempt(libvirt.pids)}
    note = "calls of one turn: " + "; ".join(
        f"{name}: {attempt(traced, bench, pids[name], SYNCS, subject)}"
        for name, subject in subjects.items())
    servers = [pid for some in pids.values() if not isinstance(some, Missing) for pid in some]
    for place in (*placements(), everywhere()):
        place.apply(helpers(subjects), servers)
        got = interleave(subjects, bench.pick(60, 15))
        report.add(f"mkdir+rmdir, {place.name}", got["vmfs"],
                   ("C define+undefine", got["libvirt"]), faster=3, note=note)
        note = None
    commands = {
        "vmfs": bench.turns("turn", "spawn", "sh", "-c", f"mkdir {vmfs.mnt}/c; rmdir {vmfs.mnt}/c"),
        "libvirt": attempt(libvirt.spawned, f"define {xml}; undefine one"),
    }
    got = interleave(commands, bench.pick(20, 6))
    report.add("mkdir; rmdir (two processes)", got["vmfs"],
               ("virsh 'define; undefine' (one)", got["libvirt"]))


class Starts:
    """The same guest, started by vmfs, by nobody, and by libvirt."""

    def __init__(self, bench):
        self.bench, self.vmfs = bench, Daemon(bench)
        self.vm = self.vmfs.make("g", bench.spec())
        self.start = self.vmfs.write("g/state", "start\n")
        self.kill = self.vmfs.write("g/state", "kill\n")
        self.bare_data, self.bare_run = bench.directory("bare"), bench.directory("bare", fast=True)
        self.argv = self._same_arguments()
        self.libvirt = attempt(Libvirtd, bench)
        self.create = self.destroy = attempt(self._define)
        if not isinstance(self.create, Missing):
            self.destroy = self.libvirt.turns("destroy", "g")
        self.virsh = attempt(self.libvirt.spawned, "start", "g")

    def _define(self):
        self.libvirt.call("define", self.libvirt.guest_xml("g"))
        return self.libvirt.turns("create", "g")

    def _same_arguments(self):
        """Those that the VM has, but for where its files are; and what they expect to find."""
        words = shlex.split((self.vm / "cmdline").read_text())
        for old, new in ((self.vmfs.state, self.bare_data), (self.vmfs.run, self.bare_run)):
            words = [re.sub(rf"{re.escape(str(old))}/[^,]*/", f"{new}/", w) for w in words]
        text = " ".join(words)
        self.sockets = len(re.findall(r"\bsocket,id=\w+,fd=\d", text))
        for pipe in re.findall(r"\bpipe,id=\w+,path=([^, ]+)", text):
            os.mkfifo(f"{pipe}.in")
            os.symlink("/dev/null", f"{pipe}.out")
        return words

    def bare(self, word=""):
        """QMP's first answer, `cont`, the guest, the kill: in seconds from one to the next."""
        log = self.bare_data / "console.log"
        log.write_text("")
        done = subprocess.run([self.bench.helper("bare"), self.bare_run, str(self.sockets), log,
                               word, *self.argv],
                              capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise Missing(f"bare QEMU: {done.stderr.strip()[-200:]}")
        return [int(n) / 1e9 for n in done.stdout.splitlines()[-1].split()]

    def renew(self):
        """A new VM of the old name, with nothing on its console."""
        self.vm.rmdir()
        self.vmfs.make("g", self.bench.spec())

    def boot(self):
        """Seconds to the guest, and of the kill."""
        self.renew()
        console = Watch(self.bench.helper("watch"), "read", self.vm / "console", "GUEST-UP")
        try:
            up = console.after(self.start.run()[0], timeout=120)
        finally:
            console.close()
        time.sleep(SETTLE)
        return up, self.kill.seconds()

    def boot_libvirt(self):
        """The same by `virsh start` and `virsh destroy`."""
        begin = self.virsh.run()[0]
        console = Watch(self.bench.helper("watch"), "socket", self.libvirt.console("g"),
                        "GUEST-UP")
        try:
            up = console.after(begin, timeout=120)
        finally:
            console.close()
        time.sleep(SETTLE)
        return up, self.destroy.seconds()


class Columns(dict):
    """Series by name; what is missing once stays missing."""

    def take(self, names, make, *args):
        if any(isinstance(self.get(n), Missing) for n in names):
            return
        values = attempt(make, *args)
        for i, name in enumerate(names):
            if isinstance(values, Missing):
                self[name] = values
            else:
                self.setdefault(name, Series()).append(values[i])


def control_plane(its, rounds):
    got = Columns()
    for _ in range(rounds):
        got.take(("start", "kill"), lambda: (its.start.seconds(), its.kill.seconds()))
        got.take(("qmp", "cont", "up", "reap"), its.bare)
        got.take(("create", "destroy"), lambda: (its.create.seconds(), its.destroy.seconds()))
        got.take(("virsh", "-"), lambda: (its.virsh.seconds(), its.destroy.seconds()))
    return got


def start(bench, report):
    """From the write to running vCPUs, to the guest's user space, and the end."""
    its = Starts(bench)
    got = control_plane(its, bench.pick(25, 8))
    what = "echo start > state"
    report.add(what, got["start"], ("bare QEMU, exec to QMP", got["qmp"]), within=1.15)
    report.add(what, got["start"], ("bare QEMU, exec to `cont` answered", got["cont"]))
    report.add(what, got["start"], ("virsh start", got["virsh"]), faster=8)
    report.add(what, got["start"], ("C virDomainCreate", got["create"]))
    report.add("echo kill > state, just started", got["kill"], ("SIGKILL+reap", got["reap"]),
               within=1.3)
    report.add("echo kill > state, just started", got["kill"],
               ("C virDomainDestroy", got["destroy"]))
    got = Columns()
    for _ in range(bench.pick(9, 3)):
        got.take(("up", "kill"), its.boot)
        got.take(("qmp", "cont", "bare up", "reap"), its.bare, "GUEST-UP")
        got.take(("virsh up", "destroy"), its.boot_libvirt)
    report.add("echo start to GUEST-UP", got["up"], ("bare QEMU", got["bare up"]), within=1.02)
    report.add("echo start to GUEST-UP", got["up"], ("virsh start", got["virsh up"]))
    report.add("echo kill > state, booted", got["kill"], ("SIGKILL+reap", got["reap"]),
               within=1.3)
    first, again = added_by_files(bench, bench.pick(25, 8))
    report.add("echo start, making overlay and seed", first, ("the same files there", again))
    report.add("what making overlay and seed adds to a start",
               Series(a - b for a, b in zip(first, again)), limit=0.010)


def added_by_files(bench, rounds):
    """
    Of a first start, which makes an overlay and a seed, and of one in which the same are there as
    files of the user's: the seconds.
    """
    vmfs, image = Daemon(bench), bench.guest()["disk"]
    vmfs.make("first", bench.spec() + f"disks:\n  root: {{image: {image}}}\n"
              "cloud_init: {user_data: \"#cloud-config\\npackages: [git]\\n\"}\n")
    def turns_of(name):
        return [vmfs.write(f"{name}/state", f"{verb}\n") for verb in ("start", "kill")]
    turns = {"first": turns_of("first")}
    for turn in turns["first"]:
        turn.seconds()
    data, there = next(vmfs.state.glob("vms/*/data")), bench.directory("files")
    for name in ("root.qcow2", "seed.iso"):
        shutil.copyfile(data / name, there / name)
    vmfs.make("again", bench.spec() + f"disks:\n  root: {{file: {there}/root.qcow2}}\n"
              f"  seed: {{file: {there}/seed.iso, readonly: true}}\n")
    turns["again"] = turns_of("again")
    got = {name: Series() for name in turns}
    for _ in range(rounds):
        (data / "root.qcow2").unlink()
        for name, (start_it, kill_it) in turns.items():
            got[name].append(start_it.seconds())
            kill_it.seconds()
    return got["first"], got["again"]


WRAPPER = """#!/bin/sh
# QEMU with two monitors more, for others to use.
case "$*" in
*" -name "*)
	exec {qemu} "$@" -qmp unix:{dir}/1,server=on,wait=off -qmp unix:{dir}/2,server=on,wait=off ;;
*)
	exec {qemu} "$@" ;;
esac
"""


class Watched:
    """A VM of vmfs and a domain of libvirt, each with monitors on which others can pause it."""

    def __init__(self, bench):
        self.bench = bench
        self.sockets = {side: bench.directory("qmp", fast=True) for side in ("vmfs", "libvirt")}
        wrapper = self.sockets["vmfs"] / "qemu-system-x86_64"
        qemu = subprocess.run(["sh", "-c", "command -v qemu-system-x86_64"], check=True,
                              capture_output=True, text=True).stdout.strip()
        wrapper.write_text(WRAPPER.format(qemu=qemu, dir=self.sockets["vmfs"]))
        wrapper.chmod(0o755)
        self.vmfs = Daemon(bench, PATH=f"{wrapper.parent}:{os.environ['PATH']}")
        self.vm = self.vmfs.make("g", bench.spec())
        self.libvirt = attempt(Libvirtd, bench)
        self.start()
        self.domain = attempt(self._define)
        self.empty = EmptyFuse(bench)

    def _define(self):
        dirs = self.sockets["libvirt"]
        self.libvirt.call("define", self.libvirt.guest_xml("g", (dirs / "1", dirs / "2")))
        self.libvirt.call("start", "g")
        return True

    def start(self):
        (self.vm / "state").write_text("start\n")

    def pid(self):
        return int((self.vm / "pid").read_text())

    def servers(self):
        pids = [*self.vmfs.pids(), self.pid(), self.empty.proc.pid]
        if not isinstance(self.domain, Missing):
            pids += [*self.libvirt.pids(), self.libvirt.vmm("g")]
        return pids

    def watch(self, *words):
        return self.bench.turns("watch", *words, cls=Watch)

    def virsh_events(self):
        command = shlex.join([*self.libvirt.virsh("event", "--domain", "g", "--event",
                                                  "lifecycle", "--loop")])
        watch = self.bench.helper("watch")
        events = Watch("sh", "-c", f"{command} | {watch} read - lifecycle")
        return self.bench.keep(events)

    def watchers(self):
        """Who looks on at each side, by name: (watch, the word that tells of a pause)."""
        qmp = {side: attempt(self.bench.turns, "qmp", "events", path / "2", cls=Watch)
               for side, path in self.sockets.items()}
        return {
            "vmfs": {"inotify": (attempt(self.watch, "inotify", self.vm / "state"), ""),
                     "stream": (attempt(self.watch, "read", self.vm / "events", "paused"), ""),
                     "qmp": (qmp["vmfs"], "STOP")},
            "libvirt": {"callback": (attempt(self.libvirt.events), ""),
                        "virsh event": (attempt(self.virsh_events), ""),
                        "their qmp": (qmp["libvirt"], "STOP")},
        }


def one_pause(got, monitor, watchers):
    """Pause by the monitor of somebody else; what each watcher makes of it."""
    begin = monitor.run()[0]
    for name, (watch, word) in watchers.items():
        got.take((name,), lambda w=watch, t=word: (w.after(begin, t),))
    time.sleep(0.01)
    monitor.run()  # resume
    time.sleep(0.02)  # until all have heard of that too


def event_rows(report, got, rtt, place):
    what, at = "paused from elsewhere, to ", f", {place.name}"
    limit = Missing("no event of QMP's own")
    if not isinstance(got["qmp"], Missing):
        limit = Series(q + 4 * rtt.median for q in got["qmp"])
    inotify = f"{what}inotify{at}"
    report.add(inotify, got["inotify"], ("QMP event + 4 empty FUSE turns", limit), within=1)
    report.add(inotify, got["inotify"], ("libvirt's C callback", got["callback"]), faster=2)
    report.add(inotify, got["inotify"], ("virsh event", got["virsh event"]))
    report.add(f"{what}a reader of events{at}", got["stream"],
               ("QMP event + 4 empty FUSE turns", limit))
    report.add(f"{what}a reader of events{at}", got["stream"],
               ("libvirt's C callback", got["callback"]))
    report.add(f"{what}QMP itself{at}", got["qmp"], ("libvirt's QEMU", got["their qmp"]))


def pauses(its, rounds, report):
    monitors = {side: attempt(its.bench.turns, "qmp", "turn", path / "1", "stop", "cont")
                for side, path in its.sockets.items()}
    watchers = its.watchers()
    rtt = its.bench.turns("turn", "pread", its.empty.file)
    clients = helpers({"rtt": rtt, **monitors})
    for side in watchers.values():
        clients += helpers({name: watch for name, (watch, _) in side.items()})
    for place in placements():
        place.apply(clients, its.servers())
        got = Columns()
        for _ in range(rounds):
            for side, monitor in monitors.items():
                failed = attempt(one_pause, got, monitor, watchers[side])
                if isinstance(failed, Missing):
                    got.update({name: failed for name in watchers[side]})
        event_rows(report, got, interleave({"rtt": rtt}, 10)["rtt"], place)


def crashes(its, rounds, report):
    """The VMM killed, by somebody else."""
    got = Columns()
    state = its.vm / "state"
    for _ in range(rounds):
        inotify = its.watch("inotify", state)
        stream = its.watch("read", its.vm / "events", "crashed")
        exited = its.watch("pidfd", str(its.pid()))
        begin = time.monotonic_ns()
        os.kill(its.pid(), signal.SIGKILL)
        for name, watch in (("pidfd", exited), ("inotify", inotify), ("stream", stream)):
            got.take((name,), lambda w=watch: (w.after(begin),))
            watch.close()
        until(lambda: state.read_text() == "crashed\n", "crashed")
        its.start()
        got.take(("callback",), lambda: (crash_domain(its),))
    for what, name in (("inotify", "inotify"), ("a reader of events", "stream")):
        report.add(f"VMM killed, to {what}", got[name], ("a pidfd's poll", got["pidfd"]))
        report.add(f"VMM killed, to {what}", got[name], ("libvirt's C callback", got["callback"]))


def crash_domain(its):
    if isinstance(its.domain, Missing):
        raise its.domain
    callback = its.libvirt.events()
    pid = its.libvirt.vmm("g")
    begin = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    took = callback.after(begin)
    callback.close()
    its.libvirt.call("start", "g")
    return took


def event(bench, report):
    """From what happens in the hypervisor to those who watch."""
    its = Watched(bench)
    time.sleep(bench.pick(8, 5))  # for both guests to boot, and fall idle
    pauses(its, bench.pick(40, 12), report)
    everywhere().apply(servers=its.servers())
    crashes(its, bench.pick(8, 3), report)
