# SPDX-License-Identifier: Apache-2.0
"""A command waits in close(2): it keeps nobody out, and Ctrl-C ends the waiting, not the work."""
import os
import signal

import pytest

from lib.util import deadline, until, wait_blocked

# Writes argv[2] to argv[1], and tells of each step.
WRITER = """if 1:
    import errno, os, signal, sys
    signal.signal(signal.SIGINT, lambda *_: None)
    say = lambda *words: print(*words, flush=True)
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
    os.write(fd, sys.argv[2].encode())
    say("written")
    try:
        os.close(fd)
        say("closed")
    except OSError as e:
        say("failed", errno.errorcode[e.errno])
"""


@pytest.fixture
def stubborn(vm):
    """A running VM whose guest ignores requests to stop."""
    vm.to("running").sim("ignore stop")
    return vm


def writer(vm, command):
    return vm.fs.spawn("/usr/bin/python3", "-c", WRITER, vm / "state", command)


def shell(vm, command, shell="bash"):
    return vm.fs.spawn(shell, "-c", f"echo '{command}' > {vm / 'state'}; echo done $?")


@pytest.mark.parametrize("name", ["bash", "dash"])
def test_kill_goes_through_while_stop_waits(stubborn, name):
    events = stubborn.events()
    waiting = shell(stubborn, "stop 600", name)
    events.expect(" state stopping$")
    wait_blocked(waiting.proc.pid)
    assert stubborn.status["operation"].split()[0] == "stop"
    stubborn.fs.sh("echo kill > web1/state", shell=name)
    assert stubborn.state == "stopped"
    waiting.finish()


def test_the_rest_works_while_stop_waits(fs, stubborn):
    other = fs.vm("web2", "backend: sim\n")
    events = stubborn.events()
    waiting = shell(stubborn, "stop 600")
    events.expect(" state stopping$")
    wait_blocked(waiting.proc.pid)
    fs.sh("ls -l web1; cat web1/state; chmod 640 web1/state; echo '#' >> web1/spec.yaml; "
          "cp web1/spec.yaml web2; echo start > web2/state; mkdir web3; rmdir web3")
    assert other.state == "running"
    assert stubborn.state == "stopping"
    stubborn.do("kill")
    waiting.finish()


def test_write_returns_and_close_waits(stubborn):
    waiting = writer(stubborn, "stop 3\n")
    waiting.expect("written")
    assert stubborn.state == "stopping"  # with three seconds to go
    assert not waiting.has("closed")
    waiting.expect("closed")
    assert stubborn.state == "stopped"  # forced


def test_close_tells_the_error(vm):
    vm.sim("slow start 2500")
    events = vm.events()
    waiting = writer(vm, "start\n")
    waiting.expect("written")
    events.expect(" state starting$")
    vm.do("kill")
    waiting.expect("failed E")


def test_quick_errors_come_from_write(vm):
    """Those the shells' own echo can see."""
    vm.sim("fail start ENOSPC")
    for name in ("bash", "dash"):
        assert vm.fs.sh("echo start > web1/state", shell=name, check=False).returncode != 0
        vm.sim("fail start ENOSPC")


def test_ctrl_c_ends_the_waiting_not_the_work(stubborn):
    waiting = writer(stubborn, "stop 3\n")
    waiting.expect("written")
    wait_blocked(waiting.proc.pid)
    waiting.proc.send_signal(signal.SIGINT)
    waiting.expect("failed EINTR", 2)
    assert stubborn.state == "stopping"
    stubborn.wait("stopped")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_a_blocked_shell(stubborn, sig):
    events = stubborn.events()
    waiting = stubborn.fs.spawn("bash", "-c", f"echo 'stop 3' > {stubborn / 'state'}; sleep 1000")
    events.expect(" state stopping$")
    wait_blocked(waiting.proc.pid)
    os.killpg(waiting.proc.pid, sig)
    assert waiting.finish(2) == -sig
    assert stubborn.state == "stopping"
    stubborn.wait("stopped")


def test_ctrl_c_before_write_returns(vm):
    """A start that takes its time is interrupted wherever it waits, and goes on."""
    events = vm.events()
    vm.sim("slow start 3000")
    waiting = vm.fs.spawn("bash", "-c", f"echo start > {vm / 'state'}")
    events.expect(" state starting$")
    wait_blocked(waiting.proc.pid)
    assert waiting.interrupt(2) == -signal.SIGINT
    assert vm.state == "starting"
    vm.wait("running")


def test_nonblocking_command(stubborn):
    with deadline(10):
        stubborn.write("state", "stop 600\n", os.O_NONBLOCK)
    assert stubborn.state == "stopping"
    stubborn.do("kill")


def test_two_wait_for_the_same(stubborn):
    """A verb that another has begun is busy; a noun joins it."""
    first = writer(stubborn, "stop 2\n")
    first.expect("written")
    second = writer(stubborn, "stopped\n")
    second.expect("closed")
    first.expect("closed")
    assert stubborn.state == "stopped"


def test_progress_shows(stubborn):
    waiting = writer(stubborn, "stop 600\n")
    waiting.expect("written")
    status = stubborn.status
    assert status["state"] == "stopping" and status["operation"].startswith("stop")
    stubborn.do("kill")
    assert "operation" not in stubborn.status


def test_hundred_commands_under_way(fs):
    """Each VM waits by itself."""
    vms = [fs.vm(f"web{n}", "backend: sim\n").to("running") for n in range(100)]
    for vm in vms:
        vm.sim("ignore stop")
        vm.write("state", "stop 600\n", os.O_NONBLOCK)
    one = fs.vm("one", "backend: sim\n")
    one.do("start")
    one.do("stop")
    for vm in vms:
        assert vm.state == "stopping"
        vm.do("kill")


def test_daemon_ends_while_a_command_waits(fs, stubborn):
    waiting = shell(stubborn, "stop 600")
    wait_blocked(waiting.proc.pid)
    fs.stop()
    waiting.finish()
    fs.restart()
    until(lambda: stubborn.state in ("running", "stopped"), "the half-done stop is settled")


def test_two_kills(fs):
    """Both are told when it is done."""
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    vm.sim("slow kill 2500")  # longer than its write holds the inode, and so the other one, up
    first = fs.spawn("bash", "-c", f"echo kill > {vm / 'state'}")
    until(lambda: "operation kill" in vm.read("status"), "the kill")
    vm.do("kill")
    assert first.finish() == 0
    assert vm.state == "stopped" and vm.read("error") == ""
