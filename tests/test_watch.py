# SPDX-License-Identifier: Apache-2.0
"""File watching: inotify and poll see every change that nobody made through the mount."""
import ctypes
import os
import select
import signal
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.util import PATIENCE, get, until

IN_MODIFY, IN_CREATE, IN_DELETE, IN_ISDIR = 0x2, 0x100, 0x200, 0x40000000
IN_MOVED_FROM, IN_MOVED_TO = 0x40, 0x80
libc = ctypes.CDLL(None, use_errno=True)


class Watcher:
    """An inotify descriptor: an event is (mask, path watched, name)."""

    def __init__(self, *paths, mask=IN_MODIFY):
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        self.paths = {}
        for path in paths:
            wd = libc.inotify_add_watch(self.fd, os.fsencode(path), mask)
            assert wd >= 0, os.strerror(ctypes.get_errno())
            self.paths[wd] = str(path)
        self.seen = []

    def more(self, timeout=PATIENCE):
        """Wait for events and add them to `seen`; false when none came."""
        if not select.select([self.fd], [], [], timeout)[0]:
            return False
        data = os.read(self.fd, 1 << 16)
        at = 0
        while at < len(data):
            wd, mask, _, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16:at + 16 + length].rstrip(b"\0").decode()
            self.seen.append((mask, self.paths.get(wd), name))
            at += 16 + length
        return True

    def expect(self, cond, what):
        while not any(cond(*event) for event in self.seen):
            assert self.more(), f"no {what} among {self.seen}"

    def close(self):
        os.close(self.fd)


@pytest.fixture
def watch():
    watchers = []

    def make(*paths, **kw):
        watchers.append(Watcher(*paths, **kw))
        return watchers[-1]
    yield make
    for w in watchers:
        w.close()


@pytest.mark.parametrize("order, file, text", [
    ("poweroff", "state", "stopped\n"),
    ("die", "state", "crashed\n"),
    ("die", "status", None),
    ("ip 192.0.2.9", "ip", "192.0.2.9\n"),
])
def test_modify(fs, watch, order, file, text):
    """On the file and, with the name, on its directory; the new value can be read by then."""
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    w = watch(vm / file, vm.dir)
    vm.sim(order)
    w.expect(lambda mask, path, name: mask & IN_MODIFY and path == str(vm / file), "event")
    w.expect(lambda mask, path, name: mask & IN_MODIFY and path == str(vm.dir) and name == file,
             "event of the directory")
    if text:
        assert vm.read(file) == text


def test_end_of_a_command_is_watched(fs, watch):
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    with vm.job("cat") as job:
        w = watch(job / "status", job.dir)
        with open(job / "stdin", "wb"):
            pass
        for path, name in ((job / "status", ""), (job.dir, "status")):
            w.expect(lambda mask, p, n: mask & IN_MODIFY and (p, n) == (str(path), name), path)
        until(lambda: job.status == "exit 0", "its end")


def test_error_is_watched(fs, watch):
    vm = fs.vm("web1", "backend: sim\n")
    w = watch(vm / "error")
    vm.sim("fail start ENOSPC")
    with pytest.raises(OSError):
        vm.do("start")
    w.expect(lambda *_: True, "event")
    assert "ENOSPC" in vm.read("error")


def test_size_of_the_list(fs):
    """Told without the text being made: it must be what a reader then gets."""
    vms = [fs.vm(f"web{i}", "backend: sim\n") for i in range(3)]
    path = fs.mnt / ".vmfs/list"
    assert path.stat().st_size == len(get(path))
    for verb in "start", "pause", "kill":
        for vm in vms[:2]:
            vm.do(verb)
        size = path.stat().st_size
        assert size == len(get(path))
    vms[0].dir.rmdir()
    size = path.stat().st_size
    assert size == len(get(path))


def test_list_is_watched(fs, watch):
    vm = fs.vm("web1", "backend: sim\n")
    w = watch(fs.mnt / ".vmfs/list")
    vm.do("start")
    w.expect(lambda *_: True, "event")
    until(lambda: "web1 running" in fs.host("list"), "the new line")


