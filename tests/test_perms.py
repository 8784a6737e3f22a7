# SPDX-License-Identifier: Apache-2.0
"""Who may do what: ordinary Unix permissions are the whole access control."""
import os
import pwd
import re
import resource
import shutil
import socket
from pathlib import Path

import pytest

from lib.util import alive, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be others")

ALICE, BOB, TEAM = 54321, 54322, 54399  # of no account


def as_user(fs, user, script, **how):
    return fs.sh(script, user=user, **how)


def refused(fs, user, script, why="Permission denied"):
    done = as_user(fs, user, script, check=False)
    assert done.returncode != 0, f"{script!r} went through"
    assert why in done.stderr, done.stderr


@pytest.fixture
def alice(fs):
    """A VM that Alice made, in a root that is like /tmp."""
    os.chmod(fs.mnt, 0o1777)
    as_user(fs, ALICE, "umask 022; mkdir web1; echo 'backend: sim' > web1/spec.yaml")
    return fs.vm("web1")


def test_root_decides_who_makes_vms(fs):
    assert fs.mnt.stat().st_mode & 0o777 == 0o755
    refused(fs, ALICE, "mkdir web1")
    os.chown(fs.mnt, 0, ALICE)
    os.chmod(fs.mnt, 0o775)
    as_user(fs, ALICE, "mkdir web1")
    refused(fs, BOB, "mkdir web2")
    assert fs.names() == ["web1"]


def test_maker_owns_it(alice):
    for path in (alice.dir, alice / "state", alice / "spec.yaml", alice / "console.log"):
        assert (path.stat().st_uid, path.stat().st_gid) == (ALICE, ALICE), path
    as_user(alice.fs, ALICE, "echo start > web1/state; echo stop > web1/state; "
                             "sed -i 's/$/ #/' web1/spec.yaml; rmdir web1")
    assert alice.fs.names() == []


def test_others_only_look(alice):
    as_user(alice.fs, BOB, "cat web1/state web1/status web1/wait/stopped; ls -l web1")
    for script in ("echo start > web1/state", "echo x > web1/spec.yaml", "echo x > web1/console",
                   "touch web1/scratch", "echo poweroff > web1/sim"):
        refused(alice.fs, BOB, script)
    for script in ("rmdir web1", "mv web1 mine", "chmod 777 web1", "chmod 666 web1/state",
                   "chown 54322 web1"):
        refused(alice.fs, BOB, script, "Operation not permitted")
    assert alice.state == "stopped" and alice.fs.names() == ["web1"]


@pytest.mark.parametrize("umask, mode", [("022", 0o755), ("027", 0o750), ("077", 0o700)])
def test_umask(alice, umask, mode):
    as_user(alice.fs, ALICE, f"umask {umask}; mkdir web2")
    path = alice.fs.mnt / "web2"
    assert path.stat().st_mode & 0o777 == mode
    assert (path / "state").stat().st_mode & 0o777 == 0o644 & mode
    if not mode & 0o005:
        refused(alice.fs, BOB, "cat web2/state")
        refused(alice.fs, BOB, "cat web2/.io/console")


def test_mkdir_mode(alice):
    as_user(alice.fs, ALICE, "mkdir -m 700 web2")
    refused(alice.fs, BOB, "ls web2")


def test_chmod_of_the_directory(alice):
    as_user(alice.fs, ALICE, "chmod 700 web1")
    for script in ("ls web1", "cat web1/state", "cat web1/.io/console", "cat web1/wait/stopped"):
        refused(alice.fs, BOB, script)
    as_user(alice.fs, ALICE, "chmod 755 web1")
    as_user(alice.fs, BOB, "cat web1/state")


def test_chmod_of_one_file(alice):
    as_user(alice.fs, ALICE, "chmod 666 web1/state; chmod 600 web1/spec.yaml")
    as_user(alice.fs, BOB, "echo start > web1/state")
    assert alice.state == "running"
    refused(alice.fs, BOB, "cat web1/spec.yaml")
    assert (alice / "state").stat().st_mode & 0o777 == 0o666


def test_chmod_of_the_console(alice):
    as_user(alice.fs, ALICE, "echo start > web1/state; chmod 666 web1/console")
    as_user(alice.fs, BOB, "echo hello > web1/console; timeout 30 grep -q -m1 hello web1/console")
    as_user(alice.fs, ALICE, "chmod 600 web1/console")
    refused(alice.fs, BOB, "head -c1 web1/console")
    refused(alice.fs, BOB, "echo hello > web1/console")


def test_editors_keep_the_mode(alice):
    as_user(alice.fs, ALICE, "chmod 600 web1/spec.yaml; sed -i 's/$/ #/' web1/spec.yaml")
    assert (alice / "spec.yaml").stat().st_mode & 0o777 == 0o600
    refused(alice.fs, BOB, "cat web1/spec.yaml")


