# SPDX-License-Identifier: Apache-2.0
"""Clones: new machines that begin as a snapshot of another one."""
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from errno import (EACCES, EBADMSG, EBUSY, EINVAL, EIO, ELOOP, ENOENT, ENOSPC, EOPNOTSUPP)
from pathlib import Path

import pytest

from lib.backends import Qemu
from lib.util import exists, fails, unmount_disk, until
from test_snapshots import data, get_word, put_word, take

FROM = "from: web1/snapshots/golden\n"


def with_clones(vm, backend):
    if "clone" not in (vm.fs.mnt / f".vmfs/backends/{backend.name}/capabilities").read_text():
        pytest.skip("its backend cannot make a VM from a snapshot")
    return vm


def golden(vm, backend, word="blue"):
    """Have that word in its memory, and take the snapshot."""
    with_clones(vm, backend)
    backend.up(vm)
    vm.wait("agent", 60)
    backend.remember(vm, word)
    take(vm, "golden")
    return vm


@pytest.fixture
def base(backend):
    return golden(backend.vm(), backend)


def clone(fs, name="c1", extra=""):
    return fs.vm(name, FROM + extra)


def test_clone(base, backend, fs):
    """It has what the snapshot has in its memory, and a life of its own."""
    c1 = clone(fs)
    assert c1.state == "stopped" and c1.read("pid") == ""
    planned = c1.read("cmdline") if backend.name == "qemu" else None
    c1.do("start")
    assert c1.state == "running" and c1.read("error") == "" and c1.read("pending") == ""
    if planned:
        runs = Path(f"/proc/{c1.pid}/cmdline").read_text().removesuffix("\0").split("\0")
        assert shlex.split(planned) == runs
        assert "-incoming" in runs and "-incoming" not in c1.read("cmdline")
    assert backend.recall(c1) == "blue"
    backend.remember(c1, "red")
    assert backend.recall(c1) == "red"
    assert base.state == "running" and backend.recall(base) == "blue"
    c2 = clone(fs, "c2")
    c2.do("start")
    assert backend.recall(c2) == "blue" and backend.recall(c1) == "red"
    assert c2.wait("ip", 60).split()[0] == backend.ip
    fs.sh("cd web1/snapshots/golden && sha256sum -c --quiet manifest", timeout=120)


def test_spec_is_completed(base, fs):
    """What it leaves to the snapshot is written into it; a copy of that means the same."""
    c1 = clone(fs)
    assert c1.spec == FROM + "# of web1/snapshots/golden:\n" + base.spec
    again = c1.spec
    c1.write("spec.yaml", again)
    assert c1.spec == again and c1.read("error") == ""
    c1.write("spec.yaml", "# mine\n" + FROM + "stop_timeout: 5s")
    assert c1.spec == ("# mine\n" + FROM + "stop_timeout: 5s\n# of web1/snapshots/golden:\n"
                       + base.spec)
    fs.sh(f"cp web1/snapshots/golden/spec.yaml {fs.base}/doc; "
          f"echo 'from: web1/snapshots/golden' >> {fs.base}/doc; cp {fs.base}/doc c1/spec.yaml")
    assert c1.spec == base.spec + FROM


def test_second_start_is_a_boot(base, backend, fs):
    c1 = clone(fs)
    c1.do("start")
    assert backend.recall(c1) == "blue"
    c1.do("kill")
    fs.kill9()
    fs.restart()
    c1.do("start")
    c1.wait("agent", 60)
    assert backend.recall(c1) == ""
    (base / "snapshots/golden").rmdir()
    c1.do("kill")
    c1.do("start")


def test_failed_start_is_tried_again(base, backend, fs):
    """Only what has run is a machine of its own."""
    c1 = clone(fs)
    manifest = next(data(fs, base).glob("snap.*/manifest"))
    text = manifest.read_text()
    manifest.write_text(text[:-10])
    if backend.name == "qemu":
        assert c1.read("cmdline") == ""  # there is none that would do
    with pytest.raises(OSError):
        c1.do("start")
    c1.error(None, "manifest")
    assert c1.state == "stopped" and c1.read("pid") == ""
    manifest.write_text(text)
    c1.do("start")
    assert backend.recall(c1) == "blue"