def test_names_are_watched(fs, watch):
    w = watch(fs.mnt, mask=IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO)
    os.mkdir(fs.mnt / "new")
    os.rename(fs.mnt / "new", fs.mnt / "newer")
    os.rmdir(fs.mnt / "newer")
    for bit, name in ((IN_CREATE, "new"), (IN_MOVED_FROM, "new"), (IN_MOVED_TO, "newer"),
                      (IN_DELETE, "newer")):
        w.expect(lambda mask, _, n: mask & bit and mask & IN_ISDIR and n == name, name)


@pytest.mark.parametrize("save", ["cp NEW web1/spec.yaml",
                                  "cp NEW web1/.new && mv web1/.new web1/spec.yaml"])
def test_links_of_a_document_are_watched(fs, watch, scratch, save):
    """Links come and go with spec.yaml: told once, and right when the writer is answered."""
    files = {name: scratch / name for name in "abc"}
    for file in files.values():
        file.write_bytes(bytes(1 << 20))

    def write(**disks):
        new = scratch / "new.yaml"
        new.write_text("memory: 128M\ndisks: {%s}\n" % ", ".join(
            f"{name}: {{file: {file}}}" for name, file in disks.items()))
        fs.sh(save.replace("NEW", str(new)))
        assert {p.name: os.readlink(p) for p in disks_dir.iterdir()} == {
            name: str(file) for name, file in disks.items()}
    os.mkdir(fs.mnt / "web1")
    disks_dir = fs.mnt / "web1/disks"
    w = watch(disks_dir, mask=IN_CREATE | IN_DELETE)
    write(a=files["a"], b=files["b"])
    write(b=files["c"], c=files["a"])
    write()
    os.symlink(files["a"], disks_dir / "end")
    w.expect(lambda mask, _, name: name == "end", "the last")
    seen = [(mask, name) for mask, _, name in w.seen]
    assert sorted(seen[:2]) == [(IN_CREATE, "a"), (IN_CREATE, "b")]
    second = seen[2:6]
    assert sorted(second) == sorted([(IN_DELETE, "a"), (IN_DELETE, "b"), (IN_CREATE, "b"), (IN_CREATE, "c")])
    assert second.index((IN_DELETE, "b")) < second.index((IN_CREATE, "b"))
    assert sorted(seen[6:8]) == [(IN_DELETE, "b"), (IN_DELETE, "c")]
    assert seen[8:] == [(IN_CREATE, "end")]


def test_tool(fs):
    """As a user does it."""
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    done = fs.sh("""
        exec 3< <(inotifywait -e modify --format %w%f -t 30 web1/state 2>&1)
        until read -r line <&3 && [ "$line" = "Watches established." ]; do :; done
        echo poweroff > web1/sim
        while read -r line <&3; do echo "$line"; done
        cat web1/state""")
    assert done.stdout.splitlines()[-2:] == ["web1/state", "stopped"]


@pytest.mark.parametrize("file, order", [("state", "poweroff"), ("ip", "ip 192.0.2.3"),
                                         ("status", "die"), ("error", None), ("pending", None)])
def test_poll_priority(fs, file, order):
    """POLLPRI|POLLERR as in sysfs: on change, until the new value is read; edges for epoll."""
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    fd = os.open(vm / file, os.O_RDONLY)
    poll, epoll = select.poll(), select.epoll()
    poll.register(fd, select.POLLPRI)
    epoll.register(fd, select.EPOLLPRI | select.EPOLLET)
    old = os.pread(fd, 4096, 0)
    assert poll.poll(0) == [] and epoll.poll(0) == []
    sleeper = threading.Thread(target=lambda: got.append(poll.poll(PATIENCE * 1000)))
    got = []
    sleeper.start()
    if order:
        vm.sim(order)
    elif file == "error":
        with pytest.raises(OSError):
            vm.do("start")
    else:
        vm.write("spec.yaml", "backend: sim\ncpus: 3\n")
    sleeper.join(PATIENCE)
    assert got and got[0][0][1] & select.POLLPRI and got[0][0][1] & select.POLLERR
    assert epoll.poll(PATIENCE), "no edge"
    assert os.pread(fd, 4096, 0) != old
    assert poll.poll(0) == []
    epoll.close()
    os.close(fd)


