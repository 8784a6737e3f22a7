# SPDX-License-Identifier: Apache-2.0
"""autostart is libvirt's own: its daemon starts the machine, and virsh and spec.yaml say the same."""

import pytest

from lib.backends import on_libvirt
from lib.util import until
from test_lifetime import reboot

pytestmark = pytest.mark.parametrize("backend", [on_libvirt], indirect=True)
SPEC = "backend: libvirt\naccel: tcg\nmemory: 64MiB  # is enough\nstop_timeout: 7s\nnics: {}\n"


def flag(domains, name="web1"):
    return "Autostart:      enable" in domains.virsh("dominfo", name).stdout


def test_both_ways(backend, fs, domains):
    vm = backend.vm(spec=SPEC + "autostart: true\n")
    vm.do("start")
    assert flag(domains) and vm.read("pending") == ""
    for value in ("false", "true", "false"):
        fs.sh(f"sed -i 's/autostart: .*/autostart: {value}/' web1/spec.yaml")
        assert flag(domains) == (value == "true")
        assert vm.read("pending") == "" and "# is enough" in vm.spec
    # Nobody is told of it: it is seen when the domain is looked at for another reason.
    domains.virsh("autostart", "web1")
    vm.do("kill")
    until(lambda: "autostart: true" in vm.spec, "it is seen")
    assert "stop_timeout: 7000ms\n" in vm.spec and flag(domains)
    domains.virsh("autostart", "--disable", "web1")
    fs.stop()
    fs.restart()
    until(lambda: "autostart: true" not in vm.spec, "it is seen")
    assert not flag(domains)


def test_started_by_libvirt_alone(backend, fs, domains):
    """Not by vmfs as well, which starts what libvirt does not know yet."""
    vm = backend.vm(spec=SPEC + "autostart: true\n")
    new = backend.vm("web2", spec=SPEC + "autostart: true\n")
    vm.do("start")
    vm.do("kill")
    reboot(fs)
    new.wait("running")
    assert flag(domains, "web2")
    until(lambda: vm.state == "stopped", "it is found")
    new.do("kill")
    domains.stop()
    for path in (domains.run / "qemu").glob("autostarted"):
        path.unlink()
    domains.start()
    for one in (vm, new):
        one.wait("running")
