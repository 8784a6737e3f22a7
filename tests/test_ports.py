# SPDX-License-Identifier: Apache-2.0
"""Forwards into a guest, changed while it runs."""
import socket
from contextlib import closing
from errno import EADDRINUSE

import pytest

from lib.backends import real
from lib.util import fails, until

pytestmark = real


def banner(address):
    """What the guest's ssh server says at that port of the host, or nothing."""
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), 5) as s:
            return s.recv(100).startswith(b"SSH-2.0-")
    except OSError:
        return False


@pytest.fixture
def taken():
    with closing(socket.create_server(("127.0.0.1", 0))) as s:
        yield s.getsockname()[1]


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as s:
        return s.getsockname()[1]


def spec(backend, *ports):
    return backend.spec(nic=f"{{network: user, ports: {list(ports)}}}")


@pytest.fixture
def up(backend):
    vm = backend.vm(spec=spec(backend))
    vm.do("start")
    vm.wait("agent", 60)
    return vm


def test_change(up, backend):
    assert "port.eth0.22" not in up.status
    up.write("spec.yaml", spec(backend, "0:22"))
    first = up.status["port.eth0.22"]
    assert until(lambda: banner(first), "the guest answers") and up.read("pending") == ""
    fixed = free_port()
    up.write("spec.yaml", spec(backend, f"{fixed}:22", "0:80"))
    assert up.status["port.eth0.22"] == f"127.0.0.1:{fixed}" and "port.eth0.80" in up.status
    assert banner(f"127.0.0.1:{fixed}") and not banner(first)
    # The same port of the host for another of the guest's: the old one has to go first.
    up.fs.sh(f"sed -i s/{fixed}:22/{fixed}:23/ web1/spec.yaml")
    assert up.status["port.eth0.23"] == f"127.0.0.1:{fixed}" and "port.eth0.22" not in up.status
    up.write("spec.yaml", spec(backend))
    assert not [key for key in up.status if key.startswith("port.")]
    assert up.read("pending") == "" and up.read("error") == ""


def test_taken(up, backend, taken):
    """The write fails, and nothing is changed: neither what is in the document nor what runs."""
    def shown():
        """Two forwards to one port are told in any order."""
        return up.spec, {key: sorted(value.split()) for key, value in up.status.items()}

    mine = free_port()
    up.write("spec.yaml", spec(backend, f"{mine}:22", "0:22"))
    before = shown()
    for ports in ([f"{taken}:22"], [f"{mine}:23", f"{taken}:80", "0:81"]):
        with fails(EADDRINUSE):
            up.write("spec.yaml", spec(backend, *ports))
        up.error("EADDRINUSE", "nics.eth0.ports", str(taken))
        (up / "spec.yaml.rej").unlink()
        assert shown() == before and up.read("pending") == ""
        assert until(lambda: banner(f"127.0.0.1:{mine}"), "the guest answers")
        assert not banner(f"127.0.0.1:{taken}")
    up.fs.sh(f"cp web1/spec.yaml $BASE/spec; sed -i s/{mine}/{taken}/ web1/spec.yaml", check=False,
             env={"BASE": str(up.fs.base)})
    assert up.error("EADDRINUSE")[1] != "EBADMSG" and shown() == before


def test_two_nics(backend, taken):
    """One fails, so the other is put back."""
    nics = "nics:\n  eth0: {ports: [%s]}\n  eth1: {ports: [%s]}\n"
    text = backend.text.split("nics:")[0]
    vm = backend.vm(spec=text + nics % ("", ""))
    vm.do("start")
    with fails(EADDRINUSE):
        vm.write("spec.yaml", text + nics % ("'0:22'", f"'{taken}:22'"))
    until(lambda: "port.eth0.22" not in vm.status, "it is put back")
    assert vm.spec == text + nics % ("", "")


def test_after_a_restart(up, backend, fs):
    """What was changed live is what runs, to a successor of the daemon as well."""
    up.write("spec.yaml", spec(backend, "0:22"))
    before = up.status["port.eth0.22"]
    fs.kill9()
    fs.restart()
    until(lambda: up.status.get("port.eth0.22") == before, "it is found again")
    assert up.read("pending") == ""
    up.write("spec.yaml", spec(backend))
    assert "port.eth0.22" not in up.status and not banner(before)