def test_damaged_snapshot(base, backend, fs):
    c1 = clone(fs)
    memory = next(data(fs, base).glob("snap.*/memory"))
    good = memory.read_bytes()
    memory.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    with fails(EBADMSG):
        c1.do("start")
    c1.error("EBADMSG", "web1/snapshots/golden" if backend.name == "qemu" else "from", "memory")
    assert c1.state == "stopped" and base.state == "running"
    until(lambda: not list(fs.state.glob("vms/*/template.*")), "nothing is left of the attempt")
    memory.write_bytes(good)
    c1.do("start")
    assert backend.recall(c1) == "blue"


def test_of_what_runs_with_less_than_is_written(backend, fs):
    """The snapshot's spec.yaml is what runs, a key a line, and can be begun from."""
    vm = with_clones(backend.vm(), backend)
    vm.do("start")
    backend.booted(vm)
    vm.write("spec.yaml", vm.spec.replace("cpus: 1", "cpus: 2"))
    (vm / "nics/n1").symlink_to("user")
    assert vm.read("pending") == "cpus\n"
    backend.remember(vm, "blue")
    take(vm, "golden")
    text = vm.read("snapshots/golden/spec.yaml")
    assert "cpus: 1" in text.splitlines() and "n1" in text
    c1 = clone(fs, extra="stop_timeout: 5s\n")
    c1.do("start")
    assert backend.recall(c1) == "blue" and "cpus: 1\n" in c1.spec
    assert vm.state == "running"


def test_running_clones_over_a_restart_of_the_daemon(base, backend, fs):
    c1, c2 = clone(fs), clone(fs, "c2")
    c1.do("start")
    backend.remember(c1, "red")
    fs.kill9()
    fs.restart()
    until(lambda: c1.state == "running", "it is found again")
    assert backend.recall(c1) == "red"
    c2.do("start")
    assert backend.recall(c2) == "blue"


@pytest.mark.sample(3)
@pytest.mark.parametrize("after_ms", [0, 10, 40, 100, 300, 700])
def test_kill9_of_the_daemon_in_the_middle_of_the_first_start(base, backend, fs, after_ms):
    """It has begun as the snapshot, or will."""
    c1 = clone(fs)
    fs.spawn("bash", "-c", f"echo start > {c1 / 'state'}")
    time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
    fs.kill9()
    fs.restart()
    until(lambda: c1.state in ("running", "stopped"), "it is found again")
    if c1.state == "stopped":
        c1.do("start")
    assert backend.recall(c1) == "blue"
    c2 = clone(fs, "c2")
    c2.do("start")
    assert backend.recall(c2) == "blue"
    assert not list(fs.state.glob("vms/*/template.*.new"))


def test_host_reboot(base, backend, fs):
    """What runs is gone; a clone that had not begun still can."""
    c1, c2 = clone(fs), clone(fs, "c2")
    c1.do("start")
    for vm in (base, c1):
        vm.do("kill")
    fs.stop()
    shutil.rmtree(fs.run)
    fs.restart()
    assert (c1.state, c2.state) == ("stopped", "stopped")
    c1.do("start")
    c2.do("start")
    assert backend.recall(c2) == "blue"


def test_clones_of_imported_snapshot(base, backend, fs):
    fs.sh(f"tar -C {base / 'snapshots'} -cf {fs.base / 'g.tar'} golden", timeout=120)
    base.do("kill")
    base.dir.rmdir()
    other = backend.vm("other")
    fs.sh(f"tar -C other/snapshots -xf {fs.base / 'g.tar'}", timeout=120)
    until(lambda: other.read("snapshots/golden/state") == "ready\n", "the import is verified")
    c1 = fs.vm("c1", "from: other/snapshots/golden\n")
    c1.do("start")
    assert backend.recall(c1) == "blue"


# A clone is a VM like any other


def test_sleep_of_a_clone(base, backend, fs):
    c1 = clone(fs)
    c1.do("start")
    backend.remember(c1, "red")
    c1.do("sleep")
    fs.kill9()
    fs.restart()
    c1.do("wake")
    assert backend.recall(c1) == "red"


