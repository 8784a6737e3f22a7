# SPDX-License-Identifier: Apache-2.0
"""What is refused, each with its errno at the write, a sentence in `error`, and nothing changed."""
import os
from errno import E2BIG, EFBIG, EINVAL, ENAMETOOLONG, ENOENT
from os import fsencode

import pytest

from lib.util import fails, put

COMMANDS = {
    "unknown": "frobnicate\n",
    "typo": "strat\n",
    "two-in-one-write": "start\nstop\n",
    "two-and-blank": "start\n\nstart\n",
    "stop-negative": "stop -1\n",
    "stop-word": "stop soon\n",
    "stop-two": "stop 1 2\n",
    "stop-huge": "stop 99999999999999999999999\n",
    "stop-fraction-of-nothing": "stop .\n",
    "start-with-argument": "start now\n",
    "kill-with-argument": "kill -9\n",
    "case": "START\n",
    "shell": "start; rm -rf /\n",
    "format": "%s%s%n\n",
    "state-that-is-no-goal": "starting\n",
    "crashed": "crashed\n",
    "nul": b"start\0\n",
    "nul-inside": b"st\0art\n",
    "garbage": bytes(range(128, 256)),
    "binary": bytes(range(256)),
    "escape": b"\x1b[2Jstart\n",
}


def snapshot(vm):
    status = vm.status
    return vm.state, vm.spec, vm.read("id"), status, set(os.listdir(vm.dir)), vm.fs.names()


@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("name", COMMANDS)
def test_command(vm, name, state):
    vm.to(state)
    before = snapshot(vm)
    with fails(EINVAL):
        put(vm / "state", COMMANDS[name])
    sentence = vm.error("EINVAL")[2]
    assert sentence.isprintable(), "what the user wrote came back raw"
    assert snapshot(vm) == before


def test_a_typo_is_understood(vm):
    with fails(EINVAL):
        vm.do("strat")
    vm.error("EINVAL", "strat", "start")


@pytest.mark.parametrize("size", [4097, 10 << 20])
@pytest.mark.parametrize("byte", [b"\0", b"s", b"\n"], ids=["nul", "text", "newlines"])
def test_much(vm, size, byte):
    before = snapshot(vm)
    with fails(EINVAL, E2BIG, EFBIG):
        put(vm / "state", byte * size)
    vm.error()
    assert snapshot(vm) == before
    done = vm.fs.sh(f"head -c {size} /dev/zero > web1/state", check=False)
    assert done.returncode != 0
    assert snapshot(vm) == before


def test_command_at_an_offset(vm):
    """pwrite is not how one commands, but must not confuse."""
    fd = os.open(vm / "state", os.O_WRONLY)
    os.pwrite(fd, b"start\n", 0)
    os.close(fd)
    assert vm.state == "running"


NAMES = {
    "dash": b"-x",
    "dot": b".x",
    "space": b"a b",
    "newline": b"a\nb",
    "colon": b"a:b",
    "star": b"*",
    "not-utf8": b"web\xff\xfe",
    "utf8": "wéb".encode(),
    "escape": b"\x1b[2J",
    "underscore-first": b"_a",
    "64": b"x" * 64,
    "255": b"x" * 255,
}


@pytest.mark.parametrize("name", NAMES)
def test_name(fs, name):
    vm = fs.vm("web1")
    path = fsencode(fs.mnt) + b"/" + NAMES[name]
    errnos = (ENAMETOOLONG, EINVAL) if len(NAMES[name]) > 63 else (EINVAL,)
    with fails(*errnos):
        os.mkdir(path)
    with fails(*errnos):
        os.rename(vm.dir, path)
    with fails(ENOENT, *errnos):
        os.stat(path)
    assert fs.names() == ["web1"]


@pytest.mark.parametrize("name", ["..", "a/b", pytest.param("x" * 300, id="300"), ".vmfs", ".io",
                                  "web1/x"])
def test_name_that_is_a_path(fs, name):
    fs.vm("web1")
    with pytest.raises(OSError):
        os.mkdir(f"{fs.mnt}/{name}")
    assert fs.names() == ["web1"]


def test_no_directories_in_a_vm(vm):
    with pytest.raises(OSError):
        (vm / "dir").mkdir()
    with pytest.raises(OSError):
        os.mkfifo(vm / "fifo")
    assert not {"dir", "fifo"} & set(os.listdir(vm.dir))


@pytest.mark.parametrize("length", [64, 255])
def test_scratch_name(vm, length):
    """Long names of scratch files are the editors' business."""
    (vm / ("x" * length)).write_text("x")
    with fails(ENAMETOOLONG, EINVAL):
        (vm / ("x" * 256)).write_text("x")


def test_two_at_once(vm):
    """One of two starters wins, the other is told."""
    script = "for i in 1 2 3 4 5 6 7 8; do echo start > web1/state & pids+=($!); done; " \
             "n=0; for pid in ${pids[@]}; do wait $pid && n=$((n + 1)); done; echo $n"
    assert vm.fs.sh(script).stdout == "1\n"
    assert vm.state == "running"


@pytest.mark.parametrize("order", ["frobnicate", "fail", "fail start", "fail start EWHAT",
                                   "slow start x"])
def test_sim_order(vm, order):
    vm.to("running")
    with fails(EINVAL):
        vm.sim(order)


def test_flood_of_bad_commands(vm):
    """The daemon's memory and log do not grow by what it refuses."""
    for _ in range(1000):
        with fails(EINVAL):
            vm.write("state", "x" * 4000)
    assert len(vm.fs.log_text) < 1_000_000
    assert len(vm.read("error")) < 8192
    vm.do("start")