def test_poll_of_the_list(fs):
    vm = fs.vm("web1", "backend: sim\n")
    fd = os.open(fs.mnt / ".vmfs/list", os.O_RDONLY)
    os.pread(fd, 4096, 0)
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    assert poll.poll(0) == []
    vm.do("start")
    assert poll.poll(PATIENCE * 1000)
    assert b"web1 running" in os.pread(fd, 4096, 0)
    os.close(fd)


CHANGES = 3000  # of each VM


class Count:
    """A VM's count, kept in its addresses: whoever reads gets at least what anybody was told."""

    def __init__(self, vm):
        self.vm, self.told, self.lock = vm, 0, threading.Lock()
        self.sim = os.open(vm / "sim", os.O_WRONLY)
        self.set(1)

    def set(self, n):
        extra = " ".join(f"2001:db8::{i}:1" for i in range(n % 3))
        os.write(self.sim, f"ip 2001:db8::{n:x} {extra}".strip().encode())
        self.tell(n)

    def tell(self, n):
        with self.lock:
            self.told = max(self.told, n)

    def open(self):
        return os.open(self.vm / "ip", os.O_RDONLY)

    def read(self, fd):
        floor = self.told
        text = os.pread(fd, 4096, 0).decode()
        lines = text.splitlines()
        n = count_in(lines[0])
        assert len(lines) == 1 + n % 3 and text.endswith("\n"), f"torn: {text!r}"
        assert n >= floor, f"read {n} after {floor} was told"
        self.tell(n)
        return n


def count_in(address):
    return int(address.rsplit(":", 1)[1], 16)


def by_writing(count):
    """The write has been answered, so the change has been announced."""
    fd = count.open()
    for n in range(2, CHANGES + 1):
        count.set(n)
        assert count.read(fd) == n
    os.close(fd)
    os.close(count.sim)


def by_reading(count, fresh):
    fd = count.open()
    while count.read(fd) < CHANGES:
        if fresh:
            os.close(fd)
            fd = count.open()
    os.close(fd)


def by_listing(fs, counts):
    fd = os.open(fs.mnt / ".vmfs/list", os.O_RDONLY)
    lowest = 0
    while lowest < CHANGES:
        floors = [count.told for count in counts]
        rows = [line.split() for line in os.pread(fd, 4096, 0).decode().splitlines()]
        values = [count_in(row[-1]) for row in rows]
        assert [row[0] for row in rows] == [count.vm.name for count in counts]
        assert all(map(int.__ge__, values, floors)), f"listed {values} after {floors} was told"
        lowest = min(values)
    os.close(fd)


def by_polling(count, edge):
    """Each time something new, until the last."""
    fd = count.open()
    poll = select.epoll() if edge else select.poll()
    poll.register(fd, select.EPOLLPRI | select.EPOLLET if edge else select.POLLPRI)
    n = count.read(fd)
    while n < CHANGES:
        assert poll.poll(PATIENCE if edge else PATIENCE * 1000), f"no wake-up after {n}"
        now = count.read(fd)
        assert now > n, f"woken for nothing at {n}"
        n = now
    os.close(fd)
    if edge:
        poll.close()


def by_watching(counts, watcher):
    fds = [count.open() for count in counts]
    values = [0] * len(counts)
    of = {str(path): i for i, count in enumerate(counts) for path in (count.vm / "ip", count.vm.dir)}
    while min(values) < CHANGES:
        assert watcher.more(), f"no event after {values}"
        for _, path, name in watcher.seen:
            if name in ("", "ip"):
                values[of[path]] = counts[of[path]].read(fds[of[path]])
        watcher.seen.clear()
    for fd in fds:
        os.close(fd)


def by_events(path, counts):
    stream = os.open(path, os.O_RDONLY)
    fds = {count.vm.name: (count, count.open()) for count in counts}
    values, text = dict.fromkeys(fds, 0), b""
    while min(values.values()) < CHANGES:
        assert select.select([stream], [], [], PATIENCE)[0], f"no event after {values}"
        *lines, text = (text + os.read(stream, 1 << 16)).split(b"\n")
        for _, name, key, value, *_ in (line.decode().split(" ") for line in lines):
            if key == "ip" and value != "-":
                count, fd = fds[name]
                assert count_in(value) >= values[name], f"{value} came after {values[name]}"
                values[name] = count_in(value)
                count.tell(values[name])
                count.read(fd)
    for _, fd in fds.values():
        os.close(fd)
    os.close(stream)