def test_snapshots_of_a_clone(base, backend, fs):
    c1 = clone(fs)
    with fails(EBUSY):
        (c1 / "snapshots/early").mkdir()
    c1.error("EBUSY", "web1/snapshots/golden", "start")
    c1.do("start")
    backend.remember(c1, "red")
    take(c1, "s1")
    backend.remember(c1, "green")
    c1.do("restore s1")
    assert backend.recall(c1) == "red"
    c2 = fs.vm("c2", "from: c1/snapshots/s1\n")
    assert "web1" not in c2.spec
    c2.do("start")
    assert backend.recall(c2) == "red"
    assert backend.recall(base) == "blue"


def test_restore_before_the_first_start(base, backend, fs):
    """Then that is what it has begun as."""
    fs.sh(f"tar -C {base / 'snapshots'} -cf {fs.base / 'g.tar'} golden", timeout=120)
    c1 = fs.vm("c1", base.spec)
    fs.sh(f"tar -C c1/snapshots -xf {fs.base / 'g.tar'}", timeout=120)
    until(lambda: c1.read("snapshots/golden/state") == "ready\n", "the import is verified")
    backend.remember(base, "red")
    take(base, "later")
    c1.write("spec.yaml", "from: web1/snapshots/later\n")
    c1.do("restore golden")
    assert backend.recall(c1) == "blue"
    c1.do("kill")
    c1.do("start")
    c1.wait("agent", 60)
    assert backend.recall(c1) == ""


def test_rename_of_the_origin(base, backend, fs):
    """What has begun does not care; what has not is told."""
    c1, c2 = clone(fs), clone(fs, "c2")
    c1.do("start")
    base.do("kill")
    os.rename(base.dir, fs.mnt / "renamed")
    c1.do("kill")
    c1.do("start")
    with fails(ENOENT):
        c2.do("start")
    c2.error("ENOENT", "from", "web1")
    c2.write("spec.yaml", "from: renamed/snapshots/golden\n")
    c2.do("start")
    assert backend.recall(c2) == "blue"


def test_from_is_for_new_machines(base, backend, fs):
    c1 = clone(fs)
    c1.do("start")
    spec = c1.spec
    other = spec.replace("golden", "other")
    for text in (other, "from: c1/snapshots/x\n"):
        with fails(EBUSY):
            c1.write("spec.yaml", text)
        c1.error("EBUSY", "from", "begun")
        os.unlink(c1 / "spec.yaml.rej")
    c1.write("spec.yaml", spec + "stop_timeout: 7s\n")
    c1.write("spec.yaml", spec.replace(FROM, ""))
    with fails(EBUSY):
        c1.write("spec.yaml", spec)
    os.unlink(c1 / "spec.yaml.rej")
    with fails(EBUSY):
        base.write("spec.yaml", "from: c1/snapshots/x\n")
    base.do("kill")
    with fails(EBUSY):
        base.write("spec.yaml", "from: c1/snapshots/x\n")
    base.error("EBUSY", "new one")


def test_from_is_given_up_before_the_start(base, backend, fs):
    c1 = clone(fs)
    c1.write("spec.yaml", base.spec)
    c1.do("start")
    c1.wait("agent", 60)
    assert backend.recall(c1) == ""


# Bad input


def test_what_is_not_there(base, fs):
    vm = fs.vm("c1")
    for text, errno, word in (("from: web2/snapshots/golden", ENOENT, "web2"),
                              ("from: web1/snapshots/other", ENOENT, "golden"),
                              ("from: c1/snapshots/golden", ELOOP, "itself"),
                              ("from: golden", EINVAL, "VM/snapshots/NAME"),
                              ("from: web1/golden", EINVAL, "VM/snapshots/NAME"),
                              ("from: ../web1/snapshots/golden", EINVAL, "VM/snapshots/NAME"),
                              ("from: web1/snapshots/../x", EINVAL, "VM/snapshots/NAME"),
                              ("from: web1/snapshots/", EINVAL, "VM/snapshots/NAME"),
                              ("from: /vm/web1/snapshots/golden", EINVAL, "VM/snapshots/NAME"),
                              ("from: [web1]", EINVAL, "one value")):
        with fails(errno):
            vm.write("spec.yaml", text + "\n")
        vm.error(errno and None, word)
        assert vm.spec == ""
    os.unlink(vm / "spec.yaml.rej")