def test_group(alice):
    fs = alice.fs
    refused(fs, ALICE, f"chgrp {TEAM} web1", "Operation not permitted")  # she is not in it
    os.chown(alice.dir, -1, TEAM)
    os.chown(alice / "state", -1, TEAM)
    os.chmod(alice / "state", 0o664)
    refused(fs, BOB, "echo start > web1/state")
    fs.sh(f"setpriv --reuid={BOB} --regid={BOB} --groups={TEAM} sh -c 'echo start > web1/state'")
    assert alice.state == "running"


def test_new_owner_has_the_snapshots(alice):
    """And what it sleeps on: all is theirs, and goes on with their rights."""
    alice.do("start")
    alice.sim("remember blue")
    (alice / "snapshots/s1").mkdir()
    alice.wait("snapshots")
    alice.do("sleep")
    os.chown(alice.dir, BOB, BOB)
    data = next(alice.fs.state.glob("vms/*/data"))
    until(lambda: all((p.lstat().st_uid, p.lstat().st_gid) == (BOB, BOB)
                      for p in [data, *data.rglob("*")]), "all of it is Bob's")
    assert len({p.parent for p in data.rglob("*")}) == 3  # data itself, and both
    as_user(alice.fs, BOB, "echo wake > web1/state; echo restore s1 > web1/state")
    assert alice.state == "running" and alice.read("error") == ""


def test_setgid_root(fs):
    os.chown(fs.mnt, 0, TEAM)
    os.chmod(fs.mnt, 0o2777)
    as_user(fs, ALICE, "mkdir web1")
    st = (fs.mnt / "web1").stat()
    assert (st.st_uid, st.st_gid) == (ALICE, TEAM)


def test_sticky_root(alice):
    refused(alice.fs, BOB, "rmdir web1", "Operation not permitted")
    os.chmod(alice.fs.mnt, 0o777)
    as_user(alice.fs, BOB, "rmdir web1")


@pytest.fixture
def files(scratch):
    """secret: only for root; open: for all to read."""
    for name, mode in (("secret", 0o600), ("open", 0o644)):
        (scratch / name).write_bytes(bytes(4096))
        (scratch / name).chmod(mode)
    return scratch


@pytest.mark.parametrize("spec", ["disks: {root: {file: PATH}}", "disks: {root: {image: PATH}}",
                                  "boot: {kernel: PATH}", "boot: {kernel: OPEN, initrd: PATH}"])
def test_spec_does_not_lend_roots_rights(alice, files, spec):
    text = "backend: sim\n" + spec.replace("OPEN", str(files / "open")) + "\n"
    before = alice.spec
    secret = text.replace("PATH", str(files / "secret"))
    (files / "new").write_text(secret)
    done = as_user(alice.fs, ALICE, f"cat {files}/new > web1/spec.yaml", check=False)
    assert done.returncode != 0
    alice.error("EACCES", "secret")
    assert alice.spec == before


def test_file_must_be_writable_image_readable(alice, files):
    """A disk that is written needs the right to write."""
    (files / "new").write_text(f"backend: sim\ndisks: {{root: {{file: {files}/open}}}}\n")
    done = as_user(alice.fs, ALICE, f"cat {files}/new > web1/spec.yaml", check=False)
    assert done.returncode != 0
    alice.error("EACCES", "open")
    (files / "new").write_text(f"backend: sim\ndisks: {{root: {{image: {files}/open}}}}\n")
    as_user(alice.fs, ALICE, f"cat {files}/new > web1/spec.yaml")


def test_root_cannot_be_tricked_by_rename(alice, files):
    """Who brings the document counts, whoever wrote it."""
    (files / "new").write_text(f"backend: sim\nboot: {{kernel: {files}/secret}}\n")
    (files / "new").chmod(0o644)
    done = as_user(alice.fs, ALICE, f"cp {files}/new tmp; mv -f tmp spec.yaml",
                   cwd=alice.dir, check=False)
    assert done.returncode != 0
    alice.error("EACCES", "secret")


def test_root_may(fs, files):
    vm = fs.vm("web1", f"backend: sim\nboot: {{kernel: {files}/secret}}\n")
    vm.do("start")


@pytest.mark.qemu
def test_vmm_runs_as_the_owner(alice, guest, files):
    for name in ("kernel", "initrd"):
        shutil.copyfile(getattr(guest, name), files / name)
        (files / name).chmod(0o644)
    (files / "new").write_text("backend: qemu\naccel: tcg\nmemory: 256MiB\n"
                               f"boot: {{kernel: {files}/kernel, initrd: {files}/initrd, "
                               "cmdline: console=ttyS0 quiet}\n")
    fs = alice.fs
    as_user(fs, ALICE, f"cp {files}/new web1/spec.yaml; echo start > web1/state")
    status = Path(f"/proc/{alice.pid}/status").read_text().splitlines()
    uids = next(line for line in status if line.startswith("Uid:")).split()[1:]
    assert set(uids) == {str(ALICE)}
    alice.follow("console").expect("GUEST-UP")
    as_user(fs, ALICE, "echo kill > web1/state")