def test_no_value_is_old_torn_or_lost(fs, watch):
    """Readers, pollers, watchers and followers of the same VMs at once, thousands of changes: each
    value is whole, nobody reads what was before anything that anybody was told, by whichever way,
    and all are told of the last one."""
    vms = [fs.vm(f"web{n}", "backend: sim\n") for n in range(3)]
    for vm in vms:
        vm.do("start")
    counts = [Count(vm) for vm in vms]
    files, dirs = watch(*(vm / "ip" for vm in vms)), watch(*(vm.dir for vm in vms))
    with ThreadPoolExecutor(64) as pool:
        jobs = [pool.submit(by_watching, counts, w) for w in (files, dirs)]
        jobs += [pool.submit(by_events, fs.mnt / ".vmfs/events", counts),
                 pool.submit(by_listing, fs, counts)]
        for count in counts:
            jobs += [pool.submit(by_polling, count, edge) for edge in (False, True)]
            jobs += [pool.submit(by_reading, count, fresh) for fresh in (False, True)]
            jobs.append(pool.submit(by_events, count.vm / "events", [count]))
        jobs += [pool.submit(by_writing, count) for count in counts]
    for job in jobs:
        job.result()


def test_nothing_old_follows_the_present(fs):
    """What happens between open and the first read is told before the values that hold then."""
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    fd = os.open(fs.mnt / ".vmfs/events", os.O_RDONLY)
    for n in range(1, 4):
        vm.sim(f"ip 192.0.2.{n}")
    text = os.read(fd, 1 << 16)
    vm.sim("ip 192.0.2.9")
    while not text.endswith(b" web1 ip 192.0.2.9\n"):
        text += os.read(fd, 1 << 16)
    os.close(fd)
    values = [line.split()[3] for line in text.decode().splitlines() if " web1 ip " in line]
    assert values == sorted(values)


def test_size_is_never_old(fs):
    """The kernel may remember attributes, but is told of each change before anybody else."""
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    for n in range(500):
        vm.sim("ip " + " ".join(f"192.0.2.{i}" for i in range(1, 2 + n % 9)))
        size = os.stat(vm / "ip").st_size
        assert size == len(vm.read("ip"))
        assert os.stat(vm / "ip").st_size == size
    vm.sim("poweroff")
    assert os.stat(vm / "state").st_size == len("stopped\n")
    assert os.stat(vm / "ip").st_size == 0 and os.stat(vm / "pid").st_size == 0


def test_helper_is_replaced(fs, watch):
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    task = f"/proc/{fs.pid}/task/{fs.pid}/children"
    w = watch(vm / "ip")

    def helpers():
        return [pid for pid in Path(task).read_text().split()
                if b"--notify-helper" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    old, = helpers()
    os.kill(int(old), signal.SIGKILL)
    until(lambda: helpers() not in ([], [old]), "another helper")
    vm.sim("ip 192.0.2.77")
    w.expect(lambda *_: True, "event")


def test_thousand_watchers(fs, watch):
    vms = [fs.vm(f"w{n}", "backend: sim\n") for n in range(50)]
    for vm in vms:
        vm.do("start")
    watchers = [watch(*(vm / "state" for vm in vms)) for _ in range(20)]
    for vm in vms:
        vm.sim("poweroff")
    for w in watchers:
        for vm in vms:
            w.expect(lambda mask, path, _: path == str(vm / "state"), f"event of {vm.name}")


def test_nudge_of_a_file_under_command_holds_up_nobody(fs, watch):
    """A write to `state` locks its inode for as long as it is answered; others are told meanwhile."""
    slow, other = fs.vm("slow", "backend: sim\n"), fs.vm("other", "backend: sim\n")
    other.do("start")
    slow.sim("slow start 900")
    w = watch(slow / "state", other / "state")
    t = threading.Thread(target=slow.do, args=("start",))
    t.start()
    until(lambda: slow.state == "starting", "the start")
    other.sim("poweroff")
    w.expect(lambda mask, path, _: path == str(other / "state"), "event of the other")
    assert slow.state == "starting", "the other's event waited for the slow command"
    t.join(PATIENCE)
    assert slow.state == "running"