def test_another_machine(base, backend, fs):
    """What the guest has seen of its machine cannot be another one in its clone."""
    vm = fs.vm("c1")
    for text, key in (("memory: 512MiB", "memory"), ("cpus: 2", "cpus"),
                      ("nics: {eth0: {}, eth1: {}}", "nics.eth1"), ("nics: {}", "nics.eth0"),
                      ("disks: {data: {size: 1MiB}}", "disks.data"), ("cloud_init: {}", "cloud_init")):
        with fails(EINVAL):
            vm.write("spec.yaml", FROM + text + "\n")
        vm.error("EINVAL", key + ":", "web1/snapshots/golden")
        assert vm.spec == ""
    vm.write("spec.yaml", FROM + "nics: {eth0: {ports: ['127.0.0.1:0:22']}}\n")
    vm.do("start")
    assert backend.recall(vm) == "blue"


def test_another_backend(base, backend, fs):
    vm = fs.vm("c1")
    other = "sim" if backend.name == "qemu" else "qemu"
    with fails(EINVAL):
        vm.write("spec.yaml", FROM + f"backend: {other}\n")
    vm.error("EINVAL", f"backend '{backend.name}'")


def test_backend_that_cannot(base, fs):
    if not exists(fs.mnt / ".vmfs/backends/libvirt"):
        pytest.skip("built without libvirt")
    vm = fs.vm("c1")
    with fails(EOPNOTSUPP):
        vm.write("spec.yaml", FROM + "backend: libvirt\n")
    vm.error("EOPNOTSUPP", "libvirt")


def test_document_in_brackets(base, fs):
    vm = fs.vm("c1")
    with fails(EINVAL):
        vm.write("spec.yaml", "{from: web1/snapshots/golden}\n")
    vm.error("EINVAL", "brackets")
    assert vm.spec == ""


def test_snapshot_that_goes_before_the_start(base, fs):
    c1 = clone(fs)
    (base / "snapshots/golden").rmdir()
    with fails(ENOENT):
        c1.do("start")
    c1.error("ENOENT", "golden")
    assert c1.state == "stopped"


def test_loop_of_names(sim, fs):
    """Two machines, each made from a snapshot of the other one's name."""
    a = golden(sim.vm("a"), sim)
    b = fs.vm("b", "from: a/snapshots/golden\n")
    b.do("start")
    take(b, "golden")
    a.do("kill")
    a.dir.rmdir()
    a = fs.vm("a", "from: b/snapshots/golden\n")
    a.do("start")
    assert sim.recall(a) == "blue"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs other users")
def test_rights(base, backend, fs):
    """Who may read the snapshot may clone it."""
    os.chmod(fs.mnt, 0o777)
    user = ["setpriv", "--reuid", "4321", "--regid", "4321", "--clear-groups", "bash", "-c"]

    def as_user(script):
        return fs.spawn(*user, f"cd {fs.mnt}; {script}")

    assert as_user("mkdir mine").finish() == 0
    mine = fs.vm("mine")
    for mode in (0o700, 0o711):
        os.chmod(base.dir, mode)
        denied = as_user("cat > mine/spec.yaml <<< 'from: web1/snapshots/golden'")
        assert denied.finish() != 0
        mine.error("EACCES", "4321", "web1/snapshots/golden")
    os.chmod(base.dir, 0o755)
    os.chmod(base / "snapshots", 0o755)
    os.chmod(base / "snapshots/golden", 0o755)
    os.chmod(base / "snapshots/golden/manifest", 0o644)
    assert as_user("rm mine/spec.yaml.rej; echo 'from: web1/snapshots/golden' > mine/spec.yaml"
                   ).finish() == 0, mine.read("error")
    os.chmod(base / "snapshots", 0o700)
    with fails(EACCES):
        mine.do("start")
    mine.error("EACCES", "4321")
    os.chmod(base / "snapshots", 0o755)


def test_faults(sim, fs):
    golden(sim.vm(), sim)
    c1 = clone(fs)
    c1.sim("fail start EIO")
    with fails(EIO):
        c1.do("start")
    c1.do("start")
    assert sim.recall(c1) == "blue"


