# SPDX-License-Identifier: Apache-2.0
"""The names in the tree, their modes and sizes, making and removing and renaming VMs."""
import os
import stat
from contextlib import suppress
from errno import EBUSY, EEXIST, EINVAL, ENOENT, ENOTEMPTY, EPERM, EXDEV

import pytest

from lib.util import exists, fails, get, put, until

# name: kind and access of a VM's files
FILES = {
    "state": "rw",
    "spec.yaml": "rw",
    "pending": "r",
    "status": "r",
    "error": "r",
    "ip": "r",
    "pid": "r",
    "id": "r",
    "cmdline": "r",
    "stats": "r",
    "ssh_config": "r",
    "keys": "w",
    "console.log": "r",
    "sim": "rw",
    "console": "link",
    "monitor": "link",
    "events": "link",
    "wait": "link",
}
DIRS = {"snapshots", "exec", "disks", "nics", "shares", "devices"}
STREAMS = {"console": "rw", "events": "r"}
WAITS = {"ssh", "asleep", "snapshots", "stopped", "running", "paused", "crashed", "ip", "agent", "cloud-init"}
HOST_FILES = ["version", "help", "backends/sim/status", "backends/qemu/status",
              "hosts/local/status", "hosts/local/node"]
READ, WRITE = 0o444, 0o222


def access(mode):
    return ("r" if mode & 0o400 else "") + ("w" if mode & 0o200 else "")


@pytest.mark.parametrize("name", FILES)
def test_file_is_there(vm, name):
    kind, mode = FILES[name], (vm / name).lstat().st_mode
    assert name in os.listdir(vm.dir)
    if kind == "link":
        assert stat.S_ISLNK(mode)
        return
    assert stat.S_ISREG(mode)
    assert access(mode) == kind
    if kind == "r":
        assert not mode & WRITE
    if kind == "w":
        assert not mode & READ


def test_no_other_files(vm):
    assert set(os.listdir(vm.dir)) - {"tty"} == set(FILES) | DIRS


def test_streams_are_behind_links(vm):
    for name in ("console", "events", "wait"):
        assert os.readlink(vm / name) == f".io/{name}"
    assert ".io" not in os.listdir(vm.dir)
    assert stat.S_ISDIR((vm / ".io").stat().st_mode)
    assert set(os.listdir(vm / ".io")) >= {"console", "events", "wait"}
    for name, kind in STREAMS.items():
        mode = (vm / ".io" / name).lstat().st_mode
        assert stat.S_ISREG(mode) and access(mode) == kind
    assert set(os.listdir(vm / "wait")) == WAITS
    for name in WAITS:
        assert access((vm / "wait" / name).stat().st_mode) == "r"


def test_tty_is_a_link_to_a_terminal(vm):
    vm.do("start")
    assert os.readlink(vm / "tty").startswith("/dev/pts/")


@pytest.mark.parametrize("state", ["stopped", "running", "crashed"])
def test_sizes_are_true(vm, state):
    vm.to(state)
    with fails(EINVAL):
        vm.do("frobnicate")  # so that `error` has a text
    for name, kind in FILES.items():
        if kind in ("r", "rw"):
            text = get(vm / name)
            assert (vm / name).stat().st_size == len(text), name
            assert not text or text.endswith(b"\n"), name