def fs_text(directory):
    return "".join(p.read_text(errors="replace") for p in directory.rglob("*") if p.is_file())


def test_ordinary_user_cannot_read_the_state_directory(alice):
    for path in (alice.fs.state, alice.fs.run):
        done = as_user(alice.fs, BOB, f"find {path} -type f -exec cat {{}} +", check=False)
        assert "backend: sim" not in done.stdout
    assert "backend: sim" in fs_text(alice.fs.state)  # it is there


def data_dir(vm):
    return vm.fs.state / f"vms/{vm.dir.stat().st_ino >> 32}/data"


def test_owner_cannot_hold_up_the_daemon(alice):
    """Opening a FIFO waits for its other end."""
    log = data_dir(alice) / "console.log"
    as_user(alice.fs, ALICE, f"rm -f {log}; mkfifo {log}")
    alice.do("start")
    alice.sim("print hello")
    assert alice.state == "running"


def test_sim_prints_into_nobody_elses_file(alice, files):
    log = data_dir(alice) / "console.log"
    os.link(files / "secret", log)
    alice.do("start")
    assert (files / "secret").read_bytes() == bytes(4096)


def test_terminal_follows_the_owner(alice):
    """Who gives a VM away can no longer type at it."""
    as_user(alice.fs, ALICE, "echo start > web1/state")
    before = os.open(os.readlink(alice / "tty"), os.O_RDWR | os.O_NOCTTY)
    as_user(alice.fs, ALICE, "echo stop > web1/state")
    os.chown(alice.dir, BOB, BOB)
    as_user(alice.fs, BOB, "echo start > web1/state")
    assert os.stat(os.readlink(alice / "tty")).st_uid == BOB
    assert os.read(before, 100) == b""  # hung up
    os.close(before)


@pytest.mark.qemu
def test_group_of_a_directory_lends_no_rights(fs, guest, files):
    """A set-group-ID root gives the machine a group, and not its VMM the membership."""
    nobody = pwd.getpwnam("nobody")
    shutil.copyfile(guest.kernel, files / "kernel")
    (files / "kernel").chmod(0o644)
    os.chown(fs.mnt, 0, TEAM)
    os.chmod(fs.mnt, 0o2777)
    fs.sh("setpriv --reuid=nobody --regid=nogroup --clear-groups mkdir web1")
    vm = fs.vm("web1", f"backend: qemu\naccel: tcg\nboot: {{kernel: {files}/kernel}}\n")
    assert vm.dir.stat().st_gid == TEAM
    vm.do("start")
    status = Path(f"/proc/{vm.pid}/status").read_text()
    ids = dict(re.findall(r"^(Uid|Gid|Groups):\s*(.*)$", status, re.M))
    assert set(ids["Uid"].split()) == {str(nobody.pw_uid)}
    assert set(ids["Gid"].split()) == {str(nobody.pw_gid)}
    assert str(TEAM) not in ids["Groups"].split()
    vm.do("kill")


@pytest.mark.qemu
def test_owner_cannot_send_the_daemon_to_another_socket(alice, guest, files):
    """A link in the owner's directory leads root nowhere that the owner could not go."""
    fs = alice.fs
    shutil.copyfile(guest.kernel, files / "kernel")
    (files / "kernel").chmod(0o644)
    alice.write("spec.yaml", f"backend: qemu\naccel: tcg\nboot: {{kernel: {files}/kernel}}\n")
    alice.do("start")
    pid, run = alice.pid, fs.run / str(alice.dir.stat().st_ino >> 32)
    fs.kill9()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(files / "private"))
        (files / "private").chmod(0o600)
        server.listen()
        server.setblocking(False)
        as_user(fs, ALICE, f"rm {run}/qmp; ln -s {files}/private {run}/qmp", cwd="/")
        fs.restart()
        with pytest.raises(BlockingIOError):
            server.accept()
    assert alice.state == "unknown"
    alice.do("kill")
    assert not alive(pid)


def test_data_of_any_depth_is_removed(alice):
    """More directories in one another than the daemon can have open at once."""
    data = data_dir(alice)
    resource.prlimit(alice.fs.pid, resource.RLIMIT_NOFILE, (300, 300))
    fd = os.open(data, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    as_user(alice.fs, ALICE, "rmdir web1")
    assert not data.parent.exists()