def test_kill_of_a_first_start(sim, fs):
    golden(sim.vm(), sim)
    c1 = clone(fs)
    c1.sim("hang start")
    writer = fs.spawn("bash", "-c", f"echo start > {c1 / 'state'}")
    until(lambda: c1.state == "starting", "it starts")
    with fails(EBUSY):
        c1.write("spec.yaml", "from: web1/snapshots/other\n")
    os.unlink(c1 / "spec.yaml.rej")
    c1.do("kill")
    writer.finish()
    c1.sim("ok start")
    c1.do("start")
    assert sim.recall(c1) == "blue"


# Real machines


@pytest.mark.qemu
def test_identity(qemu, fs):
    """Its agent gives the guest the name and addresses of the VM; ports are its own."""
    base = golden(qemu.vm(spec=qemu.spec(nic='{network: user, ports: ["127.0.0.1:0:22"]}')), qemu)
    c1 = clone(fs)
    c1.do("start")
    mac = re.search(r"mac=([0-9a-f:]{17})", c1.read("cmdline"))[1]
    assert mac != re.search(r"mac=([0-9a-f:]{17})", base.read("cmdline"))[1]
    until(lambda: "identity" not in c1.status, "its guest has an identity of its own")
    c1.wait("agent", 60)
    with c1.job("cat /sys/class/net/eth0/address; hostname") as job:
        assert job.out().decode().split() == [mac, "c1"]
    # Some guests ask for a new lease then, as systemd-networkd does.
    with c1.job("kill $(cat /run/udhcpc.eth0.pid); udhcpc -nqi eth0 -s /lib/guest/dhcp; "
                "ip -4 -o addr show eth0") as job:
        assert f"{qemu.ip}/" in job.out().decode()
    assert c1.wait("ssh", 60) == c1.status["port.eth0.22"]
    assert c1.wait("ip", 60).split()[0] == qemu.ip
    ports = [vm.status["port.eth0.22"] for vm in (base, c1)]
    assert ports[0] != ports[1]
    until(lambda: "clock" not in c1.status, "the agent has set the clock")
    assert (c1 / "id").read_text() != (base / "id").read_text()


@pytest.mark.qemu
def test_identity_without_an_agent(qemu, fs):
    with_clones(base := qemu.vm(spec=qemu.spec("vmfs.noagent")), qemu)
    qemu.up(base)
    qemu.remember(base, "blue")
    take(base, "golden")
    c1 = clone(fs)
    c1.do("start")
    assert qemu.recall(c1) == "blue"
    assert c1.status["identity"].startswith("copied")
    fs.kill9()
    fs.restart()
    until(lambda: c1.state == "running", "it is found again")
    assert c1.status["identity"].startswith("copied")
    mac = re.search(r"mac=([0-9a-f:]{17})", c1.read("cmdline"))[1]
    c1.do("reset")
    watch = c1.follow("console")
    watch.expect("GUEST-UP", 60)
    assert "identity" not in c1.status
    assert qemu._shell(c1, "echo mac:$(cat /sys/class/net/eth0/address):", r"mac:([0-9a-f:]{17}):")[1] == mac


@pytest.mark.qemu
def test_generation_id(qemu, fs):
    """Another number for each, by which its kernel knows to begin its random numbers anew."""
    base = golden(qemu.vm(), qemu)
    clones = [clone(fs, f"c{i}") for i in range(2)]
    for vm in clones:
        vm.do("start")
    ids = set()
    for vm in [base, *clones]:
        ids.add(fs.sh(f"exec 3<>{vm / 'monitor'}; echo info vm-generation-id >&3; timeout 5 head -n1 <&3",
                      check=False).stdout)
    assert len(ids) == 3


@pytest.mark.qemu
def test_many_at_once(qemu, fs, thorough):
    base = golden(qemu.vm(spec=qemu.spec()), qemu)
    base.do("kill")
    clones = [clone(fs, f"c{i}") for i in range(20 if thorough else 6)]
    start = time.monotonic()
    writers = [fs.spawn("bash", "-c", f"echo start > {vm / 'state'}") for vm in clones]
    assert [w.finish(120) for w in writers] == [0] * len(clones), [vm.read("error") for vm in clones]
    assert time.monotonic() - start < 60
    assert {vm.state for vm in clones} == {"running"}
    assert len(list(fs.state.glob("vms/*/template.*"))) == 1
    for vm in clones[::5]:
        assert qemu.recall(vm) == "blue"
    (base / "snapshots/golden").rmdir()
    until(lambda: not list(fs.state.glob("vms/*/template.*")), "nothing is left of the template")
    assert qemu.recall(clones[1]) == "blue"


