# SPDX-License-Identifier: Apache-2.0
"""Reading: the state of one VM, and of all."""
from daemon import Daemon
from measure import (Missing, Series, attempt, bash_turns, everywhere, helpers, interleave,
                     placements, traced)
from peers import BareMonitor, EmptyFuse, Libvirtd, Tmpfs


class State:
    """What is asked, and by whom, for the state of one VM."""

    def __init__(self, bench):
        self.bench = bench
        self.vmfs = Daemon(bench)
        self.ours = self.vmfs.make("x") / "state"
        self.empty = EmptyFuse(bench)
        tmpfs = Tmpfs(bench)
        tmpfs.fill(["x"])
        self.tmpfs = tmpfs.dir / "x" / "state"
        self.monitor = attempt(BareMonitor, bench)
        self.libvirt = attempt(Libvirtd, bench)
        attempt(lambda: self.libvirt.call("define", self.libvirt.xml("x")))

    def servers(self):
        pids = [*self.vmfs.pids(), self.empty.proc.pid]
        if not isinstance(self.monitor, Missing):
            pids.append(self.monitor.proc.pid)
        if not isinstance(self.libvirt, Missing):
            pids += self.libvirt.pids()
        return pids

    def calls(self):
        """System calls and calls of libraries, on what is already connected."""
        turns = self.bench.turns
        subjects = {}
        for kind in ("orc", "pread"):
            subjects[kind] = turns("turn", kind, self.ours)
            subjects[f"{kind} empty"] = turns("turn", kind, self.empty.file)
            subjects[f"{kind} tmpfs"] = turns("turn", kind, self.tmpfs)
        subjects["orc asked"] = turns("turn", "orc", self.empty.dir / "asked")
        subjects["libvirt"] = attempt(self.libvirt.turns, "state", "x")
        subjects["qmp"] = attempt(
            lambda: turns("qmp", "turn", self.monitor.socket, "query-status"))
        return subjects

    def commands(self):
        """What is typed into a shell."""
        keep = self.bench.keep
        virsh = attempt(lambda: " ".join(f"'{w}'" for w in self.libvirt.virsh("domstate", "x")))
        subjects = {
            "cat": self.bench.turns("turn", "spawn", "cat", self.ours),
            "cat empty": self.bench.turns("turn", "spawn", "cat", self.empty.file),
            "cat tmpfs": self.bench.turns("turn", "spawn", "cat", self.tmpfs),
            "virsh": attempt(self.libvirt.spawned, "domstate", "x"),
            "$(virsh)": virsh if isinstance(virsh, Missing) else keep(
                bash_turns(f"s=$({virsh})")),
        }
        for name, path in (("", self.ours), (" empty", self.empty.file),
                           (" tmpfs", self.tmpfs)):
            subjects[f"$(<){name}"] = keep(bash_turns(f"s=$(< {path})"))
            subjects[f"read{name}"] = keep(bash_turns(f"read -r s < {path}"))
        return subjects


def state(bench, report):
    """One VM's state, by calls with both ends pinned and by commands left to the scheduler."""
    its = State(bench)
    subjects = its.calls()
    note = "answers to the kernel in one turn: " + ", ".join(
        f"{name}: {attempt(traced, bench, pids, 'writev', subjects[key])}"
        for name, pids, key in (("vmfs", its.vmfs.pids(), "orc"),
                                ("empty FUSE", [its.empty.proc.pid], "orc empty")))
    for place in placements():
        place.apply(helpers(subjects), its.servers())
        got = interleave(subjects, bench.pick(40, 12))
        at = f", {place.name}"
        for kind, what in (("orc", "open+read+close"), ("pread", "pread")):
            report.add(what + at, got[kind], ("empty FUSE", got[f"{kind} empty"]), within=1.1,
                       note=note)
            note = None
            if kind == "orc":
                report.add(what + at, got[kind],
                           ("empty FUSE, one name to look up", got["orc asked"]))
            report.add(what + at, got[kind], ("tmpfs", got[f"{kind} tmpfs"]))
            report.add(what + at, got[kind], ("C virDomainGetState", got["libvirt"]))
            report.add(what + at, got[kind], ("QMP query-status", got["qmp"]))
    subjects = its.commands()
    everywhere().apply(helpers(subjects), its.servers())
    got = interleave(subjects, bench.pick(30, 10))
    report.add("cat state", got["cat"], ("virsh domstate", got["virsh"]), faster=12)
    report.add("bash read -r s < state", got["read"], ("$(virsh domstate)", got["$(virsh)"]),
               faster=80)
    report.add("bash $(< state)", got["$(<)"], ("$(virsh domstate)", got["$(virsh)"]))
    for what, key in (("cat state", "cat"), ("bash read -r s < state", "read"),
                      ("bash $(< state)", "$(<)")):
        for peer in ("empty", "tmpfs"):
            report.add(what, got[key], (f"the same on {peer}", got[f"{key} {peer}"]))


