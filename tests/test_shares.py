# SPDX-License-Identifier: Apache-2.0
"""Directories of the host in a real guest: by virtiofsd, or by QEMU itself (9p)."""
import os
import signal
from contextlib import suppress
from errno import EOPNOTSUPP
from pathlib import Path

import pytest

from lib.util import alive, fails, processes, until
from lib.vm import Shell

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
pytestmark = [pytest.mark.qemu,
              pytest.mark.skipif(not os.access(VIRTIOFSD, os.X_OK), reason=f"no {VIRTIOFSD}")]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be others")
BOB = 54322  # of no account


@pytest.fixture
def shared(qemu, scratch):
    """A machine with a directory that it may mount, and more to come."""
    vm = qemu.vm(spec=qemu.spec(extra="shared_memory: true\nshares:\n"
                                      f"  src: {{path: {scratch}, type: virtiofs}}\n"))
    (scratch / "hello").write_text("from the host\n")
    vm.do("start")
    yield vm
    if vm.state == "running":
        vm.do("kill")
    until(lambda: not servers(scratch), "no virtiofsd is left")


def servers(path):
    """Those that serve it: virtiofsd is two processes, one of which is shut in."""
    return {p for p in processes(f"source={path}") if alive(p)}


@pytest.fixture
def mounted(shared, qemu):
    sh = Shell(shared, qemu)
    sh("mkdir -p /mnt; mount -t virtiofs src /mnt && echo ok", "ok")
    return sh


def test_the_guest_reads_and_writes(shared, mounted, scratch):
    assert shared.status["share.src"] == "virtiofs"
    mounted("cat /mnt/hello", "from the host")
    mounted("echo from the guest > /mnt/answer; sync; cat /mnt/answer", "from the guest")
    assert (scratch / "answer").read_text() == "from the guest\n"
    assert (scratch / "answer").stat().st_uid == os.geteuid()


def test_come_and_go(shared, mounted, scratch):
    """While it runs, the one that it was started with included; then it can be saved again."""
    for word in ("sleep", "snapshot"):
        with fails(EOPNOTSUPP):
            if word == "sleep":
                shared.do("sleep")
            else:
                (shared / "snapshots/s").mkdir()
        shared.error("EOPNOTSUPP", "virtiofs", "rm shares/src")
    assert shared.state == "running"
    more = scratch / "more, of \\ it"
    more.mkdir()
    os.symlink(more, shared / "shares/more")
    assert shared.read("pending") == "" and shared.status["share.more"] == "virtiofs"
    mounted("mkdir -p /more; mount -t virtiofs more /more && echo ok", "ok")
    mounted("echo there > /more/file; cat /more/file", "there")
    assert (more / "file").read_text() == "there\n"
    mounted("umount /more; umount /mnt; echo ok", "ok")
    os.unlink(shared / "shares/more")
    os.unlink(shared / "shares/src")
    assert shared.read("pending") == "" and "share.src" not in shared.status
    until(lambda: not servers(scratch) and not servers(more), "their servers have ended")
    mounted("ls /sys/bus/virtio/drivers/virtiofs | grep -c virtio", "0")
    shared.do("sleep")
    shared.do("wake")
    os.symlink(scratch, shared / "shares/src")
    mounted("mount -t virtiofs src /mnt && cat /mnt/hello", "from the host")


def test_taken_away_while_it_is_mounted(shared, mounted, scratch):
    """virtiofs lets go of it in the middle of it: what follows fails there."""
    os.unlink(shared / "shares/src")
    assert shared.read("pending") == ""
    mounted("ls /mnt > /dev/null 2>&1 || echo gone", "gone")
    until(lambda: not servers(scratch), "its server has ended")


def test_killed_daemon(shared, mounted, scratch):
    """It is served on, and goes with its machine, or before."""
    before = servers(scratch)
    shared.fs.kill9()
    shared.fs.restart()
    until(lambda: shared.state == "running", "it is found again")
    assert servers(scratch) == before and shared.status["share.src"] == "virtiofs"
    mounted.console = shared.follow("console")
    mounted("cat /mnt/hello", "from the host")
    with fails(EOPNOTSUPP):
        shared.do("sleep")
    mounted("umount /mnt; echo ok", "ok")
    os.unlink(shared / "shares/src")
    until(lambda: not servers(scratch), "its server has ended")
    assert shared.read("pending") == ""


