# SPDX-License-Identifier: Apache-2.0
"""Verbs and nouns: what each does in each state, with the errno of what is refused."""
import os
from errno import EALREADY, EBUSY, EHOSTDOWN, ENOMEM, ENOSPC, ESRCH, ETIMEDOUT, errorcode

import pytest

from lib.util import fails, until

# state, what is written, errno or the state after it
VERBS = [
    ("stopped", "start", "running"),
    ("stopped", "stop", EALREADY),
    ("stopped", "stop 5", EALREADY),
    ("stopped", "kill", EALREADY),
    ("stopped", "pause", ESRCH),
    ("stopped", "resume", ESRCH),
    ("stopped", "reboot", ESRCH),
    ("stopped", "reset", ESRCH),
    ("stopped", "stopped", "stopped"),
    ("stopped", "running", "running"),
    ("running", "start", EALREADY),
    ("running", "stop", "stopped"),
    ("running", "stop 5", "stopped"),
    ("running", "kill", "stopped"),
    ("running", "pause", "paused"),
    ("running", "resume", EALREADY),
    ("running", "reboot", "running"),
    ("running", "reset", "running"),
    ("running", "running", "running"),
    ("running", "stopped", "stopped"),
    ("running", "paused", "paused"),
    ("paused", "pause", EALREADY),
    ("paused", "resume", "running"),
    ("paused", "running", "running"),
    ("paused", "paused", "paused"),
    ("paused", "stop 1", "stopped"),
    ("paused", "kill", "stopped"),
    ("paused", "reset", "paused"),
    ("crashed", "start", "running"),
    ("crashed", "running", "running"),
    ("crashed", "pause", ESRCH),
]


@pytest.mark.parametrize("state, verb, result", VERBS,
                         ids=[f"{s}-{v}".replace(" ", "") for s, v, _ in VERBS])
def test_verb(vm, state, verb, result):
    vm.to(state)
    if isinstance(result, str):
        vm.do(verb)
        assert vm.state == result
        assert vm.status["state"] == result
        assert vm.read("error") == ""
    else:
        with fails(result):
            vm.do(verb)
        assert vm.error(errorcode[result])[0] == verb.split()[0]
        assert vm.state == state


@pytest.mark.parametrize("text", ["start", "start\n", "start\n\n", "\nstart\n"])
def test_a_command_with_and_without_newline(vm, text):
    vm.write("state", text)
    assert vm.state == "running"


def test_append_is_a_command_too(vm):
    vm.fs.sh("echo start >> web1/state")
    assert vm.state == "running"


def test_many_commands_on_one_descriptor(vm):
    vm.fs.sh("exec 3> web1/state; echo start >&3; echo pause >&3; echo resume >&3")
    assert vm.state == "running"


def test_shells_see_the_error(vm):
    for shell in ("bash", "dash"):
        done = vm.fs.sh("echo stop > web1/state", shell=shell, check=False)
        assert done.returncode != 0 and done.stderr
    vm.fs.sh("echo running > web1/state && echo running > web1/state")


def test_error_goes_after_a_success(vm):
    with fails(EALREADY):
        vm.do("stop")
    vm.error("EALREADY")
    vm.do("start")
    assert vm.read("error") == ""


def test_events_of_a_life(vm):
    events = vm.events()
    vm.do("start")
    vm.do("pause")
    vm.do("resume")
    vm.do("stop")
    for state in ("starting", "running", "paused", "running", "stopping", "stopped"):
        events.expect(rf" web1 state {state}$")


def test_injected_failure(vm):
    vm.sim("fail start ENOSPC")
    with fails(ENOSPC):
        vm.do("start")
    assert vm.error("ENOSPC")[0] == "start"
    assert vm.state == "stopped"
    vm.do("start")  # it was for one time
    assert vm.state == "running" and vm.read("error") == ""
    vm.sim("fail pause ENOMEM")
    with fails(ENOMEM):
        vm.do("pause")
    assert vm.state == "running"


def test_ok_clears_a_fault(vm):
    vm.sim("fail start EIO")
    vm.sim("ok start")
    vm.do("start")
    assert vm.state == "running"


