# SPDX-License-Identifier: Apache-2.0
"""Directories of the host in a guest of libvirt's, which runs virtiofsd itself."""
import os
import re
from errno import EOPNOTSUPP, EPERM

import pytest

from lib.backends import on_libvirt
from lib.util import exists, fails, processes, until
from lib.vm import Shell
from test_shares import VIRTIOFSD, needs_root

pytestmark = [pytest.mark.parametrize("backend", [on_libvirt], indirect=True),
              pytest.mark.skipif(not os.access(VIRTIOFSD, os.X_OK), reason=f"no {VIRTIOFSD}")]


def servers(path):
    return processes(f"source={path}")


def live(domains, name="web1"):
    return domains.virsh("dumpxml", name).stdout


def test_come_and_go(backend, domains, scratch):
    """One from the start on, and one that is plugged, by a link and by an edit."""
    (scratch / "hello").write_text("from the host\n")
    vm = backend.vm(spec=backend.spec(extra=f"shares: {{src: {{path: {scratch}}}}}\n"))
    vm.do("start")
    until(lambda: vm.status.get("share.src") == "virtiofs", "it is looked at")
    assert vm.read("pending") == "" and os.readlink(vm / "shares/src") == str(scratch)
    sh = Shell(vm, backend)
    sh("mkdir -p /mnt /more; mount -t virtiofs src /mnt && cat /mnt/hello", "from the host")
    sh("echo from the guest > /mnt/answer; sync; cat /mnt/answer", "from the guest")
    assert (scratch / "answer").read_text() == "from the guest\n"
    more = scratch / "more & <more>"
    more.mkdir()
    os.symlink(more, vm / "shares/more")
    assert vm.read("pending") == ""
    sh("mount -t virtiofs more /more && echo there > /more/file; cat /more/file", "there")
    assert (more / "file").read_text() == "there\n"
    vm.fs.kill9()
    vm.fs.restart()
    until(lambda: vm.status.get("share.more") == "virtiofs", "it is found again")
    sh.console = vm.follow("console")
    sh("umount /mnt /more; echo ok", "ok")
    os.unlink(vm / "shares/more")
    vm.write("spec.yaml", backend.spec())
    until(lambda: not servers(scratch) and not servers(more), "their servers have ended")
    assert vm.read("pending") == "" and "<filesystem" not in live(domains)
    until(lambda: "share.src" not in vm.status, "it is told")
    vm.do("kill")
    vm.do("start")
    assert "memfd" not in live(domains) and vm.read("pending") == ""


def test_memory_that_is_not_shared(backend, scratch):
    """Then a share waits for the next start; 9p always does."""
    vm = backend.vm(spec=backend.spec())
    vm.do("start")
    os.symlink(scratch, vm / "shares/src")
    assert vm.read("pending") == "shares.src\n"
    vm.write("spec.yaml", backend.spec(
        extra=f"shares: {{src: {{path: {scratch}, readonly: true}}}}\n"))
    assert vm.read("pending") == "shares.src\n"
    vm.do("kill")
    (scratch / "hello").write_text("from the host\n")
    vm.do("start")
    until(lambda: vm.status.get("share.src") == "9p", "it is looked at")
    assert vm.read("pending") == ""
    with fails(EOPNOTSUPP):
        vm.write("spec.yaml", backend.spec(
            extra=f"shares: {{src: {{path: {scratch}, type: virtiofs, readonly: true}}}}\n"))


def test_foreign(backend, fs, domains, scratch):
    """Shown as its XML has it, whatever it is called there; and changed there."""
    domains.define("db", devices=f"""
    <filesystem type='mount' accessmode='mapped'><source dir='{scratch}'/><target dir='a tag'/>
    </filesystem>""")
    until(lambda: exists(fs.mnt / "db/shares/share0"), "it is shown")
    vm = fs.vm("db")
    assert os.readlink(vm / "shares/share0") == str(scratch)
    assert re.search(r"share0: \{path: \"[^\"]+\", type: 9p\}", vm.spec)
    os.symlink("/srv", vm / "shares/src")
    xml = domains.virsh("dumpxml", "--inactive", "db").stdout
    assert "accessmode='mapped'" in xml and "<target dir='a tag'/>" in xml
    assert "<source type='memfd'/>" in xml and "<target dir='src'/>" in xml
    os.unlink(vm / "shares/share0")
    assert "a tag" not in domains.virsh("dumpxml", "--inactive", "db").stdout


@needs_root
def test_with_libvirts_rights(backend, fs, scratch):
    """Which are more than those of an owner who is not root."""
    os.chmod(fs.mnt, 0o1777)
    fs.sh("mkdir web1", user=54322)
    vm = fs.vm("web1")
    vm.write("spec.yaml", backend.spec(extra=f"shares: {{src: {{path: {scratch}}}}}\n"))
    with fails(EPERM):
        vm.do("start")
    vm.error("EPERM", "shares", "rights")
