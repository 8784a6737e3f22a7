# SPDX-License-Identifier: Apache-2.0
"""screen.png and stats: files of which the hypervisor is asked when they are opened; and vnc."""
import base64
import mmap
import os
import re
import signal
import socket
import struct
import tarfile
import time
import zlib
from errno import EBADMSG, EHOSTDOWN, EIO, EINVAL, ENOENT, ETIMEDOUT
from io import BytesIO

import pytest

from lib.backends import real
from lib.util import deadline, exists, fails, get, until, wait_blocked

ASKED = ["screen.png", "stats"]


def png_size(data):
    """Width and height of a picture that is whole."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 4:at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(body)
        chunks.append(name)
        at += 12 + length
    assert chunks[0] == b"IHDR" and chunks[-1] == b"IEND" and at == len(data)
    return struct.unpack_from(">II", data, 16)


def picture(vm):
    return get(vm / "screen.png")


def stats(vm):
    lines = vm.read("stats").splitlines()
    return {key: int(value) for key, value in map(str.split, lines)}


# What every asked file does, on sim

@pytest.mark.parametrize("name", ASKED)
def test_true_size_once_opened(vm, name):
    vm.do("start")
    with open(vm / name, "rb", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        assert size and len(f.read()) == size == (vm / name).stat().st_size
    tar = vm.fs.sh(f"tar -C web1 -c {name} | base64").stdout
    [member] = tarfile.open(fileobj=BytesIO(base64.b64decode(tar))).getmembers()
    assert member.size


def test_can_be_mapped(vm):
    """As image viewers do."""
    vm.do("start")
    with open(vm / "screen.png", "rb", buffering=0) as f:
        with mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as m:
            assert png_size(m[:]) == (1, 1)


def test_can_be_copied(vm, scratch):
    vm.do("start")
    vm.fs.sh(f"cp web1/screen.png {scratch}/; cp -r web1 {scratch}/all")
    assert (scratch / "screen.png").read_bytes() == picture(vm)
    assert (scratch / "all/screen.png").read_bytes() == picture(vm)


def test_what_does_not_run(vm):
    assert vm.read("stats") == "" and not exists(vm / "screen.png")
    vm.do("start")
    assert vm.read("stats") and exists(vm / "screen.png")
    with open(vm / "stats", "rb", buffering=0) as f:
        assert f.read()
        vm.do("kill")
        assert os.pread(f.fileno(), 4096, 0) == b""
    assert vm.read("stats") == "" and (vm / "stats").stat().st_size == 0
    with fails(ENOENT):
        picture(vm)
    assert vm.read("error") == ""


def test_no_display(fs):
    vm = fs.vm("web1", "backend: sim\ndisplay: none\n")
    vm.do("start")
    assert not exists(vm / "screen.png") and exists(vm / "stats")


def test_one_answer_for_all_who_ask_at_once(vm):
    vm.do("start")
    vm.sim("slow stats 300")
    readers = [vm.follow("stats") for _ in range(10)]
    for reader in readers:
        assert reader.finish() == 0
    assert {re.search(r"sim.asked (\d+)", r.text)[1] for r in readers} == {"1"}


def test_reading_again_asks_again(vm):
    vm.do("start")
    with open(vm / "stats", "rb", buffering=0) as f:
        first = f.read()
        assert f.read() == b""  # its end: nothing is asked in the middle of it
        until(lambda: os.pread(f.fileno(), 4096, 0) != first, "new counters")


@pytest.mark.parametrize("name", ASKED)
def test_failure(vm, name):
    vm.do("start")
    vm.sim(f"fail {name.split('.')[0]} EIO")
    with fails(EIO):
        get(vm / name)
    assert vm.error("EIO", "simulated hypervisor")[0] == name
    assert get(vm / name)


def test_unreachable(vm):
    vm.do("start")
    vm.sim("lose")
    with fails(EHOSTDOWN):
        vm.read("stats")
    vm.sim("find")
    until(lambda: vm.read("stats"), "it answers again")


@pytest.mark.parametrize("name", ASKED)
def test_no_answer(vm, name):
    """Its readers wait, and nobody else; each for a bounded time."""
    other = vm.fs.vm("web2", "backend: sim\n")
    vm.do("start")
    other.do("start")
    vm.sim(f"hang {name.split('.')[0]}")
    reader, patient = vm.follow(name), vm.follow(name)
    wait_blocked(reader.proc.pid)
    wait_blocked(patient.proc.pid)
    assert reader.interrupt() != 0
    assert vm.state == "running" and other.read("stats")
    vm.fs.sh("ls -l web1; stat web1/*")
    start = time.monotonic()
    assert patient.finish(20) != 0
    assert time.monotonic() - start < 10
    vm.error("ETIMEDOUT", "did not answer")


@pytest.mark.parametrize("end", ["kill", "poweroff"])
def test_ends_while_it_is_asked(vm, end):
    vm.do("start")
    vm.sim("hang stats")
    reader = vm.follow("stats")
    vm.follow("console").expect("^sim: asked for stats$")
    if end == "kill":
        vm.do("kill")
    else:
        vm.sim("poweroff")
    assert reader.finish(3) != 0 and "Input/output error" in reader.text
    vm.dir.rmdir()


def test_the_daemon_ends_while_it_is_asked(fs, vm):
    vm.do("start")
    vm.sim("hang screen")
    reader = vm.follow("screen.png")
    wait_blocked(reader.proc.pid)
    fs.stop()
    assert reader.finish() != 0


@pytest.mark.parametrize("vnc, words", [
    ("127.0.0.1:80", "5900"), ("0.0.0.0:0", "no password"), ("yes", "neither unix"),
    ("127.0.0.1:x", "whole number"), ("[::1]:0", "neither unix"),
])
def test_bad_vnc(vm, vnc, words):
    with fails(EINVAL, EBADMSG):
        vm.write("spec.yaml", f"backend: sim\nvnc: {vnc!r}\n")
    vm.error(None, words)


def test_vnc_needs_a_display(vm):
    with fails(EINVAL):
        vm.write("spec.yaml", "{backend: sim, vnc: unix, display: none}\n")
    vm.error("EINVAL", "display: vga")


# Real ones

def display_spec(qemu, *lines):
    return qemu.spec("console=tty0 console=ttyS0", extra="".join(f"{line}\n" for line in lines))


@pytest.mark.qemu
@pytest.mark.parametrize("display", ["vga", "virtio"])
def test_shows_the_guest(qemu, display):
    vm = qemu.vm(spec=display_spec(qemu, f"display: {display}"))
    vm.do("start")
    qemu.booted(vm)
    width, height = png_size(picture(vm))
    assert width >= 640 and height >= 400
    before = picture(vm)
    vm.write("console", "for i in 1 2 3; do echo drawn-$i; done > /dev/tty1\n", 0)
    until(lambda: picture(vm) != before, "what the guest prints is seen")
    assert not list(vm.fs.run.rglob("screen.png"))  # no picture is left lying about


@pytest.mark.qemu
def test_qemu_that_stands_still(qemu):
    vm = qemu.vm()
    qemu.up(vm)
    os.kill(vm.pid, signal.SIGSTOP)
    try:
        with fails(ETIMEDOUT), deadline(15):
            get(vm / "screen.png", 15)
        assert vm.state == "running"
    finally:
        os.kill(vm.pid, signal.SIGCONT)
    until(lambda: png_size(picture(vm)), "it answers again")


@pytest.mark.qemu
def test_qemu_dies_while_it_is_asked(qemu):
    vm = qemu.vm()
    vm.do("start")
    os.kill(vm.pid, signal.SIGSTOP)
    reader = vm.follow("screen.png")
    wait_blocked(reader.proc.pid)
    os.kill(vm.pid, signal.SIGKILL)
    assert reader.finish(4) != 0
    vm.wait("crashed")
    assert not exists(vm / "screen.png")


@pytest.mark.qemu
def test_counters_count(qemu, guest):
    vm = qemu.vm(spec=qemu.spec(cpus=2, extra=f"disks: {{root: {{image: {guest.disk}}}}}\n"))
    vm.do("start")
    qemu.booted(vm)
    before = stats(vm)
    assert before["cpu.count"] == 2 and before["memory.max"] == 256 << 20
    assert before["cpu.0.time_us"] + before["cpu.1.time_us"] == before["cpu.time_us"] > 0
    assert before["memory.rss"] > 32 << 20
    console = vm.follow("console")
    vm.write("console", "dd if=/dev/vda of=/dev/null bs=1M count=8; echo read-$((1 + 1))\n", 0)
    console.expect("^read-2")
    after = until(lambda: (now := stats(vm)) != before and now, "new counters")
    assert after["block.root.read_bytes"] >= before["block.root.read_bytes"] + (8 << 20)
    assert after["cpu.time_us"] > before["cpu.time_us"]
    assert after["block.root.write_ops"] == before["block.root.write_ops"]


def net_stats(vm):
    """With those of its agent, for which the others do not wait when it is slow."""
    return until(lambda: "net.eth0.rx_bytes" in (now := stats(vm)) and now, "the agent counts", 30)


@real
def test_net_counters(backend):
    """What the guest counts, by its agent; an agent that is stuck holds nothing up but these."""
    vm = backend.vm()
    backend.up(vm)
    vm.wait("agent")
    before = net_stats(vm)
    console = vm.follow("console")
    vm.write("console", "ping -c 3 -s 1000 10.0.2.2 >/dev/null; echo sent-$((1 + 1))\n", 0)
    console.expect("^sent-2")
    after = net_stats(vm)
    for way in "rx", "tx":
        assert after[f"net.eth0.{way}_packets"] >= before[f"net.eth0.{way}_packets"] + 3
        assert after[f"net.eth0.{way}_bytes"] >= before[f"net.eth0.{way}_bytes"] + 3000
        assert after[f"net.eth0.{way}_errors"] == after[f"net.eth0.{way}_drops"] == 0
    vm.write("console", "killall -STOP qemu-ga; echo stuck-$((1 + 1))\n", 0)
    console.expect("^stuck-2")
    found = until(lambda: "net.eth0.rx_bytes" not in (now := stats(vm)) and now, "a stuck agent")
    assert found["cpu.time_us"] > 0


@pytest.mark.qemu
def test_vnc(fs, qemu):
    """At a socket that only the owner reaches, or at a free port; told again after a restart."""
    one = qemu.vm("one", display_spec(qemu, "vnc: unix"))
    two = qemu.vm("two", display_spec(qemu, "vnc: 127.0.0.1:0"))
    three = qemu.vm("three", display_spec(qemu, "vnc: 127.0.0.1:0"))
    for vm in one, two, three:
        vm.do("start")
    assert two.status["vnc"] != three.status["vnc"]
    assert os.stat(one.status["vnc"]).st_mode & 0o077 == 0
    fs.stop()
    fs.restart()
    host, port = two.status["vnc"].split(":")
    with socket.create_connection((host, int(port)), 10) as viewer:
        assert viewer.recv(12).startswith(b"RFB 003.")
    with socket.socket(socket.AF_UNIX) as viewer:
        viewer.settimeout(10)
        viewer.connect(one.status["vnc"])
        assert viewer.recv(12).startswith(b"RFB 003.")
    one.do("kill")
    assert "vnc" not in one.status