class Fleet:
    """N VMs everywhere."""

    def __init__(self, bench):
        self.bench, self.n = bench, 0
        self.vmfs, self.tmpfs, self.empty = Daemon(bench), Tmpfs(bench), None
        self.libvirt = attempt(Libvirtd, bench)

    def grow(self, n):
        self.vmfs.fill(self.n, n)
        self.tmpfs.fill(f"fill-{i}" for i in range(self.n, n))
        self.empty = EmptyFuse(self.bench, n)
        failed = attempt(lambda: self.libvirt.fill(self.n, n))
        if isinstance(failed, Missing):
            self.libvirt = failed
        self.n = n

    def subjects(self):
        turns = self.bench.turns
        made = {
            "list": turns("turn", "slurp", self.vmfs.path(".vmfs", "list")),
            "stats": attempt(self.libvirt.turns, "stats", str(self.n)),
            "virsh": attempt(self.libvirt.spawned, "list", "--all"),
            "change": self.vmfs.write("fill-0/state", "running\n", "stopped\n"),
        }
        for name, root in (("", self.vmfs.mnt), (" tmpfs", self.tmpfs.dir),
                           (" empty", self.empty.dir)):
            # The pipe: grep that writes to /dev/null stops at the first match.
            for what, command in (("grep", f"grep -H . {root}/*/state | cat"),
                                  ("cat", f"cat {root}/*/state | cat"),
                                  ("ls", f"ls {root}"), ("ls -l", f"ls -l {root}")):
                made[what + name] = turns("turn", "spawn", "bash", "-c", command)
        return made

    def servers(self):
        missing = isinstance(self.libvirt, Missing)
        return [*self.vmfs.pids(), self.empty.proc.pid,
                *([] if missing else self.libvirt.pids())]


PINNED = ("list", "stats", "virsh", "grep")
TARGETS = {  # of the whole fleet in one read: against one RPC, and against virsh list
    1000: (20, 500),
    10000: (80, 500),
}


def list_rows(report, n, place, got):
    """What a user gets is judged, wherever the scheduler puts it; pinned ends are for reading."""
    judged = place.name == everywhere().name
    rpc, virsh = TARGETS.get(n, (None, None)) if judged else (None, None)
    at = f", {n}, {place.name}"
    report.add(f"one read of .vmfs/list{at}", got["list"], ("C GetAllDomainStats", got["stats"]),
               faster=rpc)
    report.add(f"one read of .vmfs/list{at}", got["list"], ("virsh list --all", got["virsh"]),
               faster=virsh)
    report.add(f"grep -H . */state{at}", got["grep"], ("virsh list --all", got["virsh"]),
               faster=3 if judged else None)
    if not judged:
        return
    for what, name in (("grep", "grep -H . */state"), ("cat", "cat */state"), ("ls", "ls, warm"),
                       ("ls -l", "ls -l, warm")):
        report.add(name + at, got[what], ("the same on tmpfs", got[f"{what} tmpfs"]),
                   within=3 if what == "ls -l" else None)
        report.add(name + at, got[what], ("the same on empty FUSE", got[f"{what} empty"]))


def slope(small, big):
    """Cost of one more VM between two sizes, (n, results) each."""
    (n, a), (m, b) = small, big
    return Series([(b["grep"].median - a["grep"].median) / (m - n)])


def list_all(bench, report):
    """All VMs' states, as their number grows."""
    fleet, runs = Fleet(bench), {}
    for n in bench.pick((10, 100, 1000, 10000), (10, 100, 1000)):
        fleet.grow(n)
        subjects = fleet.subjects()
        for place in (*placements(), everywhere()):
            place.apply(helpers(subjects), fleet.servers())
            judged = place.name == everywhere().name
            asked = subjects if judged else {k: subjects[k] for k in PINNED}
            runs[n] = got = interleave(asked, bench.pick(9 if judged else 5, 4))
            list_rows(report, n, place, got)
        if n > 10:
            report.add(f"start or stop of one sim VM among {n}", got["change"],
                       ("among 10", runs[10]["change"]), within=1.5)
        for subject in subjects.values():
            if not isinstance(subject, Missing):
                subject.close()
    last = max(runs)
    report.add(f"grep -H . */state: one more VM, 100 to {last}",
               slope((100, runs[100]), (last, runs[last])),
               ("10 to 100", slope((10, runs[10]), (100, runs[100]))), within=1.5)
