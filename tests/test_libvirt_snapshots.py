# SPDX-License-Identifier: Apache-2.0
"""Snapshots of libvirt's: virsh in one window and /vm in the other, and what fails meanwhile."""
import os
import subprocess
import time
from errno import EBUSY, EEXIST, EHOSTDOWN, ENOENT, EOPNOTSUPP

import pytest

from lib.guest import started
from lib.util import exists, fails, until

pytestmark = [pytest.mark.libvirt, pytest.mark.qemu]


STATES = {"running": "running", "paused": "paused", "stopped": "shut off"}


@pytest.fixture
def fs(box, domains):
    return box.start(f"-ohost=local={domains.uri}")


def names(vm):
    return sorted(os.listdir(vm / "snapshots"))


def known(lv, name):
    return lv.virsh("snapshot-list", name, "--name").stdout.split()


def ready(vm, name):
    vm.wait("snapshots", 60)
    assert vm.read(f"snapshots/{name}/state") == "ready\n", vm.read("error")


def take(vm, name):
    (vm / "snapshots" / name).mkdir()
    ready(vm, name)


@pytest.fixture
def foreign(fs, domains):
    """A stopped domain that virsh has defined, with a disk."""
    disk = fs.base / "db.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"], check=True)
    domains.define("db", devices=f"""<disk type='file' device='disk'>
        <driver name='qemu' type='qcow2'/><source file='{disk}'/>
        <target dev='vda' bus='virtio'/></disk>""")
    until(lambda: exists(fs.mnt / "db"), "it is shown")
    return fs.vm("db")


@pytest.fixture
def up(libvirt):
    """A guest of vmfs's, which remembers "blue"."""
    vm = libvirt.savable_vm()
    libvirt.up(vm)
    libvirt.remember(vm, "blue")
    return vm


def test_virsh_in_one_window(foreign, domains, fs):
    vm, lv = foreign, domains
    assert names(vm) == []
    events = vm.events()
    lv.virsh("snapshot-create-as", "db", "theirs", "for a test")
    assert names(vm) == ["theirs"] and vm.read("snapshots/theirs/state") == "ready\n"
    events.expect(" snapshots theirs ready$")
    assert set(os.listdir(vm / "snapshots/theirs")) == {"spec.yaml", "snapshot.xml"}
    assert "<description>for a test</description>" in vm.read("snapshots/theirs/snapshot.xml")
    assert "memory: 256MiB" in vm.read("snapshots/theirs/spec.yaml")
    assert (vm / "snapshots/theirs/snapshot.xml").stat().st_size == len(
        vm.read("snapshots/theirs/snapshot.xml"))
    take(vm, "ours")
    assert known(lv, "db") == ["ours", "theirs"] and names(vm) == ["ours", "theirs"]
    assert "<parent>" in vm.read("snapshots/ours/snapshot.xml")
    with fails(EEXIST):
        (vm / "snapshots/theirs").mkdir()
    vm.do("restore theirs")
    assert vm.state == "stopped" and vm.read("error") == ""
    assert "theirs" in lv.virsh("snapshot-current", "db", "--name").stdout
    inode = (vm / "snapshots/ours").stat().st_ino
    (vm / "snapshots/theirs").rmdir()
    assert known(lv, "db") == ["ours"] and names(vm) == ["ours"]
    fs.kill9()
    fs.restart()
    assert names(vm) == ["ours"] and (vm / "snapshots/ours").stat().st_ino == inode
    lv.virsh("snapshot-delete", "db", "ours")
    assert names(vm) == []
    with fails(ENOENT):
        vm.do("restore ours")


def test_one_that_virsh_takes_of_a_machine_that_runs_is_told_of(foreign, domains):
    """Without being looked at: its guest has stood still for it."""
    domains.virsh("start", "db")
    foreign.wait("running")
    events = foreign.events()
    domains.virsh("snapshot-create-as", "db", "warm")
    events.expect(" snapshots warm ready$")
    domains.virsh("destroy", "db")
    foreign.wait("stopped")
    domains.virsh("snapshot-revert", "db", "warm")
    foreign.wait("running")


def test_names_and_files_are_no_import(foreign, domains, fs):
    vm = foreign
    domains.virsh("snapshot-create-as", "db", "a name with blanks")
    take(vm, "s1")
    assert names(vm) == ["s1"]
    assert fs.sh("echo x > db/snapshots/s1/memory", check=False).returncode != 0
    vm.error("EOPNOTSUPP", "s1", "imported")
    other = fs.vm("clone")
    with fails(EOPNOTSUPP):
        other.write("spec.yaml", "from: db/snapshots/s1\n")
    other.error("EOPNOTSUPP", "db/snapshots/s1")


def test_go_with_a_new_name(foreign, domains, fs):
    vm = foreign
    take(vm, "ours")
    os.rename(vm.dir, fs.mnt / "db2")
    vm.name = "db2"
    assert names(vm) == ["ours"] and known(domains, "db2") == ["ours"]
    vm.do("start")
    vm.do("restore ours")
    assert vm.state == "stopped" and fs.names() == ["db2"] and domains.domains() == ["db2"]


