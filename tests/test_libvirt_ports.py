# SPDX-License-Identifier: Apache-2.0
"""Forwards into guests that others than vmfs start, wake and move as well."""
import socket
from contextlib import closing
from errno import EADDRINUSE, EOPNOTSUPP

import pytest

from lib.util import exists, fails, until
from test_ports import banner

pytestmark = [pytest.mark.qemu, pytest.mark.libvirt]
PORT = "port.eth0.22"


@pytest.fixture
def taken():
    with closing(socket.create_server(("127.0.0.1", 0))) as s:
        yield s.getsockname()[1]


@pytest.fixture
def fs(box, domains):
    return box.start(f"-ohost=local={domains.uri}")


@pytest.fixture
def foreign(fs, domains, guest):
    """A domain that virsh has defined, with a forward that vmfs has added."""
    domains.define("web", guest=guest)
    until(lambda: exists(fs.mnt / "web/spec.yaml"), "it is shown")
    vm = fs.vm("web")
    until(lambda: "eth0" in vm.spec, "it has been looked at")
    fs.sh("sed -i 's/network: user/network: user, ports: [0:22]/' web/spec.yaml")
    return vm


def port_of(vm):
    until(lambda: PORT in vm.status, "its forward is told")
    return vm.status[PORT]


def test_virsh_starts_it(foreign, fs, domains):
    """Kept in its XML, it is made whoever starts it; and taken away again, live."""
    assert "ports: [0:22]" in foreign.spec
    assert "urn:vmfs:ports" in domains.virsh("dumpxml", "web").stdout
    domains.virsh("start", "web")
    address = port_of(foreign)
    until(lambda: banner(address), "the guest answers")
    # Not what the XML says, but what it is without the document's text.
    fs.kill9()
    fs.restart()
    assert port_of(foreign) == address and foreign.read("pending") == ""
    domains.kill()
    until(lambda: foreign.state == "unknown", "it is seen that libvirtd is away")
    domains.answers()
    until(lambda: foreign.state == "running", "it is found again")
    assert port_of(foreign) == address and banner(address)
    fs.sh("sed -i 's/, ports: .*]//' web/spec.yaml")
    assert PORT not in foreign.status and not banner(address)
    assert foreign.read("pending") == ""
    for flag in ("", "--inactive"):
        assert "urn:vmfs:ports" not in domains.virsh("dumpxml", "web", *flag.split()).stdout


def test_asleep(foreign, domains):
    """Its memory does not know of it; vmfs wakes it, then virsh does."""
    foreign.do("start")
    # A guest that falls asleep while it asks for its address may have none when it wakes.
    until(lambda: banner(port_of(foreign)), "the guest answers", 60)
    for wake in (lambda: foreign.do("wake"), lambda: domains.virsh("start", "web")):
        foreign.do("sleep")
        assert PORT not in foreign.status
        wake()
        until(lambda: banner(port_of(foreign)), "the guest answers")


def test_taken(foreign, fs, domains, taken):
    """A start by vmfs fails; virsh knows nothing of it, so then it runs, and the rest is told."""
    fs.sh(f"sed -i 's/0:22/{taken}:22/' web/spec.yaml")
    with fails(EADDRINUSE):
        foreign.do("start")
    foreign.error("EADDRINUSE", "nics.eth0.ports", str(taken))
    assert foreign.state == "stopped"
    assert domains.virsh("domstate", "web").stdout.strip() == "shut off"
    foreign.fs.sh("sed -i 's/:22/:22, 0:80/' web/spec.yaml")
    domains.virsh("start", "web")
    until(lambda: "port.eth0.80" in foreign.status, "the other one is made")
    until(lambda: " ports EADDRINUSE" in foreign.read("error"), "it is told")
    assert foreign.state == "running" and PORT not in foreign.status


def test_plugged_nic(libvirt, domains):
    """It comes with its forwards, or they are pending."""
    vm = libvirt.vm()
    vm.do("start")
    vm.wait("agent", 60)
    with closing(socket.create_server(("127.0.0.1", 0))) as s:
        port = s.getsockname()[1]
        text = libvirt.text + f"  eth1: {{network: user, ports: ['{port}:22']}}\n"
        vm.write("spec.yaml", text)
        until(lambda: vm.read("error"), "it is told")
        vm.error("EADDRINUSE", "nics.eth1.ports", str(port))
    until(lambda: vm.read("pending") == "nics.eth1.ports\n", "it is looked at")
    assert "ua-eth1" in domains.virsh("dumpxml", vm.name).stdout
    vm.write("spec.yaml", text)
    until(lambda: vm.read("pending") == "", "it is there")
    assert vm.status["port.eth1.22"] == f"127.0.0.1:{port}" and vm.read("pending") == ""
    vm.write("spec.yaml", libvirt.text)
    until(lambda: vm.read("pending") == "", "it has gone")
    until(lambda: "port.eth1.22" not in vm.status, "its forward has gone")


def test_other_network(libvirt):
    vm = libvirt.vm()
    with fails(EOPNOTSUPP):
        vm.write("spec.yaml", libvirt.spec(nic="{network: default, ports: ['0:22']}"))
    vm.error("EOPNOTSUPP", "nics.eth0.ports", "network: user")