@pytest.mark.daemon("-o", "verb_timeout=1")
@pytest.mark.parametrize("verb, before, after", [("start", "stopped", "stopped"),
                                                 ("pause", "running", "running")])
def test_deadline(vm, verb, before, after):
    vm.to(before)
    vm.sim(f"hang {verb}")
    with fails(ETIMEDOUT):
        vm.do(verb)
    assert vm.error("ETIMEDOUT")[0] == verb
    until(lambda: vm.state == after, f"{after} after the time-out")
    assert "operation" not in vm.status
    vm.sim(f"ok {verb}")
    vm.do(verb)
    assert vm.state != before


def test_slow_is_not_failed(vm):
    vm.sim("slow start 300")
    vm.do("start")
    assert vm.state == "running"


def test_busy_while_under_way(vm):
    events = vm.events()
    vm.sim("hang start")
    vm.write("state", "start\n", os.O_NONBLOCK)
    events.expect(" state starting$")
    assert vm.state == "starting"
    assert vm.status["operation"].split()[0] == "start"
    for verb in ("start", "pause", "reboot"):
        with fails(EBUSY):
            vm.do(verb)
    with fails(EBUSY):
        vm.dir.rmdir()
    with fails(EBUSY):
        os.rename(vm.dir, vm.fs.mnt / "web2")
    vm.do("kill")
    assert vm.state == "stopped"
    assert "operation" not in vm.status


def test_a_noun_joins_what_leads_there(vm):
    events = vm.events()
    vm.sim("slow start 1500")
    first = vm.fs.spawn("bash", "-c", f"echo start > {vm / 'state'}")
    events.expect(" state starting$")
    vm.do("running")
    assert vm.state == "running"
    assert first.finish() == 0


def test_guest_powers_off(vm):
    vm.to("running").sim("poweroff")
    vm.wait("stopped")
    assert vm.status["reason"] == "guest-shutdown"


def test_guest_panics(vm):
    vm.to("running").sim("panic")
    vm.wait("crashed")
    assert vm.status["reason"] == "guest-panic"


def test_vmm_dies(vm):
    vm.to("running").sim("die")
    vm.wait("crashed")
    assert vm.status["reason"] == "signal-9"


def test_guest_reboots_itself(sim):
    vm = sim.vm()
    vm.do("start")
    sim.booted(vm)
    watch = sim.watch(vm)
    vm.sim("reboot")
    sim.rebooted(watch)
    assert vm.state == "running"


def test_lost_and_found(vm):
    events = vm.to("running").events()
    vm.sim("lose")
    events.expect(" state unknown$")
    assert vm.state == "unknown"
    for verb in ("pause", "stop", "reboot"):
        with fails(EHOSTDOWN):
            vm.do(verb)
        vm.error("EHOSTDOWN")
    with fails(EBUSY):
        vm.dir.rmdir()
    vm.sim("find")
    events.expect(" state running$")
    vm.do("stop")
    assert vm.state == "stopped"


def test_addresses_and_agent(vm):
    vm.to("running").sim("ip 192.0.2.1 2001:db8::1")
    assert vm.wait("ip").split()[0] == "192.0.2.1"
    assert vm.read("ip") == "192.0.2.1\n2001:db8::1\n"
    vm.sim("ip")
    assert vm.read("ip") == ""
    vm.sim("ip 192.0.2.1")
    vm.do("stop")
    assert vm.read("ip") == ""


def test_stop_forces_a_guest_that_ignores_it(vm):
    vm.to("running").sim("ignore stop")
    vm.do("stop 1")
    assert vm.state == "stopped"


def test_stop_timeout_of_the_spec(fs):
    vm = fs.vm("web1", "backend: sim\nstop_timeout: 1s\n").to("running")
    vm.sim("ignore stop")
    vm.do("stop")
    assert vm.state == "stopped"


def test_since_moves_with_the_state(vm):
    before = vm.status["since"]
    vm.do("start")
    assert vm.status["since"] >= before
