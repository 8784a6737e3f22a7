# SPDX-License-Identifier: Apache-2.0
"""Snapshots: taken, restored, exported and imported, whatever happens in between."""
import hashlib
import io
import os
import re
import signal
import subprocess
import tarfile
import time
from errno import (EBADMSG, EBUSY, EEXIST, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOSPC, EOPNOTSUPP,
                   EPERM)

import pytest

from lib.util import exists, fails, until


def data(fs, vm):
    """The data directory of a VM."""
    for meta in (fs.state / "vms").glob("*/meta"):
        if f"name={vm.name}\n" in meta.read_text():
            return meta.parent / "data"
    raise AssertionError(vm.name)


def ready(vm, name):
    vm.wait("snapshots", 60)
    assert vm.read(f"snapshots/{name}/state") == "ready\n", vm.read("error")


def take(vm, name):
    (vm / "snapshots" / name).mkdir()
    ready(vm, name)


def names(vm):
    return sorted(os.listdir(vm / "snapshots"))


@pytest.fixture
def exports(backend):
    """A snapshot is files, of vmfs's own."""
    if backend.booked:
        pytest.skip("its snapshots are in the hypervisor's books")


@pytest.fixture
def up(backend):
    vm = backend.savable_vm()
    backend.up(vm)
    backend.remember(vm, "blue")
    return vm


def test_take_and_restore(up, backend):
    start = time.monotonic()
    (up / "snapshots/s1").mkdir()
    assert time.monotonic() - start < 5
    ready(up, "s1")
    assert up.state == "running" and up.read("error") == ""
    assert set(os.listdir(up / "snapshots/s1")) == backend.snapshot_files
    backend.remember(up, "red")
    assert backend.recall(up) == "red"
    up.do("restore s1")
    assert up.state == "running" and up.read("error") == "" and up.read("pending") == ""
    assert backend.recall(up) == "blue"
    assert up.wait("ip", 60).split()[0] == backend.ip
    backend.remember(up, "green")
    up.do("restore s1")
    assert backend.recall(up) == "blue"
    up.do("kill")
    up.do("restore s1")
    assert up.state == "running" and backend.recall(up) == "blue"


def test_files_are_what_the_manifest_says(exports, up, fs):
    take(up, "s1")
    fs.sh("cd web1/snapshots/s1 && sha256sum -c --quiet manifest", timeout=120)
    for name in os.listdir(up / "snapshots/s1"):
        path = up / "snapshots/s1" / name
        assert path.stat().st_size == len(path.read_bytes())
        with fails(EPERM):
            path.unlink()
        with fails(EPERM):
            os.open(path, os.O_WRONLY)
    assert up.read("snapshots/s1/spec.yaml") == up.spec


def test_of_a_stopped_machine(backend):
    vm = backend.savable_vm()
    take(vm, "cold")
    assert set(os.listdir(vm / "snapshots/cold")) == backend.snapshot_files - {"memory"}
    vm.do("start")
    vm.do("restore cold")
    assert vm.state == "stopped" and vm.read("pid") == ""
    vm.do("start")
    assert vm.state == "running"


def test_names(up):
    take(up, "s1")
    for name, errno in (("s1", EEXIST), (".hidden", EINVAL), ("a b", EINVAL),
                        ("n" * 64, ENAMETOOLONG)):
        with fails(errno):
            (up / "snapshots" / name).mkdir()
    assert names(up) == ["s1"]
    with fails(ENOENT):
        up.do("restore s2")
    up.error("ENOENT", "s2", "s1")
    for words in ("restore", "restore s1 s1"):
        with fails(EINVAL):
            up.do(words)
    up.error("EINVAL", "snapshot")


def test_rmdir(up, backend, fs):
    before = fs.stored()
    take(up, "s1")
    assert backend.booked or fs.stored() > before
    with fails(ENOENT):
        up.do("restore s2")
    (up / "snapshots/s1").rmdir()
    assert names(up) == [] and up.read("error") == ""
    assert not exists(up / "snapshots/s1")
    until(lambda: {p for p in fs.stored() if "snap." in str(p)} == set(), "nothing is left of it")
    with fails(ENOENT):
        up.do("restore s1")
    take(up, "s1")


def test_rm_does_no_harm(up, backend, fs):
    take(up, "s1")
    assert fs.sh("rm -rf web1/snapshots", check=False).returncode != 0
    ready(up, "s1")
    assert set(os.listdir(up / "snapshots/s1")) == backend.snapshot_files


