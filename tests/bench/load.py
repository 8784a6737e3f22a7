# SPDX-License-Identifier: Apache-2.0
"""What it costs to be there: memory, start-up, and waking up."""
import re
import time
from pathlib import Path

from daemon import Daemon
from measure import Missing, Series, Watch, attempt
from peers import Libvirtd, until

IDLE = 10  # seconds
KIB_BASE, KIB_A_VM, TARGET_VMS = 12 * 1024, 3, 10000


def memory_of(pids):
    """RSS and PSS in KiB, of all of them."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return tuple(sum(int(re.search(rf"^{key}: +(\d+)", text, re.M)[1]) for text in texts)
                 for key in ("Rss", "Pss"))


def libvirt_memory(libvirt, first, last):
    """After all domains have been listed once: RSS, and PSS of all processes."""
    libvirt.fill(first, last)
    libvirt.call("list", "--all")
    return memory_of(libvirt.pids())


def vmfs_memory(vmfs, first, last):
    """After all VMs have been read once: RSS of the daemon, and PSS of all processes."""
    vmfs.fill(first, last)
    vmfs.sh("shopt -s nullglob; ls -l . >/dev/null; cat .vmfs/list */state >/dev/null")
    return memory_of([vmfs.pid])[0], memory_of(vmfs.pids())[1]


def one(value):
    return value if isinstance(value, Missing) else Series([value])


def memory_rows(report, n, ours, theirs, base):
    for i, kind in enumerate(("RSS of the daemon", "PSS of all processes")):
        other = theirs if isinstance(theirs, Missing) else theirs[i]
        # Four fifths of what it has without a VM is the text of libraries, libvirt's above all.
        limit = KIB_BASE + KIB_A_VM * n if i == 0 and n == TARGET_VMS else None
        report.add(f"{kind}, {n} stopped VMs", one(ours[i]), ("libvirtd", one(other)),
                   limit=limit, unit="KiB")
    if n:
        missing = isinstance(theirs, Missing)
        other = theirs if missing else (theirs[0] - base[1][0]) / n
        report.add(f"RSS a VM, of {n}", one((ours[0] - base[0][0]) / n),
                   ("libvirtd", one(other)), unit="KiB")


def startup(daemon, rounds):
    """From exec to the first answer, with all that is stored."""
    took = Series()
    for _ in range(rounds):
        daemon.stop()
        begin = time.monotonic()
        daemon.start()
        took.append(time.monotonic() - begin)
    return took


def takeover(vmfs, rounds):
    """From kill -9 of the daemon to the first answer of the one that takes over."""
    took = Series()
    for _ in range(rounds):
        vmfs.host("version")
        begin = time.monotonic()
        vmfs.crash()
        vmfs.host("version")
        took.append(time.monotonic() - begin)
    return took


def memory(bench, report):
    """The daemon's memory as VMs are added, and how fast it comes up with them."""
    vmfs, libvirt = Daemon(bench), attempt(Libvirtd, bench)
    have, base = 0, None
    for n in bench.pick((0, 1000, 10000), (0, 1000)):
        ours = vmfs_memory(vmfs, have, n)
        theirs = attempt(lambda: libvirt_memory(libvirt, have, n))
        base = base or (ours, theirs)
        memory_rows(report, n, ours, theirs, base)
        have = n
    took = startup(vmfs, bench.pick(5, 3))
    report.add(f"RSS of a new daemon, {have} stored VMs", one(memory_of([vmfs.pid])[0]), unit="KiB")
    report.add("of it the keeper's PSS", one(memory_of([vmfs.proc.pid])[1]), unit="KiB")
    report.add(f"kill -9 to the successor's answer, {have} VMs", takeover(vmfs, bench.pick(5, 3)))
    report.add(f"start-up with {have} stored VMs", took,
               ("libvirtd", attempt(startup, libvirt, bench.pick(3, 2))))


def switches(pids):
    """{thread: context switches, voluntary or not}"""
    found = {}
    for task in (t for pid in pids for t in Path(f"/proc/{pid}/task").iterdir()):
        text = (task / "status").read_text()
        found[task.name] = sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", text)))
    return found


def wakeups(pids):
    """Context switches of all their threads in IDLE seconds; new threads count whole."""
    before = switches(pids)
    time.sleep(IDLE)
    return sum(n - before.get(task, 0) for task, n in switches(pids).items())


def boot(bench, vmfs, names):
    for name in names:
        path = vmfs.make(name, bench.spec())
        (path / "state").write_text("start\n")
    for name in names:
        log = vmfs.path(name, "console.log")
        until(lambda p=log: "GUEST-UP" in p.read_text(errors="replace"), "GUEST-UP", 120)


def boot_domains(libvirt, names):
    for name in names:
        libvirt.call("define", libvirt.guest_xml(name))
        libvirt.call("start", name)
        console = Watch(libvirt.bench.helper("watch"), "socket", libvirt.console(name),
                        "GUEST-UP")
        try:
            console.after(0, timeout=120)
        finally:
            console.close()


def idle(bench, report):
    """Nobody asks and nothing changes: how often does it wake up?"""
    stopped, running = bench.pick(1000, 100), bench.pick(5, 2)
    names = [f"run-{i}" for i in range(running)]
    rows = Series(), Series()
    vmfs = Daemon(bench)
    vmfs.fill(0, stopped, None)
    boot(bench, vmfs, names)
    time.sleep(bench.pick(20, 10))  # what the guests' agents tell comes later than GUEST-UP
    for _ in range(bench.pick(3, 1)):
        rows[0].append(wakeups(vmfs.pids()))
    for name in names:
        vmfs.path(name, "state").write_text("kill\n")
    peer = attempt(idle_libvirt, bench, stopped, names, rows[1])
    report.add(f"wake-ups in {IDLE} s, {stopped} stopped, {running} running", rows[0],
               ("libvirtd", peer), limit=0, unit="")


def idle_libvirt(bench, stopped, names, counts):
    libvirt = Libvirtd(bench)
    libvirt.fill(0, stopped)
    boot_domains(libvirt, names)
    time.sleep(bench.pick(20, 10))
    for _ in range(bench.pick(3, 1)):
        counts.append(wakeups(libvirt.pids()))
    return counts