def test_killed_server(shared, mounted, scratch):
    for pid in servers(scratch):
        with suppress(ProcessLookupError):  # the one goes when the other does
            os.kill(pid, signal.SIGKILL)
    until(lambda: shared.status["share.src"] == "lost", "it is told")
    assert shared.state == "running"
    shared.do("kill")
    shared.do("start")
    mounted.console.expect("GUEST-UP")
    mounted("mkdir -p /mnt; mount -t virtiofs src /mnt; cat /mnt/hello", "from the host")


@pytest.mark.parametrize("verb", ["kill", "stop 0"])
def test_nothing_is_left(shared, scratch, verb):
    assert servers(scratch)
    shared.do(verb)
    until(lambda: not servers(scratch), "no virtiofsd is left")


def test_killed_qemu(shared, scratch):
    os.kill(shared.pid, signal.SIGKILL)
    shared.wait("crashed")
    until(lambda: not servers(scratch), "no virtiofsd is left")
    assert "lost" not in shared.fs.log_text


def test_memory_that_is_not_shared(qemu, scratch):
    """Then a share waits for the next start."""
    vm = qemu.vm(spec=qemu.spec())
    vm.do("start")
    os.symlink(scratch, vm / "shares/src")
    assert vm.read("pending") == "shares.src\n"
    assert not servers(scratch)
    os.unlink(vm / "shares/src")
    assert vm.read("pending") == ""


def test_mistakes(qemu, scratch):
    vm = qemu.vm(spec=qemu.spec())
    with fails(EOPNOTSUPP):
        vm.write("spec.yaml", qemu.spec(
            extra=f"shares: {{a: {{path: {scratch}, type: virtiofs, readonly: true}}}}\n"))
    vm.error("EOPNOTSUPP", "shares.a.readonly", "9p")


def test_what_auto_is(qemu, scratch):
    """readonly is 9p, which needs no process, and whose machine can sleep."""
    vm = qemu.vm(spec=qemu.spec(extra=f"shares: {{a: {{path: {scratch}, readonly: true}}, "
                                      f"b: {{path: {scratch}, type: 9p}}, "
                                      f"c: {{path: {scratch}}}}}\n"))
    vm.do("start")
    assert (vm.status["share.a"], vm.status["share.b"]) == ("9p", "9p")
    assert vm.status["share.c"] == ("9p" if os.geteuid() else "virtiofs")


@needs_root
def test_with_the_owners_rights(qemu, scratch):
    """An owner who is not root: what is not theirs stays out of reach, what is made is theirs."""
    (scratch / "secret").write_text("x\n")
    os.chmod(scratch / "secret", 0o600)
    (scratch / "own").mkdir()
    os.chown(scratch / "own", BOB, BOB)
    for part in Path(qemu.guest.kernel).parents:
        assert part.stat().st_mode & 0o001
    os.chmod(qemu.fs.mnt, 0o1777)
    qemu.fs.sh("mkdir web1", user=BOB)
    vm = qemu.fs.vm("web1")
    vm.write("spec.yaml", qemu.spec(
        extra=f"shares: {{src: {{path: {scratch}, type: virtiofs}}}}\n"))
    vm.do("start")
    sh = Shell(vm, qemu)
    sh("mkdir -p /mnt; mount -t virtiofs src /mnt && echo ok", "ok")
    sh("cat /mnt/secret 2>/dev/null || echo refused", "refused")
    sh("echo mine > /mnt/own/file; cat /mnt/own/file", "mine")
    st = (scratch / "own/file").stat()
    assert (st.st_uid, st.st_gid) == (BOB, BOB)
    vm.do("kill")
    until(lambda: not servers(scratch), "no virtiofsd is left")