def test_survives_a_restart_of_the_daemon(up, backend, fs):
    take(up, "s1")
    inode = (up / "snapshots/s1/spec.yaml").stat().st_ino
    fs.kill9()
    fs.restart()
    assert names(up) == ["s1"] and up.read("snapshots/s1/state") == "ready\n"
    until(lambda: exists(up / "snapshots/s1/spec.yaml"), "what it holds is known")
    assert (up / "snapshots/s1/spec.yaml").stat().st_ino == inode
    until(lambda: up.state == "running", "it is found again")
    backend.remember(up, "red")
    up.do("restore s1")
    assert backend.recall(up) == "blue"


def test_events(up):
    events = up.events()
    (up / "snapshots/s1").mkdir()
    events.expect(" snapshots s1 taking$")
    events.expect(" snapshots s1 ready$")
    (up / "snapshots/s1").rmdir()
    events.expect(" snapshots -$")


def test_states_in_which_none_is_taken(up):
    up.do("pause")
    with fails(EBUSY):
        (up / "snapshots/s1").mkdir()
    up.error("EBUSY", "paused")
    up.do("resume")
    up.do("sleep")
    with fails(EBUSY, 3):
        (up / "snapshots/s1").mkdir()
    assert names(up) == []


def test_spec_of_then(exports, up, backend):
    """The machine is that of the snapshot; what spec.yaml says now is pending."""
    take(up, "s1")
    up.write("spec.yaml", backend.text.replace("cpus: 1", "cpus: 2"))
    up.do("kill")
    up.do("restore s1")
    assert up.read("pending") == "cpus\n"
    assert backend.recall(up) == "blue"


@pytest.mark.sample(3)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "version", "backend"])
def test_damaged_is_refused_before_anything_is_touched(exports, up, backend, fs, damage):
    take(up, "s1")
    pid = up.read("pid")
    backend.remember(up, "red")
    path = next(data(fs, up).glob("snap.*"))
    memory, manifest = path / "memory", path / "manifest"
    good, text = memory.read_bytes(), manifest.read_text()
    if damage == "flip":
        memory.write_bytes(good[:-2] + bytes([good[-2] ^ 4]) + good[-1:])
    elif damage == "truncate":
        os.truncate(memory, len(good) - 1)
    elif damage == "remove":
        memory.unlink()
    elif damage == "version":
        manifest.write_text(text.replace("# vmfs snapshot 1", "# vmfs snapshot 9"))
    elif damage == "backend":
        manifest.write_text(text.replace(f"backend {backend.name}", "backend other"))
    with pytest.raises(OSError) as e:
        up.do("restore s1")
    if damage in ("flip", "truncate", "remove"):
        assert e.value.errno == EBADMSG
    up.error(None)
    assert up.state == "running" and up.read("pid") == pid
    assert backend.recall(up) == "red"
    memory.write_bytes(good)
    manifest.write_text(text)
    up.do("restore s1")
    assert backend.recall(up) == "blue"


# Export and import


def export(fs, vm, name, tar):
    fs.sh(f"tar -C {vm / 'snapshots'} -cf {tar} {name}", timeout=120)


def test_times_are_the_files_own(vm):
    """tar says that a file has changed when its times have: a change of the VM is none of it."""
    vm.do("start")
    take(vm, "s1")
    before = os.stat(vm / "snapshots/s1/memory")
    vm.do("pause")
    vm.sim("ip 192.0.2.9")
    after = os.stat(vm / "snapshots/s1/memory")
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
    assert before.st_mtime_ns < os.stat(vm / "state").st_mtime_ns


def test_export_and_import(exports, up, backend, fs):
    take(up, "s1")
    tar = fs.base / "s1.tar"
    export(fs, up, "s1", tar)
    up.do("kill")
    other = backend.vm("other")
    fs.sh(f"tar -C other/snapshots -xf {tar}", timeout=120)
    other.wait("snapshots", 60)
    assert other.read("snapshots/s1/state") == "ready\n"
    assert set(os.listdir(other / "snapshots/s1")) == {"manifest", "memory", "spec.yaml"}
    assert other.read("error") == ""
    other.do("restore s1")
    assert other.state == "running" and backend.recall(other) == "blue"
    assert "snapshot.s1" not in other.read("status")


