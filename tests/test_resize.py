# SPDX-License-Identifier: Apache-2.0
"""Memory and CPUs of a VM that runs, up to max_memory and max_cpus."""
import re
from errno import EINVAL

import pytest

from lib.util import fails, until
from lib.vm import Shell


def resized(text, **values):
    """The document with other values of these keys, which it has."""
    for key, value in values.items():
        text, n = re.subn(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.M)
        assert n == 1
    return text


@pytest.mark.parametrize("key, least, bad", [("max_cpus", "cpus: 2", 1),
                                             ("max_memory", "memory: 256MiB", "128MiB")])
def test_maximum_below(vm, key, least, bad):
    with fails(EINVAL):
        vm.write("spec.yaml", f"backend: sim\n{least}\n{key}: {bad}\n")
    vm.error("EINVAL", key)


def test_without_a_maximum(vm):
    vm.do("start")
    vm.write("spec.yaml", "backend: sim\ncpus: 2\nmemory: 512MiB\n")
    assert vm.read("pending") == "cpus\nmemory\n"


def test_up_to_the_maximum(fs):
    text = "backend: sim\ncpus: 1\nmemory: 256MiB\nmax_cpus: 4\nmax_memory: 1GiB\n"
    vm = fs.vm("web1", text)
    vm.do("start")
    for values, pending in ((dict(cpus=2, memory="1GiB"), ""), (dict(cpus=3), ""),
                            (dict(cpus=5, max_cpus=8), "cpus\nmax_cpus\n"), (dict(), "cpus\n")):
        vm.write("spec.yaml", resized(text, **values))
        until(lambda: vm.read("pending") == pending, pending)
        assert vm.read("error") == ""


MAXIMUM = "max_cpus: 3\nmax_memory: 512MiB\n"


def cpus_of(vm, n):
    vm.write("spec.yaml", resized(vm.spec, cpus=n))
    until(lambda: vm.read("pending") == "", f"{n} CPUs")
    assert vm.read("error") == ""


@pytest.fixture
def real(qemu):
    vm = qemu.vm(spec=qemu.spec(extra=MAXIMUM))
    qemu.up(vm)
    return vm


@pytest.mark.qemu
def test_guest_has_more_cpus(real):
    sh = Shell(real)
    real.wait("agent")
    for n in (2, 3):
        cpus_of(real, n)
        sh("nproc", str(n))
    real.write("spec.yaml", resized(real.spec, cpus=1))
    assert real.read("pending") == "cpus\n" and real.read("error") == ""


@pytest.mark.qemu
def test_guest_has_more_memory_and_less(real):
    sh = Shell(real)
    total = "awk '/^MemTotal/ {print ($2 > %d)}' /proc/meminfo" % (300 << 10)
    for memory, more in (("512MiB", 1), ("256MiB", 0), ("384MiB", 1)):
        real.write("spec.yaml", resized(real.spec, memory=memory))
        until(lambda: real.read("pending") == "", memory)
        assert real.read("error") == ""
        sh(total, str(more))


@pytest.mark.qemu
def test_guest_that_spares_nothing(qemu):
    """It boots with the most, for nobody there takes it away, and is not given less later."""
    vm = qemu.vm(spec=qemu.spec("acpi=off module_blacklist=virtio_balloon", extra=MAXIMUM))
    vm.do("start")
    qemu.booted(vm)
    vm.write("spec.yaml", resized(vm.spec, memory="320MiB"))
    until(lambda: " ETIMEDOUT: " in vm.read("error"), "what became of it")
    assert vm.read("pending") == "memory\n" and "virtio_balloon" in vm.read("error")
    assert vm.state == "running"


@pytest.mark.qemu
def test_resized_over_sleep_and_restart(real):
    sh = Shell(real)
    real.wait("agent")
    cpus_of(real, 2)
    real.write("spec.yaml", resized(real.spec, memory="512MiB"))
    until(lambda: real.read("pending") == "", "memory")
    real.do("sleep")
    real.do("wake")
    assert real.read("pending") == ""
    sh("nproc", "2")
    real.fs.kill9()
    real.fs.restart()
    sh = Shell(real)
    assert real.state == "running" and real.read("pending") == ""
    cpus_of(real, 3)
    sh("nproc", "3")


@pytest.mark.qemu
def test_paused_guest_must_wait(real):
    """Nobody there could take what it is given: it is when it goes on, whoever lets it."""
    sh = Shell(real)
    real.do("pause")
    real.write("spec.yaml", resized(real.spec, cpus=2, memory="512MiB"))
    assert real.read("pending") == "cpus\nmemory\n" and real.read("error") == ""
    real.do("resume")
    until(lambda: real.read("pending") == "", "both")
    assert real.read("error") == ""
    sh("grep -c ^processor /proc/cpuinfo", "2")
    real.do("pause")
    real.write("spec.yaml", resized(real.spec, memory="256MiB"))
    assert real.read("pending") == "memory\n"
    real.write("monitor", "cont\n", 0)
    until(lambda: real.read("pending") == "", "memory")
    assert real.state == "running" and real.read("error") == ""
