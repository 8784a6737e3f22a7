# SPDX-License-Identifier: Apache-2.0
"""The domains of a libvirt that has many: found, watched and read through the mount."""
import time

from daemon import Daemon
from measure import Missing, Series, Watch, attempt, everywhere, helpers, interleave, traced
from peers import Libvirtd

N = 1000
SENDS = "write,sendto,sendmsg,sendmmsg"  # what libvirt's calls are sent with; not FUSE's answers


def option(libvirt):
    return f"-ohost=local={libvirt.uri}"


def listed(daemon):
    """What .vmfs/list says, which must be all and of a known state."""
    lines = (daemon.mnt / ".vmfs/list").read_text().splitlines()
    if len(lines) != N + 1 or any(line.split()[1] == "unknown" for line in lines):
        raise Missing(f"{len(lines)} of {N + 1} domains are listed")


def mounted(bench, libvirt):
    """Seconds from the start of a daemon that has never been started to the list of all; and of
    one that knows them."""
    begin = time.monotonic()
    daemon = Daemon(bench, option(libvirt))
    listed(daemon)
    first = time.monotonic() - begin
    daemon.stop()
    begin = time.monotonic()
    daemon.start(option(libvirt))
    listed(daemon)
    again = time.monotonic() - begin
    daemon.stop()
    return first, again


def startup(bench, report, libvirt):
    virsh = libvirt.spawned("list", "--all")
    first, again, listing = Series(), Series(), Series()
    for _ in range(bench.pick(9, 4)):
        times = mounted(bench, libvirt)
        first.append(times[0])
        again.append(times[1])
        listing.append(virsh.seconds())
    for what, got in (("found for the first time", first), ("started again", again)):
        report.add(f"{N} domains {what}, mounted and listed", got, ("virsh list --all", listing),
                   within=3)


def told(bench, report, daemon, libvirt):
    """Paused by another client: to an inotify watcher, and to a callback of libvirt's."""
    state = daemon.mnt / "web" / "state"
    suspend, resume = libvirt.turns("suspend", "web"), libvirt.turns("resume", "web")
    inotify = bench.turns("watch", "inotify", state, cls=Watch)
    callback = libvirt.events()
    got = {"inotify": Series(), "callback": Series()}
    everywhere().apply(helpers({"i": inotify, "c": callback}), [*daemon.pids(), *libvirt.pids()])
    for _ in range(bench.pick(60, 20)):
        for turns in (suspend, resume):
            begin = turns.run()[0]
            got["callback"].append(callback.after(begin))
            got["inotify"].append(inotify.after(begin))
            time.sleep(0.02)  # until all that it set off is over
    report.add(f"paused by another client of libvirt, among {N}, to inotify", got["inotify"],
               ("libvirt's C callback", got["callback"]), within=1.5)


def read(bench, report, daemon, libvirt):
    turns = bench.turns
    subjects = {
        "cat": turns("turn", "spawn", "cat", daemon.path(".vmfs", "list")),
        "grep": turns("turn", "spawn", "bash", "-c", f"grep -H . {daemon.mnt}/*/state | cat"),
        "virsh": libvirt.spawned("list", "--all"),
        "stats": libvirt.turns("stats", str(N + 1)),
        "list": turns("turn", "slurp", daemon.path(".vmfs", "list")),
    }
    sent = attempt(traced, bench, daemon.pids(), SENDS, subjects["cat"])
    got = interleave(subjects, bench.pick(20, 8))
    report.add(f"cat .vmfs/list, {N} domains", got["cat"], ("virsh list --all", got["virsh"]),
               faster=20, note=f"sent to libvirt by one: {sent}")
    report.add(f"one read of .vmfs/list, {N} domains", got["list"],
               ("C GetAllDomainStats", got["stats"]))
    report.add(f"grep -H . */state, {N} domains", got["grep"], ("virsh list --all", got["virsh"]))


def domains(bench, report):
    """What those have of vmfs who have libvirt already."""
    libvirt = attempt(Libvirtd, bench)
    if isinstance(libvirt, Missing):
        report.add(f"{N} domains, mounted and listed", libvirt, ("virsh list --all", libvirt))
        return
    libvirt.call("define", libvirt.xml("web"))
    libvirt.call("start", "web")
    libvirt.fill(0, N)
    startup(bench, report, libvirt)
    daemon = Daemon(bench, option(libvirt))
    listed(daemon)
    told(bench, report, daemon, libvirt)
    read(bench, report, daemon, libvirt)