def test_disks_that_can_hold_none(domains, fs, scratch):
    """It says what is needed."""
    raw = scratch / "raw"
    raw.write_bytes(bytes(1 << 20))
    domains.define("none")
    domains.define("raw", devices=f"""<disk type='file' device='disk'><driver name='qemu' type='raw'/>
        <source file='{raw}'/><target dev='vda' bus='virtio'/></disk>""")
    until(lambda: fs.names() == ["none", "raw"], "both are shown")
    for name in fs.names():
        vm = fs.vm(name)
        domains.virsh("start", name)
        vm.wait("running")
        with fails(EOPNOTSUPP):
            (vm / "snapshots/s1").mkdir()
        vm.error("EOPNOTSUPP", "qcow2", "libvirt")
        assert names(vm) == [] and vm.state == "running" and known(domains, name) == []


def test_of_one_that_was_never_started(libvirt, domains):
    """It is in libvirt's books from then on."""
    vm = libvirt.savable_vm()
    take(vm, "new")
    assert domains.domains() == ["web1"] and known(domains, "web1") == ["new"]
    vm.do("restore new")
    assert vm.state == "stopped"
    vm.dir.rmdir()
    assert domains.domains() == []


def test_states_on_the_way_are_not_shown(up, libvirt, domains):
    """It runs, for those who look on, though its vCPUs stand still and its QEMU is another one."""
    events = up.events()
    take(up, "s1")
    events.expect(" snapshots s1 taking$")
    events.expect(" snapshots s1 ready$")
    libvirt.remember(up, "red")
    up.do("restore s1")
    assert not events.has(" state (?!running)")
    assert up.state == "running" and libvirt.recall(up) == "blue"
    assert up.wait("ip", 60).split()[0] == libvirt.ip and up.wait("agent", 60)
    # A stopped one's, on one that runs.
    up.do("kill")
    take(up, "cold")
    up.do("start")
    up.do("restore cold")
    assert up.state == "stopped" and "shut off" in domains.virsh("domstate", "web1").stdout
    up.do("restore s1")
    assert up.state == "running" and libvirt.recall(up) == "blue"


def test_spec_goes_back_too(up):
    """As with virsh: what is restored is the machine, and its definition with it."""
    take(up, "s1")
    before = up.spec
    up.write("spec.yaml", before.replace("cpus: 1", "cpus: 2"))
    assert up.read("pending") == "cpus\n"
    up.do("kill")
    up.do("restore s1")
    until(lambda: "cpus: 1" in up.spec and up.read("pending") == "", "it is as it was then")


@pytest.mark.sample(2)
@pytest.mark.parametrize("after_ms", [0, 100, 30, 300])
def test_libvirtd_is_killed_in_the_middle(up, libvirt, domains, fs, after_ms):
    making = fs.spawn("mkdir", up / "snapshots/s1")
    time.sleep(after_ms / 1000)  # nothing to wait for: any moment will do
    domains.kill()
    making.finish()
    domains.answers()
    domains.at_rest("web1")
    until(lambda: STATES.get(up.state) == domains.virsh("domstate", "web1").stdout.strip(),
          "it is found again")
    if up.state == "paused":
        up.do("resume")
    up.wait("snapshots", 60)
    # A libvirtd that comes back while QEMU is busy with it has been seen to end QEMU.
    if up.state == "running":
        assert libvirt.recall(up) == "blue"
    else:
        started(up).close()
        libvirt.remember(up, "blue")
    until(lambda: names(up) == known(domains, "web1"), "it is what libvirt has")
    if names(up):
        (up / "snapshots/s1").rmdir()
    take(up, "s1")
    libvirt.remember(up, "red")
    up.do("restore s1")
    assert libvirt.recall(up) == "blue"


def test_libvirtd_is_frozen(foreign, domains):
    take(foreign, "s1")
    with domains.pause():
        start = time.monotonic()
        assert names(foreign) == ["s1"]
        assert time.monotonic() - start < 5
        foreign.wait("snapshots")
        with fails(EHOSTDOWN, EBUSY):
            foreign.do("restore s1")
        until(lambda: foreign.state == "unknown", "it is away")
        with fails(EHOSTDOWN):
            (foreign / "snapshots/s2").mkdir()
        assert names(foreign) == ["s1"]
    until(lambda: foreign.state != "unknown", "it is back")
    until(lambda: names(foreign) == known(domains, "db") == ["s1"], "nothing is lost")


@pytest.mark.parametrize("what", ["snapshot", "restore"])
def test_daemon_is_killed_in_the_middle(up, libvirt, fs, what):
    """Its successor answers whoever waits, and what was begun comes to its end."""
    if what == "restore":
        take(up, "s1")
        libvirt.remember(up, "red")
    events = up.events()
    command = (f"mkdir {up / 'snapshots/s1'}" if what == "snapshot"
               else f"/bin/echo restore s1 > {up / 'state'}")
    waiting = fs.spawn("bash", "-c", f"{command}; echo over")
    events.expect(" operation " + what)
    until(lambda: any("[s1]" in path.read_text() for path in fs.state.glob("vms/*/snapshots")),
          "its name is on the disk")
    fs.crash()
    waiting.expect("^over$")
    ready(up, "s1")
    libvirt.settled(up)
    until(lambda: "operation" not in up.status, "all is over")
    assert libvirt.recall(up) == "blue"
    up.do("restore s1")
    assert libvirt.recall(up) == "blue"
