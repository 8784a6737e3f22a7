# SPDX-License-Identifier: Apache-2.0
"""Changing what runs: by spec.yaml, and by the directories disks/, nics/ and shares/."""
import pytest

from lib.util import until


@pytest.fixture
def disk(scratch):
    """Makes raw disks; returns a path."""
    def make(name="data.raw"):
        path = scratch / name
        with open(path, "wb") as f:
            f.truncate(8 << 20)
        return path
    return make


@pytest.fixture
def up(vm):
    """A running VM of the sim backend."""
    vm.do("start")
    return vm


# ---- by spec.yaml ----

def test_edit_is_applied(up, disk):
    up.write("spec.yaml", f"backend: sim\ndisks: {{data: {{file: {disk()}}}}}\n")
    assert up.read("pending") == ""
    assert up.read("error") == ""


def test_edit_that_must_wait(up, disk):
    up.write("spec.yaml", f"backend: sim\nmemory: 1GiB\ndisks: {{data: {{file: {disk()}}}}}\n")
    assert up.read("pending") == "memory\n"


def test_edit_that_fails(up, disk):
    up.sim("fail apply EIO")
    up.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk('a')}}}, "
                          f"b: {{file: {disk('b')}}}}}\n")
    assert up.read("pending") == "disks.a\n"
    assert " apply EIO: " in up.read("error")
    up.write("spec.yaml", up.read("spec.yaml"))  # tries again
    assert up.read("pending") == "disks\n"  # b came first, and boots first in the next run
    assert up.read("error") == ""


def test_edit_that_is_slow(up, disk):
    """close(2) does not wait for ever, and what is asked for meanwhile is done after it."""
    up.sim("slow apply 2000")
    up.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk()}}}}}\n")
    assert up.read("pending") == "disks.a\n"
    assert up.status["operation"] == "apply"
    up.sim("ok apply")
    up.write("spec.yaml", "backend: sim\nnics: {}\n")
    until(lambda: up.read("pending") == "", "all is applied")
    assert "operation" not in up.status


def test_edit_while_starting(vm, disk):
    vm.sim("slow start 300")
    start = vm.fs.spawn("bash", "-c", f"echo start > {vm / 'state'}")
    until(lambda: vm.state == "starting", "it starts")
    vm.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk()}}}}}\n")
    start.finish()
    until(lambda: vm.read("pending") == "", "the change is applied once it runs")


def test_pending_over_restart(up, disk):
    """What runs is known to the next daemon, whatever was changed live before."""
    up.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk()}}}}}\n")
    up.write("spec.yaml", f"backend: sim\ncpus: 2\ndisks: {{a: {{file: {disk()}}}}}\n")
    assert up.read("pending") == "cpus\n"
    up.fs.kill9()
    up.fs.restart()
    until(lambda: up.state == "running", "it is found again")
    assert up.read("pending") == "cpus\n"


def test_kill_while_applied(up, disk):
    up.sim("hang apply")
    up.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk()}}}}}\n")
    up.do("kill")
    assert up.state == "stopped" and up.read("pending") == ""
