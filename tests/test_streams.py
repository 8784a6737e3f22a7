# SPDX-License-Identifier: Apache-2.0
"""Streams: console, events and wait/ with many readers, Ctrl-C, O_NONBLOCK and poll."""
import os
import re
import select
import signal
from contextlib import suppress
from errno import EAGAIN, ESPIPE

import pytest

from lib.util import PATIENCE, TIME, deadline, fails, get, until, wait_blocked

READERS = 200
WAITS = {  # what to read: how it comes true for a stopped VM
    "running": lambda vm: vm.do("start"),
    "paused": lambda vm: vm.to("paused"),
    "crashed": lambda vm: vm.to("crashed"),
    "ip": lambda vm: vm.to("running").sim("ip 192.0.2.9"),
    "agent": lambda vm: (vm.to("running").sim("agent down"), vm.sim("agent up")),
}


def drain(fd):
    """All that can be read without waiting."""
    data = b""
    with suppress(BlockingIOError):
        while chunk := os.read(fd, 65536):
            data += chunk
    return data


@pytest.fixture
def nonblocking():
    """open(path) for reading without waiting; closed at the end."""
    fds = []

    def open_it(path, flags=os.O_RDONLY):
        fds.append(os.open(path, flags | os.O_NONBLOCK))
        return fds[-1]
    yield open_it
    for fd in fds:
        os.close(fd)


# The console

def test_console_has_many_readers(vm):
    vm.to("running").sim("print before")
    readers = [vm.follow("console") for _ in range(5)]
    for reader in readers:
        reader.expect("before")  # the recent past
    vm.sim("print after")
    for reader in readers:
        reader.expect("after")
        assert reader.text.count("before") == reader.text.count("after") == 1


def test_console_is_typed_at(vm):
    reader = vm.to("running").follow("console")
    vm.fs.sh("echo 'hello guest' > web1/console")
    reader.expect("hello guest")


def test_console_both_ways_on_one_descriptor(vm):
    """A reader that sleeps does not keep a writer of the same open file out."""
    vm.to("running")
    vm.fs.sh("exec 3<> web1/console; timeout 30 grep -q -m1 over-and-out <&3 & "
             "echo over-and-out >&3; wait $!")


def test_console_of_much_text(vm):
    """Bounded memory: a reader who comes late gets the end of it, and console.log has it all."""
    vm.to("running")
    for n in range(300):
        vm.sim(f"print {n:06} " + "x" * 900)
    vm.sim("print the end")
    reader = vm.follow("console")
    reader.expect("the end")
    assert len(reader.text) < 200_000
    lines = [line for line in vm.read("console.log").splitlines() if line.endswith("xxx")]
    assert [int(line[:6]) for line in lines] == list(range(300))


def test_console_log_can_be_followed(vm):
    vm.to("running").sim("print first")
    tail = vm.fs.spawn("tail", "-n", "+1", "-f", vm / "console.log")
    tail.expect("first")
    vm.sim("print second")
    tail.expect("second")
    assert (vm / "console.log").stat().st_size == len(get(vm / "console.log"))


def test_console_log_stays_over_starts(vm):
    vm.to("running").sim("print life one")
    vm.do("stop")
    vm.do("start")
    vm.sim("print life two")
    until(lambda: re.search(r"life one(.|\n)*life two", vm.read("console.log")), "both in the log")


def test_no_seeking_in_streams(vm, nonblocking):
    with fails(ESPIPE):
        os.lseek(nonblocking(vm / "console"), 0, os.SEEK_SET)


# Events

def test_events_begin_with_the_present(vm):
    vm.to("running").sim("ip 192.0.2.9")
    events = vm.follow("events")
    events.expect(rf"^{TIME} web1 state running$")
    events = vm.follow("events")
    events.expect(rf"^{TIME} web1 ip 192\.0\.2\.9$")


def test_events_without_a_race(vm):
    grep = vm.fs.spawn("grep", "-m1", "state running", vm / "events")
    vm.do("start")
    assert grep.finish() == 0
    assert vm.fs.spawn("grep", "-m1", "state running", vm / "events").finish() == 0


def test_events_of_all_vms(fs):
    a, b = fs.vm("a", "backend: sim\n"), fs.vm("b", "backend: sim\n")
    events = fs.spawn("cat", fs.mnt / ".vmfs/events")
    events.expect(" [ab] state stopped$")
    events.expect(" [ab] state stopped$")
    b.do("start")
    events.expect(" b state running$")
    a.do("start")
    events.expect(" a state running$")
    fs.vm("c")
    events.expect(" c ")


def test_events_are_whole_lines_in_order(vm):
    follower = vm.events()
    for _ in range(200):
        vm.do("start")
        follower.expect(" state running$")
        vm.do("kill")
        follower.expect(" state stopped$")
    assert all(re.match(rf"{TIME} web1 \S+ \S", line) for line in follower.text.splitlines())


# wait/

@pytest.mark.parametrize("what", WAITS)
def test_wait(vm, what):
    reader = vm.fs.spawn("cat", vm / "wait" / what)
    wait_blocked(reader.proc.pid)
    WAITS[what](vm)
    assert reader.finish() == 0
    assert reader.text.endswith("\n")
    assert vm.wait(what) == reader.text.strip()  # at once when it is so already


def test_wait_stopped(vm):
    vm.wait("stopped")
    vm.do("start")
    reader = vm.fs.spawn("cat", vm / "wait/stopped")
    wait_blocked(reader.proc.pid)
    vm.do("stop")
    assert reader.finish() == 0