def test_import_into_a_running_machine(exports, up, backend, fs):
    """It goes on; what its mkdir took is given up."""
    take(up, "s1")
    tar = fs.base / "s1.tar"
    export(fs, up, "s1", tar)
    (up / "snapshots/s1").rmdir()
    backend.remember(up, "red")
    fs.sh(f"tar -C web1/snapshots -xf {tar}", timeout=120)
    until(lambda: up.read("snapshots/s1/state") == "ready\n", "the import is verified")
    assert up.state == "running" and backend.recall(up) == "red" and up.read("error") == ""
    up.do("restore s1")
    assert backend.recall(up) == "blue"


def test_import_by_cp(exports, up, backend, fs):
    take(up, "s1")
    fs.sh(f"cp -r web1/snapshots/s1 {fs.base}/copy; cp -r {fs.base}/copy web1/snapshots/s2",
          timeout=120)
    until(lambda: up.read("snapshots/s2/state") == "ready\n", "the import is verified")


def sim_tar(tmp, files, name="s1"):
    with tarfile.open(tmp, "w") as tar:
        top = tarfile.TarInfo(name)
        top.type, top.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(top)
        for path, text in files.items():
            info = tarfile.TarInfo(path if path.startswith("/") or ".." in path
                                   else f"{name}/{path}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    return tmp


def sim_files(memory=b"sim memory\nblue"):
    spec = b"backend: sim\n"
    sums = "".join(f"{hashlib.sha256(t).hexdigest()}  {n}\n"
                   for n, t in (("memory", memory), ("spec.yaml", spec)))
    sizes = f"# size {len(memory)} memory\n# size {len(spec)} spec.yaml\n"
    manifest = f"# vmfs snapshot 1\n# backend sim\n{sizes}{sums}".encode()
    return {"manifest": manifest, "memory": memory, "spec.yaml": spec}


def test_import_made_by_hand(vm, sim, fs):
    fs.sh(f"tar -C web1/snapshots -xf {sim_tar(fs.base / 't', sim_files())}")
    until(lambda: vm.read("snapshots/s1/state") == "ready\n", "the import is verified")
    vm.do("restore s1")
    assert sim.recall(vm) == "blue"


def test_import_is_not_ready_before_it_is_complete(vm, fs):
    files = sim_files()
    memory = files.pop("memory")
    # By one process, as tar does it.
    fs.sh(f"tar -C web1/snapshots -xf {sim_tar(fs.base / 't', files)}")
    assert vm.read("snapshots/s1/state") == "importing\n"
    percent = vm.status["snapshot.s1"]
    assert percent == f"importing {len(files['spec.yaml']) * 100 // (len(memory) + 13)}%"
    with fails(EBUSY):
        vm.do("restore s1")
    with open(vm / "snapshots/s1/memory", "wb") as f:
        f.write(memory[:5])
        f.flush()
        assert vm.read("snapshots/s1/state") == "importing\n"
        f.write(memory[5:])
    until(lambda: vm.read("snapshots/s1/state") == "ready\n", "the import is verified")
    with fails(EPERM):
        open(vm / "snapshots/s1/extra", "wb")


def test_damaged_import(vm, sim, fs):
    vm.do("start")
    sim.remember(vm, "red")
    files = sim_files()
    files["memory"] = b"sim memory\nblup"
    fs.sh(f"tar -C web1/snapshots -xf {sim_tar(fs.base / 't', files)}")
    until(lambda: vm.read("snapshots/s1/state") == "damaged\n", "the import is refused")
    vm.error("EBADMSG", "s1", "memory", "damaged")
    with fails(EBADMSG):
        vm.do("restore s1")
    assert vm.state == "running" and sim.recall(vm) == "red"
    # Written again, it is looked at again.
    with open(vm / "snapshots/s1/memory", "wb") as f:
        f.write(b"sim memory\nblue")
    until(lambda: vm.read("snapshots/s1/state") == "ready\n", "the import is verified")


@pytest.mark.parametrize("manifest", [b"", b"nonsense\n", b"# vmfs snapshot 2\n",
                                      b"# vmfs snapshot 1\nzz  memory\n",
                                      b"# vmfs snapshot 1\n" + b"0" * 64 + b"  ../../x\n",
                                      b"# vmfs snapshot 1\n" + b"0" * 64 + b"  manifest\n",
                                      b"\0" * 70000],
                         ids=["empty", "nonsense", "version", "sum", "path", "itself", "zeroes"])
def test_bad_manifest(vm, fs, manifest):
    files = {**sim_files(), "manifest": manifest}
    fs.sh(f"tar -C web1/snapshots -xf {sim_tar(fs.base / 't', files)}")
    until(lambda: vm.read("snapshots/s1/state") == "damaged\n", "the import is refused")
    vm.error(None)
    (vm / "snapshots/s1").rmdir()
    assert names(vm) == []


def test_tar_with_dots(vm, fs):
    """Paths that lead out of it lead nowhere."""
    fs.vm("web2", "backend: sim\n")
    before = vm.spec
    evil = {**sim_files(), "s1/../../spec.yaml": b"cpus: 7\n", "../web2/spec.yaml": b"cpus: 7\n",
            "s1/../../../escaped": b"x"}
    tar = sim_tar(fs.base / "t", evil)
    fs.sh(f"tar -C web1/snapshots -xf {tar}", check=False)
    until(lambda: vm.read("snapshots/s1/state") == "ready\n", "the rest is imported")
    assert vm.spec == before and "7" not in fs.vm("web2").spec
    assert not (fs.state / "escaped").exists() and not exists(fs.mnt / "escaped")


def test_names_in_an_import(vm, fs):
    def make(name):
        fd = os.open(vm / "snapshots/s1" / name, os.O_CREAT | os.O_WRONLY, 0o600)
        os.close(fd)

    (vm / "snapshots/s1").mkdir()
    make("memory")
    for name in (".hidden", "a b", "n" * 101, "\x01"):
        with fails(EINVAL):
            make(name)
    with fails(EPERM):
        (vm / "snapshots/s1/sub").mkdir()
    with fails(EPERM):
        os.symlink("/etc/passwd", vm / "snapshots/s1/link")
    for i in range(99):
        make(f"f{i}")
    make("f99")
    with fails(ENOSPC):
        make("one-more")
    (vm / "snapshots/s1").rmdir()


def test_foreign_files_in_a_snapshot(vm, fs):
    """By another process than the one that made it."""
    take(vm, "s1")
    assert fs.sh("echo x > web1/snapshots/s1/memory", check=False).returncode != 0
    vm.error("EPERM", "s1")
    assert names(vm) == ["s1"] and vm.read("snapshots/s1/state") == "ready\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_import_that_does_not_fit(vm, fs):
    """Nothing is left of it."""
    disk = fs.base / "small"
    disk.mkdir()
    where = data(fs, vm)
    fs.sh(f"mount -t tmpfs -o size=1m,mode=700 tmpfs {where}")
    try:
        tar = sim_tar(fs.base / "t", sim_files(b"sim memory\n" + b"x" * (3 << 20)))
        done = fs.sh(f"tar -C web1/snapshots -xf {tar}", check=False)
        assert done.returncode != 0, done.stderr
        vm.error("ENOSPC", "s1", "does not fit")
        until(lambda: names(vm) == [] and not list(where.iterdir()), "nothing is left of it")
    finally:
        fs.sh(f"umount {where}")


# Faults


def test_full_disk(sim, fs):
    vm = sim.vm()
    vm.do("start")
    vm.sim("disk full")
    with fails(ENOSPC):
        (vm / "snapshots/s1").mkdir()
    vm.error("ENOSPC")
    assert vm.state == "running" and names(vm) == []
    until(lambda: not list(data(fs, vm).glob("snap.*")), "nothing is left")
    vm.sim("disk ok")
    take(vm, "s1")


def test_faults(sim):
    vm = sim.vm()
    vm.do("start")
    sim.remember(vm, "blue")
    vm.sim("fail snapshot EIO")
    with fails(EIO):
        (vm / "snapshots/s1").mkdir()
    assert names(vm) == []
    take(vm, "s1")
    vm.sim("fail restore EIO")
    with fails(EIO):
        vm.do("restore s1")
    assert vm.state == "running" and sim.recall(vm) == "blue"


def test_slow_one(sim, fs):
    """mkdir does not wait for it; what would get in its way is told to wait."""
    vm = sim.vm()
    vm.do("start")
    vm.sim("slow snapshot 3000")
    (vm / "snapshots/s1").mkdir()
    assert vm.read("snapshots/s1/state") == "taking\n"
    assert vm.status["snapshot.s1"] == "taking"
    with fails(EBUSY):
        (vm / "snapshots/s1").rmdir()
    vm.error("EBUSY", "s1")
    with fails(EBUSY):
        vm.do("restore s1")
    with fails(EBUSY):
        (vm / "snapshots/s2").mkdir()
    ready(vm, "s1")


@pytest.mark.slow
def test_too_many(sim):
    vm = sim.vm()
    for i in range(256):
        take(vm, f"s{i}")
    with fails(ENOSPC):
        (vm / "snapshots/more").mkdir()
    vm.error("ENOSPC", "256")


@pytest.mark.sample(3)
@pytest.mark.parametrize("after_ms", [0, 5, 20, 60, 200])
def test_kill9_of_the_daemon_in_the_middle(up, backend, fs, after_ms):
    making = fs.spawn("mkdir", up / "snapshots/s1")
    time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
    fs.kill9()
    making.finish()
    fs.restart()
    until(lambda: up.state == "running", "it is found again, and goes on")
    assert backend.recall(up) == "blue"
    if names(up):
        assert up.read("snapshots/s1/state") == "ready\n"
        (up / "snapshots/s1").rmdir()
    until(lambda: not list(data(fs, up).glob("snap.*")), "nothing is left")
    take(up, "s1")


@pytest.mark.sample(3)
@pytest.mark.parametrize("after_ms", [0, 10, 50, 200])
def test_kill9_of_the_daemon_in_the_middle_of_restore(up, backend, fs, after_ms):
    take(up, "s1")
    backend.remember(up, "red")
    fs.spawn("bash", "-c", f"echo restore s1 > {up / 'state'}")
    time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
    fs.kill9()
    fs.restart()
    until(lambda: up.state in ("running", "stopped", "crashed"), "it is found again")
    if up.state == "running":
        assert backend.recall(up) in ("red", "blue")
    up.do("restore s1")
    assert backend.recall(up) == "blue"


@pytest.mark.sample(3)
@pytest.mark.qemu
@pytest.mark.parametrize("after_ms", [0, 20, 100, 300])
def test_kill9_of_qemu_in_the_middle(qemu, fs, after_ms):
    vm = qemu.vm()
    qemu.up(vm)
    pid = vm.pid
    making = fs.spawn("mkdir", vm / "snapshots/s1")
    time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
    os.kill(pid, signal.SIGKILL)
    making.finish()
    vm.wait("crashed")
    vm.wait("snapshots", 60)
    until(lambda: names(vm) == [] or vm.read("snapshots/s1/state") == "ready\n", "all or nothing")
    if not names(vm):
        until(lambda: not list(data(fs, vm).glob("snap.*")), "nothing is left")
    vm.do("start")


# Disks


@pytest.fixture
def started(qemu, scratch):
    """A running machine with a private disk."""
    base = scratch / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    vm = qemu.vm(spec=qemu.spec(extra=f"disks:\n  data: {{image: {base}}}\n"))
    vm.do("start")
    vm.base = base
    return vm


@pytest.fixture
def disk_vm(started, qemu):
    """Its guest can write to it."""
    qemu.booted(started)
    return started


def put_word(qemu, vm, word):
    qemu._shell(vm, f"echo {word} | dd of=/dev/vda bs=512 seek=100 conv=fsync,sync 2>/dev/null",
                "^DONE")


def get_word(qemu, vm, flag="iflag=direct"):
    return qemu._shell(vm, f"echo disk:$(dd if=/dev/vda {flag} bs=512 skip=100 count=1 2>/dev/null"
                           " | head -n1):", r"disk:([a-z]*):\s+DONE")[1]


@pytest.mark.qemu
def test_disks(disk_vm, qemu, fs):
    """Memory and disks of the same moment; the image is never written."""
    vm = disk_vm
    before = vm.base.read_bytes()
    put_word(qemu, vm, "blue")
    take(vm, "s1")
    assert "disk-data.qcow2" in os.listdir(vm / "snapshots/s1")
    put_word(qemu, vm, "red")
    assert get_word(qemu, vm) == "red"
    take(vm, "s2")
    vm.do("restore s1")
    assert get_word(qemu, vm) == "blue"
    vm.do("restore s2")
    assert get_word(qemu, vm) == "red"
    vm.do("kill")
    take(vm, "s3")
    vm.do("restore s1")
    assert get_word(qemu, vm) == "blue"
    vm.do("restore s3")
    assert vm.state == "stopped"
    vm.do("start")
    vm.wait("agent", 60)
    assert get_word(qemu, vm) == "red"
    vm.do("kill")
    assert vm.base.read_bytes() == before
    assert not [p for p in data(fs, vm).iterdir() if "restored" in p.name or "copy" in p.name]
    for number in (1, 2, 3):
        done = subprocess.run(["qemu-img", "check", "-q",
                               data(fs, vm) / f"snap.{number}/disk-data.qcow2"], check=False)
        assert done.returncode == 0


def writes(vm):
    return int(re.search(r"^block\.data\.write_ops (\d+)$", vm.read("stats"), re.M)[1])


@pytest.mark.qemu
def test_guest_that_writes_while_its_disk_is_copied(disk_vm, qemu):
    vm = disk_vm
    put_word(qemu, vm, "blue")
    vm.write("console", "i=0; while true; do i=$((i+1)); echo w$i | dd of=/dev/vda bs=512 seek=100 "
                        "conv=fsync,sync 2>/dev/null; done\n", 0)
    before = writes(vm)
    until(lambda: writes(vm) > before + 5, "it writes")
    take(vm, "s1")
    vm.do("restore s1")
    assert vm.state == "running"
    take(vm, "s2")
    vm.do("restore s2")
    assert vm.state == "running" and vm.read("error") == ""


@pytest.mark.qemu
def test_disk_that_had_not_been_made_yet(qemu, fs, scratch):
    """What came after the snapshot is not kept."""
    base = scratch / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    vm = qemu.vm(spec=qemu.spec(extra=f"disks:\n  root: {{image: {base}}}\n"
                                      "  data: {size: 16MiB}\n"))
    take(vm, "s1")
    vm.do("start")
    vm.do("kill")
    made = [data(fs, vm) / f"{name}.qcow2" for name in ("root", "data")]
    for disk in made:
        subprocess.run(["qemu-io", "-c", "write -P 7 0 64k", disk], check=True,
                       stdout=subprocess.DEVNULL)
    vm.do("restore s1")
    vm.do("start")
    vm.do("kill")
    for disk in made:
        out = subprocess.run(["qemu-io", "-c", "read -P 0 0 64k", disk], check=True, text=True,
                             stdout=subprocess.PIPE).stdout
        assert "verification failed" not in out


def same_disk(qemu, image):
    return qemu.spec(extra=f"disks:\n  data: {{image: {image}}}\n")


@pytest.mark.qemu
def test_import_with_disks(started, qemu, fs):
    """Into machines that have had no disk yet, or one of the same image by another name."""
    (fs.mnt / ".vmfs/images/small").symlink_to(started.base)
    tar = fs.base / "s1.tar"
    take(started, "s1")
    export(fs, started, "s1", tar)
    started.do("kill")
    fresh = fs.vm("fresh", started.spec)
    running = fs.vm("running", same_disk(qemu, "small"))
    running.do("start")
    for vm in fresh, running:
        fs.sh(f"tar -C {vm.dir}/snapshots -xf {tar}", timeout=120)
        vm.wait("snapshots", 60)
        vm.do("restore s1")
        assert vm.state == "running"
        vm.do("kill")
        vm.write("spec.yaml", started.spec)
        vm.do("start")
        vm.do("kill")


@pytest.mark.qemu
def test_disks_that_cannot_be_put_back(started, qemu, fs, scratch):
    """It is found before what runs has ended."""
    vm, away = started, scratch / "away"
    take(vm, "s1")
    pid, disk = vm.pid, data(fs, vm) / "data.qcow2"
    before = disk.stat().st_ino
    vm.base.rename(away)
    with fails(ENOENT):
        vm.do("restore s1")
    vm.error("ENOENT", "disks.data", str(vm.base))
    assert vm.state == "running" and vm.pid == pid and disk.stat().st_ino == before
    assert not [p for p in data(fs, vm).iterdir() if "restored" in p.name]
    away.rename(vm.base)
    vm.do("restore s1")


@pytest.mark.qemu
def test_disk_that_is_a_file_of_the_user(qemu, guest):
    vm = qemu.vm(spec=qemu.spec(extra=f"disks:\n  data: {{file: {guest.disk}}}\n"))
    with fails(EOPNOTSUPP):
        (vm / "snapshots/s1").mkdir()
    vm.error("EOPNOTSUPP", "disks.data", "readonly")
    assert names(vm) == []


@pytest.mark.qemu
def test_pause_is_told(qemu):
    vm = qemu.vm()
    qemu.up(vm)
    take(vm, "s1")
    facts = dict(line[2:].split(" ", 1) for line in vm.read("snapshots/s1/manifest").splitlines()
                 if line.startswith("# "))
    assert float(facts["paused"].split()[0]) < 5000
    assert facts["machine"].startswith("pc-q35-")