@pytest.mark.qemu
def test_memory_is_shared(qemu, fs):
    golden(qemu.vm(), qemu)
    clones = [clone(fs, f"c{i}") for i in range(2)]
    for vm in clones:
        vm.do("start")
        text = open(f"/proc/{vm.pid}/smaps", encoding="utf-8").read()
        maps = re.findall(r"^[0-9a-f-]+ rw-p .*template\S*/ram$", text, re.M)
        assert maps, "its memory is mapped from the template, privately"


@pytest.fixture
def disk_base(qemu, fs, scratch):
    """A golden machine with an overlay of an image and a private disk, both written to."""
    image = scratch / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    (fs.mnt / ".vmfs/images/small").symlink_to(image)
    vm = with_clones(qemu.vm(spec=qemu.spec(
        extra="disks:\n  root: {image: small}\n  data: {size: 32MiB}\n")), qemu)
    vm.do("start")
    qemu.booted(vm)
    vm.wait("agent", 60)
    put_word(qemu, vm, "blue")
    qemu.remember(vm, "blue")
    take(vm, "golden")
    vm.image = image
    return vm


@pytest.mark.qemu
def test_disks_of_a_clone(disk_base, qemu, fs):
    """Overlays of the snapshot's disks, which are never written."""
    before = disk_base.image.read_bytes()
    put_word(qemu, disk_base, "green")
    c1, c2 = clone(fs), clone(fs, "c2")
    c1.do("start")
    c2.do("start")
    assert get_word(qemu, c1) == "blue"
    put_word(qemu, c1, "red")
    assert get_word(qemu, c1) == "red" and get_word(qemu, c2) == "blue"
    assert get_word(qemu, disk_base) == "green"
    fs.sh("cd web1/snapshots/golden && sha256sum -c --quiet manifest", timeout=120)
    assert disk_base.image.read_bytes() == before
    # Its second start, after all that could be lost is lost.
    for vm in (c1, c2, disk_base):
        vm.do("kill")
    fs.stop()
    shutil.rmtree(fs.run)
    fs.restart()
    c1.do("start")
    c1.wait("agent", 60)
    assert get_word(qemu, c1) == "red"
    take(c1, "s1")
    put_word(qemu, c1, "black")
    c1.do("restore s1")
    assert get_word(qemu, c1) == "red"
    c3 = fs.vm("c3", "from: c1/snapshots/s1\n")
    c3.do("start")
    assert get_word(qemu, c3) == "red"
    # Another machine's disk would need golden, and nobody would know.
    fs.sh("cp -r c1/snapshots/s1 web1/snapshots/of-c1", timeout=120)
    disk_base.wait("snapshots", 60)
    disk_base.do("start")
    with fails(EINVAL):
        disk_base.do("restore of-c1")
    disk_base.error("EINVAL", "disks.root", "based on", "snapshot")
    assert disk_base.state == "running"


@pytest.mark.qemu
def test_snapshot_that_clones_are_based_on(disk_base, qemu, fs):
    c1 = clone(fs)
    c1.do("start")
    with fails(EBUSY):
        (disk_base / "snapshots/golden").rmdir()
    disk_base.error("EBUSY", "'c1'", "golden")
    disk_base.do("kill")
    with fails(EBUSY):
        disk_base.dir.rmdir()
    disk_base.error("EBUSY", "'c1'")
    c1.do("kill")
    fs.kill9()
    fs.restart()
    with fails(EBUSY):
        (disk_base / "snapshots/golden").rmdir()
    c1.dir.rmdir()
    (disk_base / "snapshots/golden").rmdir()
    disk_base.dir.rmdir()