def test_wait_gives_the_address(sim):
    vm = sim.vm()
    vm.do("start")
    assert vm.fs.sh("ip=$(timeout 60 cat web1/wait/ip) && echo $ip").stdout == "192.0.2.7\n"


def test_wait_in_a_script_with_time_limit(vm):
    assert vm.fs.sh("timeout 0.2 cat web1/wait/running", check=False).returncode == 124
    vm.do("start")


def test_waiting_ends_with_the_vm(vm):
    readers = [vm.fs.spawn("cat", vm / name) for name in ("wait/running", "console")]
    for reader in readers:
        wait_blocked(reader.proc.pid)
    vm.dir.rmdir()
    for reader in readers:
        reader.finish()


# Ctrl-C

@pytest.mark.parametrize("name", ["console", "events", "wait/ip", "wait/paused"])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_a_blocked_reader(vm, name, sig):
    vm.to("running")
    reader, other = vm.follow(name), vm.follow(name)
    wait_blocked(reader.proc.pid)
    wait_blocked(other.proc.pid)
    reader.proc.send_signal(sig)
    assert reader.finish(5) == -sig
    # It harmed nobody.
    vm.sim("print still here")
    vm.sim("ip 192.0.2.9")
    vm.do("pause")
    if name in ("console", "events"):
        other.expect({"console": "still here", "events": "state paused"}[name])
    else:
        assert other.finish() == 0


def test_stopped_and_continued_reader(vm):
    """Ctrl-Z and fg."""
    reader = vm.to("running").follow("console")
    wait_blocked(reader.proc.pid)
    reader.proc.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, reader.proc.pid, os.WSTOPPED | os.WNOWAIT)
    vm.sim("print meanwhile")
    reader.proc.send_signal(signal.SIGCONT)
    reader.expect("meanwhile")


# O_NONBLOCK, poll, select

@pytest.mark.parametrize("name", ["console", "events", "wait/ip"])
def test_nonblocking(vm, nonblocking, name):
    fd = nonblocking(vm.to("running") / name)
    with deadline():
        drain(fd)
        with fails(EAGAIN):
            os.read(fd, 100)
    vm.sim("print hello")
    vm.sim("ip 192.0.2.9")
    until(lambda: drain(fd), "something to read")


@pytest.mark.parametrize("name", ["console", "events", "wait/ip"])
@pytest.mark.parametrize("how", ["poll", "select", "epoll"])
def test_poll(vm, nonblocking, name, how):
    fd = nonblocking(vm.to("running") / name)
    drain(fd)

    def ready(seconds):
        if how == "select":
            return bool(select.select([fd], [], [], seconds)[0])
        if how == "poll":
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        with select.epoll() as poll:
            poll.register(fd, select.EPOLLIN | select.EPOLLET)
            return bool(poll.poll(seconds))

    assert not ready(0)
    vm.sim("print hello")
    vm.sim("ip 192.0.2.9")
    assert ready(PATIENCE)
    assert drain(fd)


def test_poll_wakes_a_sleeper(vm):
    script = """if 1:
        import os, select, sys
        fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        print("ready", poll.poll(0), flush=True)
        print("woken", bool(poll.poll(30000)), os.read(fd, 100).decode(), flush=True)
    """
    sleeper = vm.fs.spawn("/usr/bin/python3", "-c", script, vm / "wait/running")
    sleeper.expect(r"ready \[\]")
    vm.do("start")
    sleeper.expect("woken True")
    assert sleeper.finish() == 0


# Nobody blocks anyone else

def test_blocked_readers_cost_others_nothing(fs, vm):
    other = fs.vm("web2", "backend: sim\n")
    vm.to("running").sim("print present")
    readers = [vm.follow("console") for _ in range(READERS)]
    for reader in readers:
        reader.expect("present")
        wait_blocked(reader.proc.pid)
    done = fs.sh("for i in {1..300}; do cat web2/state; done; echo start > web2/state; ls -l web1")
    assert done.stdout.count("stopped\n") == 300
    assert other.state == "running" and vm.state == "running"
    vm.sim("print news")
    for reader in readers:
        reader.expect("news")
    for reader in readers[::2]:
        assert reader.interrupt() == -signal.SIGINT
    vm.sim("print more")
    for reader in readers[1::2]:
        reader.expect("more")


def test_unmount_with_blocked_readers(fs, vm):
    readers = [vm.follow(name) for name in ("console", "events", "wait/ip")]
    wait_blocked(readers[0].proc.pid)
    wait_blocked(readers[2].proc.pid)
    fs.stop()
    for reader in readers:
        reader.finish()


def test_a_reader_that_does_not_read(vm, nonblocking):
    """It loses the oldest text; nobody waits for it."""
    fd = nonblocking(vm.to("running") / "console")
    for n in range(300):
        vm.sim(f"print {n:06} " + "x" * 900)
    vm.sim("print the end")
    other = vm.follow("console")
    other.expect("the end")
    assert drain(fd).rstrip().endswith(b"the end")


def test_wait_tells_its_answer_in_pieces(vm):
    """A shell's `read` asks for a byte at a time."""
    assert vm.fs.sh("read -r word < web1/wait/stopped; echo $word").stdout == "stopped\n"
    fd = os.open(vm / "wait/stopped", os.O_RDONLY)
    with deadline():
        assert [os.read(fd, 3) for _ in range(4)] == [b"sto", b"ppe", b"d\n", b""]
    os.close(fd)
