# SPDX-License-Identifier: Apache-2.0
"""monitor and keys: talking to the VMM, and typing at the guest's keyboard."""
import os
import select
import signal
from contextlib import contextmanager
from errno import EAGAIN, EBUSY, EFBIG, EHOSTDOWN, EINVAL, EIO, EOPNOTSUPP, ESRCH

import pytest

from lib.util import PATIENCE, deadline, fails, get, until, wait_blocked


@contextmanager
def talk(vm, flags=0):
    fd = os.open(vm / "monitor", os.O_RDWR | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def say(fd, text):
    with deadline():
        while text:
            text = text[os.write(fd, text.encode()):]


def hear(fd):
    """As `cat <&3`: up to the end."""
    data = b""
    with deadline():
        while chunk := os.read(fd, 65536):
            data += chunk
    return data.decode()


@pytest.fixture
def running(vm):
    vm.do("start")
    return vm


# The monitor, on sim

def test_answer_and_its_end(running):
    with talk(running) as fd:
        for _ in range(3):
            say(fd, "info status\n")
            assert hear(fd) == "VM status: running\n"
        say(fd, "silent\n")
        assert hear(fd) == ""
        say(fd, "count 2\ncount 3\n\ninfo ")
        say(fd, "status\n")
        assert hear(fd) == "1\n2\n1\n2\n3\nVM status: running\n"


def test_from_a_shell(running):
    done = running.fs.sh("exec 3<>web1/monitor; echo info status >&3; read line <&3; echo $line;"
                         "echo count 3 >&3; cat <&3")
    assert done.stdout == "VM status: running\n1\n2\n3\n"


def test_nothing_asked(running):
    assert running.fs.sh("cat web1/monitor", timeout=5).stdout == ""


def test_conversations_are_apart(running):
    with talk(running) as one, talk(running) as two:
        say(one, "count 1\n")
        say(two, "count 2\n")
        assert hear(two) == "1\n2\n"
        assert hear(one) == "1\n"
        assert hear(two) == ""


def test_reader_waits(running):
    """For the answer, and can be interrupted; a poller is told."""
    running.sim("slow monitor 300")
    with talk(running, os.O_NONBLOCK) as fd:
        say(fd, "info status\n")
        with fails(EAGAIN):
            os.read(fd, 100)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(PATIENCE * 1000) == [(fd, select.POLLIN)]
        assert os.read(fd, 100) == b"VM status: running\n"
    running.sim("hang monitor")
    reader = running.fs.spawn("bash", "-c", f"exec 3<>{running / 'monitor'}; echo x >&3; cat <&3")
    children = until(lambda: open(f"/proc/{reader.proc.pid}/task/{reader.proc.pid}/children")
                     .read().split(), "cat runs")
    wait_blocked(int(children[0]))
    assert reader.interrupt() != 0


def test_slow_reader(running):
    """What nobody reads is bounded: nothing more is asked, and the writer is told to wait."""
    with talk(running, os.O_NONBLOCK) as fd:
        with fails(EAGAIN):
            for _ in range(200):
                say(fd, "count 100000\n")
        assert running.state == "running"
        line = until(lambda: os.read(fd, 2), "it can be read still")
        assert line == b"1\n"
        say(fd, "")
    with talk(running) as fd:
        say(fd, "info status\n" * 1000)  # more than fits: it is taken as the answers come
        assert hear(fd).endswith("VM status: running\n")


def test_failure_is_told_by_the_read(running):
    running.sim("fail monitor EIO")
    with talk(running) as fd:
        say(fd, "info status\ninfo status\n")
        with fails(EIO):
            hear(fd)
        running.error("EIO")
        assert hear(fd) in ("", "VM status: running\n")
        say(fd, "info status\n")
        assert hear(fd) == "VM status: running\n"


def test_ends_with_the_run(running):
    running.sim("hang monitor")
    with talk(running) as fd:
        say(fd, "info status\n")
        running.do("kill")
        with fails(EIO):
            hear(fd)
        with fails(ESRCH):
            say(fd, "info status\n")
        running.do("start")
        running.sim("ok monitor")
        say(fd, "info status\n")
        assert hear(fd) == "VM status: running\n"
        running.sim("lose")
        with fails(EHOSTDOWN):
            say(fd, "info status\n")


@pytest.mark.parametrize("line", ["x" * 5000, "a\x01b", "a\0b"])
def test_bad_line(running, line):
    with talk(running) as fd:
        with fails(EINVAL):
            say(fd, line + "\n")
        say(fd, "info status\n")
        assert hear(fd) == "VM status: running\n"


def test_not_utf8(running):
    with talk(running) as fd:
        with fails(EINVAL):
            os.write(fd, b"\xff\xfe\n")


def test_only_the_owner(running):
    assert (running / "monitor").stat().st_mode & 0o777 == 0o600


# Keys, on sim

def test_keys_are_pressed(running):
    console = running.follow("console")
    running.fs.sh("echo ctrl-alt-delete > web1/keys; echo r o o t ret > web1/keys")
    console.expect("^sim: keys ctrl-alt-delete$")
    console.expect("^sim: keys r o o t ret$")
    assert running.read("error") == ""


@pytest.mark.parametrize("keys, errno, words", [
    ("nosuchkey", EINVAL, "nosuchkey"),
    ("a b nosuchkey", EINVAL, "nosuchkey"),
    ("", EINVAL, "names"),
    ("\n", EINVAL, "names"),
    ("Ret", EINVAL, "'Ret'"),
    ("ctrl--c", EINVAL, "not a key"),
    ("-", EINVAL, "not a key"),
    ("a;b", EINVAL, "not a key"),
    ("a-" * 9 + "b", EINVAL, "at once"),
    ("a " * 100, EINVAL, "64"),
    ("a " * 3000, EFBIG, "4096"),
    ("a\0b", EINVAL, "plain"),
])
def test_bad_keys(running, keys, errno, words):
    before = running.read("console.log")
    if keys:
        with fails(errno):
            running.write("keys", keys)
        assert running.error(None, words)[0] == "keys"
    assert running.read("console.log") == before  # not even the good ones


def test_keys_need_a_running_guest(vm):
    with fails(ESRCH):
        vm.write("keys", "ret\n")
    assert vm.error("ESRCH")[0] == "keys"
    vm.to("paused")
    with fails(EBUSY):
        vm.write("keys", "ret\n")
    vm.error("EBUSY", "paused")


def test_keys_beside_an_operation(running):
    """A guest that asks 'really?' when it is to stop can be answered."""
    running.sim("ignore stop")
    events = running.events()
    stop = running.fs.spawn("bash", "-c", f"echo 'stop 600' > {running / 'state'}")
    events.expect(" state stopping$")
    running.write("keys", "ret\n")
    assert "sim: keys ret" in running.read("console.log")
    running.do("kill")
    stop.finish()


def test_keys_cannot_be_read(running):
    assert (running / "keys").stat().st_mode & 0o444 == 0
    assert get(running / "keys") == b""  # root is let in all the same


# Real ones

@pytest.mark.qemu
def test_qemu_monitor(qemu):
    vm = qemu.vm()
    vm.do("start")
    with talk(vm) as fd:
        say(fd, "info status\n")
        assert hear(fd) == "VM status: running\n"
        say(fd, "nonsense\n")
        assert "unknown command: 'nonsense'" in hear(fd)
        say(fd, "help\n")
        assert hear(fd).count("\n") > 50
        say(fd, "stop\n")
        assert hear(fd) == ""
        vm.wait("paused")
        say(fd, "cont\ninfo status\n")
        assert hear(fd) == "VM status: running\n"
        vm.wait("running")
        say(fd, "quit\n")
        vm.wait("stopped")


@pytest.mark.qemu
def test_qemu_that_stands_still(qemu):
    vm = qemu.vm()
    vm.do("start")
    os.kill(vm.pid, signal.SIGSTOP)
    try:
        with talk(vm) as fd:
            say(fd, "info status\n")
            with pytest.raises(TimeoutError):
                hear(fd)
        with pytest.raises(TimeoutError):
            vm.write("keys", "ret\n")
    finally:
        os.kill(vm.pid, signal.SIGCONT)

    def answer():
        with talk(vm) as fd:
            say(fd, "info status\n")
            return hear(fd)
    assert answer() == "VM status: running\n"


@pytest.mark.qemu
def test_keys_reach_the_guest(qemu):
    """Typed at the display's terminal, and seen by what it does there."""
    vm = qemu.vm(spec=qemu.spec("console=tty0 console=ttyS0"))
    vm.do("start")
    qemu.booted(vm)
    before = get(vm / "screen.png")
    vm.write("keys", "e c h o spc t y p e d shift-dot slash d e v slash t t y shift-s 0 ret\n")
    vm.follow("console").expect("typed")
    until(lambda: get(vm / "screen.png") != before, "it is seen on the display")
    for keys, word in (("nokey", "nokey"), ("a b entr", "entr"), ("ctrl-alt-delet", "'delete'")):
        with fails(EINVAL):
            vm.write("keys", keys)
        vm.error("EINVAL", word)


@pytest.mark.qemu
def test_ctrl_alt_delete(qemu):
    vm = qemu.vm(spec=qemu.spec("vmfs.noagent"))
    qemu.up(vm)
    console = qemu.watch(vm)
    vm.write("keys", "ctrl-alt-delete\n")
    qemu.rebooted(console)


@pytest.mark.qemu
def test_microvm_has_no_keyboard(qemu):
    vm = qemu.vm(spec=qemu.spec(extra="machine: microvm\n"))
    vm.do("start")
    with fails(EOPNOTSUPP):
        vm.write("keys", "ret\n")
    vm.error("EOPNOTSUPP", "keyboard")