@pytest.mark.qemu
def test_clone_of_a_stopped_machine(disk_base, qemu, fs):
    """Of its disks; it boots, and may have another machine."""
    disk_base.do("kill")
    take(disk_base, "cold")
    c1 = fs.vm("c1", "from: web1/snapshots/cold\nmemory: 192MiB\n")
    with fails(EINVAL):
        fs.vm("c2", "from: web1/snapshots/cold\ndisks: {root: {size: 64MiB}}\n")
    c1.do("start")
    qemu.booted(c1)
    c1.wait("agent", 60)
    assert get_word(qemu, c1) == "blue" and qemu.recall(c1) == ""
    assert "identity" not in c1.status and "clock" not in c1.status
    with fails(EBUSY):
        (disk_base / "snapshots/cold").rmdir()


@pytest.mark.qemu
@pytest.mark.skipif(os.geteuid() != 0, reason="needs other users")
def test_clone_of_another_users_machine(disk_base, qemu, fs):
    """By copies, for its QEMU runs as its owner."""
    os.chown(fs.vm("c1").dir, 4321, 4321)
    for path, mode in (("", 0o755), ("snapshots", 0o755), ("snapshots/golden", 0o755),
                       ("snapshots/golden/manifest", 0o644)):
        os.chmod(disk_base / path, mode)
    c1 = clone(fs)
    c1.do("start")
    assert get_word(qemu, c1) == "blue" and qemu.recall(c1) == "blue"
    put_word(qemu, c1, "red")
    c1.do("kill")
    c1.do("start")
    c1.wait("agent", 60)
    assert get_word(qemu, c1) == "red"
    with fails(EBUSY):
        (disk_base / "snapshots/golden").rmdir()


@pytest.mark.qemu
def test_another_qemu(qemu, fs):
    """Made by one whose machine this QEMU does not have."""
    base = golden(qemu.vm(), qemu)
    c1 = clone(fs)
    where = next(data(fs, base).glob("snap.*"))
    manifest = where / "manifest"
    manifest.write_text(re.sub(r"# machine .*", "# machine pc-q35-99.0", manifest.read_text()))
    with fails(EOPNOTSUPP):
        c1.do("start")
    c1.error("EOPNOTSUPP", "pc-q35-99.0")
    assert c1.state == "stopped" and not list(fs.state.glob("vms/*/template.*"))


@pytest.fixture
def cramped(scratch):
    """A file system that can be filled."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "none", scratch],
                      check=False).returncode:
        pytest.skip("may not mount a file system")
    yield scratch
    unmount_disk(scratch)


@pytest.mark.qemu
def test_no_room_for_shared_memory(cramped, box, guest):
    """QEMU gets SIGBUS when it writes to a mapped file there."""
    box.state = cramped / "s"
    fs = box.start()
    qemu = Qemu(fs, guest, None)
    base = qemu.vm(spec=qemu.spec("earlyprintk=ttyS0"))
    base.do("start")
    base.follow("console").expect(".")  # the kernel is in its memory
    take(base, "golden")
    c1, fill = clone(fs), cramped / "fill"
    left = os.statvfs(cramped)
    fill.write_bytes(bytes(left.f_bavail * left.f_bsize - (1 << 20)))
    with fails(ENOSPC):
        c1.do("start")
    fill.unlink()
    c1.error("ENOSPC", "from", "no room", "template")
    assert c1.state == "stopped" and not list(fs.state.glob("vms/*/template.*"))
    c1.do("start")


@pytest.mark.sample(3)
@pytest.mark.qemu
@pytest.mark.parametrize("after_ms", [10, 60, 150, 300, 500])
def test_kill9_of_qemu_in_the_middle_of_the_first_start(qemu, fs, after_ms):
    """Of the one that makes the template, or the clone's own."""
    golden(qemu.vm(), qemu)
    c1 = clone(fs)
    writer = fs.spawn("bash", "-c", f"echo start > {c1 / 'state'}")
    time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
    pid = c1.read("pid").strip()
    if pid:
        os.kill(int(pid), signal.SIGKILL)
    writer.finish(60)
    until(lambda: c1.state in ("running", "stopped", "crashed"), "it has ended")
    begun = c1.state == "running" or c1.state == "crashed"
    if c1.state != "running":
        c1.do("start")
    if not begun:
        assert qemu.recall(c1) == "blue"
    c2 = clone(fs, "c2")
    c2.do("start")
    assert qemu.recall(c2) == "blue"