def test_directory_entries_agree_with_stat(vm):
    """What readdir says of type and inode number is what stat says, and numbers are unique."""
    seen = {}
    for where in (vm.fs.mnt, vm.dir, vm / ".io", vm / ".io/wait"):
        for entry in os.scandir(where):
            st = os.lstat(entry.path)
            assert entry.inode() == st.st_ino, entry.path
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(st.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(st.st_mode)
            seen.setdefault(st.st_ino, set()).add(entry.path)
    assert not [paths for paths in seen.values() if len(paths) > 1]


def test_host_files(fs):
    assert {"help", "version", "events", "backends", "hosts"} <= set(os.listdir(fs.mnt / ".vmfs"))
    assert os.path.islink(fs.mnt / ".vmfs/events")  # for cp -r, as in a VM
    assert "local" in os.listdir(fs.mnt / ".vmfs/hosts")
    assert {"sim", "qemu"} <= set(os.listdir(fs.mnt / ".vmfs/backends"))
    for name in HOST_FILES:
        path = fs.mnt / ".vmfs" / name
        assert fs.host(name).endswith("\n"), name
        assert access(path.stat().st_mode) == "r", name
        # The node's load changes while we look.
        until(lambda: path.stat().st_size == len(get(path)), f"the true size of {name}")


def test_host_node(fs):
    node = dict(line.split(" ", 1) for line in fs.host("hosts/local/node").splitlines())
    assert int(node["cpus"]) == os.cpu_count()
    assert {"memory", "free", "load"} <= set(node)


def test_host_list(fs):
    fs.vm("b", "backend: sim\n")
    fs.vm("a", "backend: sim\nsim: {ip: 192.0.2.7}\n").do("start")
    assert sorted(fs.host("list").splitlines()) == ["a running sim local 192.0.2.7",
                                                    "b stopped sim local -"]


def test_backend_sim_is_usable(fs):
    assert "usable yes" in fs.host("backends/sim/status").splitlines()


def test_help_tells_of_every_file_and_verb(vm):
    text = vm.fs.host("help")
    verbs = ["start", "stop", "kill", "pause", "resume", "reboot", "reset"]
    keys = ["backend", "cpus", "memory", "disks", "nics", "stop_timeout"]
    for word in [*FILES, *DIRS, "tty", "spec.yaml.rej", *verbs, *keys]:
        assert word in text, word


def test_root_lists_the_machines(fs):
    fs.vm("b")
    fs.vm("a")
    assert set(os.listdir(fs.mnt)) == {".vmfs", "a", "b"}
    assert fs.sh("echo */").stdout == "a/ b/\n"


def test_names(fs):
    for name in ("a", "0", "A.b_c-d", "x" * 63):
        (fs.mnt / name).mkdir()
        assert name in fs.names()
    with fails(EEXIST):
        (fs.mnt / "a").mkdir()
    made = fs.sh("mktemp -d web-XXXXXX").stdout.strip()
    assert made in fs.names()


def test_new_vm(fs):
    vm = fs.vm("new")
    assert vm.state == "stopped"
    assert vm.spec == "" and vm.read("error") == "" and vm.read("pending") == ""
    assert vm.read("ip") == "" and vm.read("pid") == "" and vm.read("console.log") == ""
    status = vm.status
    assert status["state"] == "stopped" and status["host"] == "local"
    assert {"since", "backend"} <= set(status)


def test_ids_are_small_unique_and_steady(fs):
    ids = {name: int(fs.vm(name).read("id")) for name in "abc"}
    assert len(set(ids.values())) == 3
    assert all(0 < i < 1 << 20 for i in ids.values())
    os.rename(fs.mnt / "a", fs.mnt / "z")
    assert int(fs.vm("z").read("id")) == ids["a"]


def test_rmdir_removes_all(fs):
    fs.vm("other", "backend: sim\n")
    before = fs.stored()
    vm = fs.vm("web1", "backend: sim\n").to("running")
    vm.do("stop")
    vm.dir.rmdir()
    assert fs.names() == ["other"]
    with fails(ENOENT):
        vm.read("state")
    # Also from the disk, which happens when nobody waits.
    until(lambda: fs.stored() <= before, "nothing is left of the VM on disk")
    fs.vm("web1")
    assert vm.spec == ""


def test_open_file_of_a_removed_vm(vm):
    """An old descriptor never answers with the data of another VM of that name."""
    with open(vm / "spec.yaml", "rb", buffering=0) as f:
        vm.dir.rmdir()
        vm.fs.vm("web1", "backend: sim\ncpus: 5\n")
        with suppress(OSError):
            assert b"cpus: 5" not in f.read()


def test_rename(fs, vm):
    spec, number = vm.spec, vm.read("id")
    os.rename(vm.dir, fs.mnt / "web2")
    vm.name = "web2"
    assert fs.names() == ["web2"]
    assert (vm.spec, vm.read("id")) == (spec, number)
    vm.do("start")
    assert vm.state == "running"


def test_rename_refused(fs, vm):
    other = fs.vm("web2", "backend: sim\n")
    with fails(EEXIST, ENOTEMPTY):
        os.rename(vm.dir, other.dir)
    with pytest.raises(OSError):
        os.rename(vm.dir, other / "web1")
    with fails(EINVAL):
        os.rename(vm.dir, fs.mnt / "-bad")
    with pytest.raises(OSError):
        os.rename(vm.dir, fs.mnt / ".vmfs/web1")
    assert fs.names() == ["web1", "web2"]
    assert fs.sh("mv web1 web2", check=False).returncode != 0
    assert fs.names() == ["web1", "web2"] and set(os.listdir(other.dir)) - {"tty"} == (
        set(FILES) | DIRS)


@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_live_vm_stays(vm, state):
    vm.to(state)
    with fails(EBUSY):
        vm.dir.rmdir()
    vm.error("EBUSY")
    with fails(EBUSY):
        os.rename(vm.dir, vm.fs.mnt / "web2")
    vm.error("EBUSY")
    assert vm.fs.names() == ["web1"] and vm.state == state


def test_a_crashed_vm_can_go(vm):
    vm.to("crashed")
    os.rename(vm.dir, vm.fs.mnt / "web2")
    (vm.fs.mnt / "web2").rmdir()
    assert vm.fs.names() == []


def test_only_vms_in_the_root(fs, vm):
    with fails(EPERM):
        os.open(fs.mnt / "file", os.O_CREAT | os.O_WRONLY)
    with fails(EPERM):
        os.symlink("x", fs.mnt / "link")
    with pytest.raises(OSError):
        (fs.mnt / ".vmfs/x").mkdir()
    with pytest.raises(OSError):
        (fs.mnt / ".vmfs").rmdir()
    assert set(os.listdir(fs.mnt)) == {".vmfs", "web1"}


@pytest.mark.parametrize("name", [n for n in FILES if n != "spec.yaml"])
def test_fixed_files_stay(vm, name):
    with fails(EPERM):
        os.unlink(vm / name)
    with fails(EPERM):
        os.rename(vm / name, vm / "elsewhere")
    (vm / "scratch").write_text("x")
    with fails(EPERM):
        os.rename(vm / "scratch", vm / name)
    assert exists(vm / name)


def test_links_and_moves_between_vms(fs, vm):
    other = fs.vm("web2")
    (vm / "scratch").write_text("x")
    with fails(EPERM):
        os.link(vm / "scratch", vm / "hard")
    with fails(EXDEV):
        os.rename(vm / "scratch", other / "scratch")


def test_seek_in_a_directory(fs, vm):
    """Any offset, also one that no listing gave."""
    for path in (fs.mnt, vm.dir, vm / ".io", fs.mnt / ".vmfs", fs.mnt / ".vmfs/backends"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for offset in (1, 3, 20, 100, 255, 257, 300, 2**31, 2**32 + 5, 2**62):
                os.lseek(fd, offset, os.SEEK_SET)
                os.listdir(fd)
        finally:
            os.close(fd)
    assert vm.state == "stopped"


def test_scratch_files(vm):
    """As editors leave them: any other name, in memory, and no meaning."""
    path = vm / ".spec.yaml.swp"
    path.write_bytes(b"x" * 100_000)
    with open(path, "r+b") as f:
        f.seek(50_000)
        f.write(b"y")
        f.truncate(60_000)
        os.fsync(f.fileno())
    os.chmod(path, 0o600)
    os.utime(path, (1, 1))
    assert path.read_bytes() == b"x" * 50_000 + b"y" + b"x" * 9_999
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.name in os.listdir(vm.dir)
    os.rename(path, vm / "4913")
    os.unlink(vm / "4913")
    assert set(os.listdir(vm.dir)) - {"tty"} == set(FILES) | DIRS


def test_reads_are_whole(vm):
    """A descriptor read again from 0 is current; a read at an offset continues the same text."""
    with open(vm / "state", "rb", buffering=0) as f:
        assert f.read(4) + f.read(100) == b"stopped\n"
        vm.do("start")
        assert os.pread(f.fileno(), 100, 0) == b"running\n"


@pytest.mark.parametrize("name", [n for n, kind in FILES.items() if kind == "r"])
def test_read_only_files(vm, name):
    """Also for root, whom mode bits do not stop."""
    before = vm.read(name)
    with pytest.raises(OSError):
        put(vm / name, "x\n", 0)
    assert vm.read(name) == before
