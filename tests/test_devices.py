# SPDX-License-Identifier: Apache-2.0
"""Devices of the host: .vmfs/devices, and devices/ of a VM."""
import os
from errno import EACCES, EBUSY, EEXIST, EINVAL, EIO, ENOENT, EOPNOTSUPP, EPERM, EXDEV
from pathlib import Path

import pytest

from lib.util import fails, get, until

GPU, NIC = "0000:01:00.0", "0000:02:00.0"


def devices(fs, bus="pci"):
    return sorted(os.listdir(fs.mnt / ".vmfs/devices" / bus))


def read(fs, device, name):
    return get(fs.mnt / ".vmfs/devices" / device / name).decode()


@pytest.fixture
def host(box):
    pytest.importorskip("gi")
    from lib.hostdev import MockHost
    mock = MockHost()
    box.env.update(mock.env)
    yield mock
    mock.close()


@pytest.fixture
def fleet(host, box):
    """A host with two PCI devices and a stick."""
    host.gpu = host.pci(GPU, group=7, driver="vfio-pci")
    host.nic = host.pci(NIC, vendor="0x8086", device="0x10d3")
    host.stick = host.usb("1-2")
    host.usb("usb1", number=1)  # the root of the bus, which is nobody's
    return box.start()


def test_of_this_host(fs):
    """The real ones, whatever they are, as sysfs has them."""
    if not (fs.mnt / ".vmfs/devices").exists():
        pytest.skip("built without libudev")
    sys = Path("/sys/bus/pci/devices")
    there = sorted(os.listdir(sys)) if sys.exists() else []
    assert devices(fs) == there
    for address in there:
        assert read(fs, f"pci/{address}", "vendor") == (sys / address / "vendor").read_text()[2:]
        assert read(fs, f"pci/{address}", "class") == (sys / address / "class").read_text()[2:]
        link = sys / address / "driver"
        assert read(fs, f"pci/{address}", "driver") == (
            os.path.basename(os.readlink(link)) + "\n" if link.exists() else "")
    with fails(EPERM):
        os.mkdir(fs.mnt / ".vmfs/devices/pci/0000:ff:00.0")


def test_listing(fleet):
    assert devices(fleet) == [GPU, NIC] and devices(fleet, "usb") == ["1-2"]
    assert sorted(os.listdir(fleet.mnt / ".vmfs/devices")) == ["pci", "usb"]
    gpu = {n: read(fleet, f"pci/{GPU}", n)
           for n in os.listdir(fleet.mnt / ".vmfs/devices/pci" / GPU) if n != "name"}
    assert gpu == {"vendor": "10de\n", "device": "1b80\n", "class": "030000\n",
                   "driver": "vfio-pci\n", "iommu_group": "7\n", "attached": ""}
    assert read(fleet, f"pci/{NIC}", "iommu_group") == ""
    stick = {n: read(fleet, "usb/1-2", n)
             for n in os.listdir(fleet.mnt / ".vmfs/devices/usb/1-2")}
    assert stick == {"vendor": "0951\n", "device": "1666\n", "class": "00\n", "driver": "",
                     "name": "Kingston DataTraveler\n", "attached": ""}


def test_come_and_go(fleet, host):
    """Pushed, and told to watchers."""
    watch = fleet.spawn("inotifywait", "-m", "-e", "create,delete", "--format", "%e %f",
                        fleet.mnt / ".vmfs/devices/usb")
    watch.expect("Watches established")
    devices(fleet, "usb")
    for _ in range(2):
        path = host.usb("1-3.2", number=9)
        host.tell(path, "add")
        watch.expect(r"^CREATE,ISDIR 1-3\.2$")
        assert devices(fleet, "usb") == ["1-2", "1-3.2"]
        assert read(fleet, "usb/1-3.2", "name") == "Kingston DataTraveler\n"
        held = os.open(fleet.mnt / ".vmfs/devices/usb/1-3.2/name", os.O_RDONLY)
        host.remove(path)
        watch.expect(r"^DELETE,ISDIR 1-3\.2$")
        assert devices(fleet, "usb") == ["1-2"]
        assert os.pread(held, 100, 0) == b""
        os.close(held)
        with fails(ENOENT):
            read(fleet, "usb/1-3.2", "name")
    host.driver(host.nic, "vfio-pci")
    until(lambda: read(fleet, f"pci/{NIC}", "driver") == "vfio-pci\n", "it is told of")


def test_while_the_daemon_is_away(fleet, host):
    fleet.kill9()
    host.tell(host.usb("1-4", number=11), "add")
    fleet.restart()
    assert devices(fleet, "usb") == ["1-2", "1-4"]


def test_ln_and_rm(fleet):
    vm = fleet.vm("web1", "backend: sim\n")
    place = fleet.mnt / ".vmfs/devices"
    fleet.sh(f"ln -s {place}/usb/1-2 web1/devices/stick; ln -s ../../.vmfs/devices/pci/{GPU} "
             "web1/devices/gpu")
    assert vm.spec == ("backend: sim\ndevices:\n  stick: {usb: \"1-2\"}\n"
                       f"  gpu: {{pci: \"{GPU}\"}}\n")
    assert (vm / "devices/gpu").samefile(place / "pci" / GPU)
    assert read(fleet, "usb/1-2", "attached") == "web1\n"
    vm.do("start")
    assert vm.read("pending") == ""
    fleet.sh("rm web1/devices/stick web1/devices/gpu")
    assert vm.read("pending") == "" and vm.spec == "backend: sim\ndevices: {}\n"
    assert read(fleet, "usb/1-2", "attached") == ""


def test_mistakes(fleet):
    vm = fleet.vm("web1", "backend: sim\n")
    place = fleet.mnt / ".vmfs/devices"
    os.symlink(place / "usb/1-2", vm / "devices/stick")
    before = vm.spec
    for target, name, errno, word in (
            (place / "usb/1-9", "x", ENOENT, "1-9"), ("/dev/null", "x", EINVAL, "not a device"),
            (place / "pci", "x", EINVAL, "not a device"), (place / "usb/1-2", "x", EINVAL, "twice"),
            (place / "usb/1-2", "stick", EEXIST, None)):
        with fails(errno):
            os.symlink(target, vm / "devices" / name)
        if word:
            vm.error(None, word)
    assert vm.spec == before
    for text in ('{pci: "01:00.0"}', '{usb: "1"}', '{usb: "1-2.3.4.5.6.7.8"}', "{}",
                 f'{{pci: "{GPU}", usb: 1-2}}', '{usb: "1-2,x"}'):
        with fails(EINVAL):
            vm.write("spec.yaml", f"backend: sim\ndevices: {{a: {text}}}\n")
        vm.error("EINVAL", "devices.a")
    assert vm.spec == before


@pytest.mark.qemu
def test_what_qemu_cannot_be_given(fleet, host, guest):
    """Each is refused with the reason, cold and hot, and nothing has changed."""
    from lib.backends import Qemu
    qemu = Qemu(fleet, guest)
    plain = qemu.spec()
    vm = qemu.vm(spec=plain)
    place = fleet.mnt / ".vmfs/devices"
    reasons = ((f"{{pci: \"{NIC}\"}}", EOPNOTSUPP, "IOMMU"),
               ('{pci: "0000:09:00.0"}', ENOENT, "0000:09:00.0"),
               ("{usb: 1-7}", ENOENT, "1-7"),
               # The group's node is not there, nor that of the stick.
               (f"{{pci: \"{GPU}\"}}", ENOENT, "/dev/vfio/7"),
               ("{usb: 1-2}", ENOENT, "/dev/bus/usb/001/005"))
    for value, errno, word in reasons:
        vm.write("spec.yaml", plain + f"devices: {{x: {value}}}\n")
        with fails(errno):
            vm.do("start")
        vm.error(None, "devices.x", word)
        assert vm.state == "stopped"
    host.driver(host.gpu, "nvidia")
    until(lambda: read(fleet, f"pci/{GPU}", "driver") == "nvidia\n", "it is told of")
    vm.write("spec.yaml", plain + f"devices: {{x: {{pci: \"{GPU}\"}}}}\n")
    with fails(EBUSY):
        vm.do("start")
    vm.error("EBUSY", "nvidia", "driverctl")
    vm.write("spec.yaml", plain)
    vm.do("start")
    for device, errno in ((f"pci/{GPU}", EBUSY), (f"pci/{NIC}", EOPNOTSUPP), ("usb/1-2", ENOENT)):
        with fails(errno):
            os.symlink(place / device, vm / "devices/x")
        assert vm.spec == plain and os.listdir(vm / "devices") == []
        assert vm.read("pending") == ""
    vm.do("kill")


@pytest.mark.qemu
def test_what_qemu_says(fleet, host, guest):
    """A device that it opens, and which is none: its own words come through, and nothing is left."""
    from lib.backends import Qemu
    qemu = Qemu(fleet, guest)
    node = Path(host.root, "dev/vfio/7")
    node.parent.mkdir(parents=True, exist_ok=True)
    node.write_text("")
    vm = qemu.vm(spec=qemu.spec())
    vm.do("start")
    before = vm.spec
    for _ in range(2):  # its place is free again
        with fails(EIO, ENOENT, EINVAL, EACCES):
            os.symlink(fleet.mnt / ".vmfs/devices/pci" / GPU, vm / "devices/gpu")
        vm.error(None, "devices.gpu", "vfio")
        assert vm.spec == before and vm.read("pending") == "" and vm.state == "running"
    vm.do("kill")


@pytest.mark.qemu
def test_of_another_machine(fleet, guest):
    """What one runs with is not another's, cold or hot, until it is taken away there."""
    from lib.backends import Qemu
    qemu = Qemu(fleet, guest)
    fleet.vm("db", "backend: sim\ndevices: {stick: {usb: 1-2}}\n").do("start")
    plain = qemu.spec()
    vm = qemu.vm(spec=plain + "devices: {x: {usb: 1-2}}\n")
    with fails(EBUSY):
        vm.do("start")
    vm.error("EBUSY", "devices.x", "VM 'db' runs with 1-2")
    assert vm.state == "stopped" and read(fleet, "usb/1-2", "attached") == "db\n"
    vm.write("spec.yaml", plain)
    vm.do("start")
    with fails(EBUSY):
        os.symlink(fleet.mnt / ".vmfs/devices/usb/1-2", vm / "devices/x")
    vm.error("EBUSY", "devices.x", "VM 'db' runs with 1-2")
    assert vm.spec == plain and os.listdir(vm / "devices") == [] and vm.read("pending") == ""
    fleet.sh("rm db/devices/stick")
    with fails(ENOENT):  # what is wrong now is that its node is not there
        os.symlink(fleet.mnt / ".vmfs/devices/usb/1-2", vm / "devices/x")
    vm.error("ENOENT", "/dev/bus/usb")
    vm.do("kill")


THEIRS = """<hostdev mode='subsystem' type='usb'><source><vendor id='0x0951'/><product id='0x1666'/></source></hostdev>
<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='1' slot='0' function='0'/></source>
<rom bar='off'/></hostdev>"""


@pytest.mark.libvirt
def test_with_libvirt(host, box, domains):
    """Links and edits are <hostdev>, and what others have written as that is shown, and kept."""
    host.gpu = host.pci(GPU, group=7, driver="vfio-pci")
    host.pci(NIC)
    host.usb("1-2")
    domains.define("db", memory=64, devices=THEIRS)
    fs = box.start(f"-ohost=local={domains.uri}")
    place = fs.mnt / ".vmfs/devices"
    db, web = fs.vm("db"), fs.vm("web1", "backend: libvirt\nmemory: 64MiB\n")
    until(lambda: "devices" in db.spec, "it has been looked at")
    assert os.listdir(db / "devices") == ["hostdev1"] and read(fs, f"pci/{GPU}", "attached") == "db\n"
    os.symlink(place / "pci" / NIC, db / "devices/nic")
    xml = domains.virsh("dumpxml", "db").stdout
    assert xml.count("<hostdev") == 3 and "<rom bar='off'/>" in xml and "<vendor id='0x0951'/>" in xml
    assert "<address domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>" in xml
    os.unlink(db / "devices/hostdev1")
    xml = domains.virsh("dumpxml", "db").stdout
    assert xml.count("<hostdev") == 2 and "<rom" not in xml and "<vendor id='0x0951'/>" in xml
    assert os.listdir(db / "devices") == ["nic"]

    with fails(EOPNOTSUPP):
        os.symlink(place / "usb/1-2", web / "devices/stick")
    web.error("EOPNOTSUPP", "devices.stick", "domain.xml")
    web.do("start")
    with fails(EOPNOTSUPP, EIO, ENOENT, EBUSY):  # libvirt looks at the true host
        os.symlink(place / "pci" / GPU, web / "devices/gpu")
    web.error(None, "libvirt")
    assert os.listdir(web / "devices") == [] and web.read("pending") == ""
    assert "<hostdev" not in domains.virsh("dumpxml", "--inactive", "web1").stdout
    plain = web.spec
    web.write("spec.yaml", plain + f"devices: {{gpu: {{pci: \"{GPU}\"}}}}\n")
    assert web.read("pending") == "devices.gpu\n" and os.listdir(web / "devices") == ["gpu"]
    assert "<alias name='ua-gpu'/>" in domains.virsh("dumpxml", "--inactive", "web1").stdout
    web.do("kill")
    assert web.read("pending") == "" and web.spec.startswith(plain)
    with fails(EOPNOTSUPP, EIO, ENOENT, EBUSY):
        web.do("start")
    web.error(None, "libvirt")
    assert web.state == "stopped"
    web.write("spec.yaml", plain)
    web.do("start")
    assert web.read("pending") == ""


@pytest.mark.libvirt
def test_of_another_host(host, box):
    """What it names is there, not here."""
    host.pci(GPU, group=7, driver="vfio-pci")
    fs = box.start("-ohost=local=", "-ohost=far=test:///default")
    vm = fs.vm("web1", "backend: libvirt\nhost: far\n")
    with fails(EXDEV):
        os.symlink(fs.mnt / ".vmfs/devices/pci" / GPU, vm / "devices/gpu")
    vm.error("EXDEV", "far")
    vm.write("spec.yaml", f"backend: libvirt\nhost: far\ndevices: {{gpu: {{pci: \"{GPU}\"}}}}\n")
    assert os.listdir(vm / "devices") == ["gpu"] and read(fs, f"pci/{GPU}", "attached") == ""


@pytest.mark.qemu
def test_what_cannot_be_saved(fleet, host, guest):
    """A machine with a device of the host neither sleeps nor is taken a snapshot of."""
    from lib.backends import Qemu
    qemu = Qemu(fleet, guest)
    node = Path(host.root, "dev/bus/usb/001/005")
    node.parent.mkdir(parents=True, exist_ok=True)
    node.write_text("")
    vm = qemu.vm(spec=qemu.spec())
    vm.do("start")
    os.symlink(fleet.mnt / ".vmfs/devices/usb/1-2", vm / "devices/stick")
    assert vm.read("pending") == "" and read(fleet, "usb/1-2", "attached") == "web1\n"
    for act in (lambda: vm.do("sleep"), lambda: (vm / "snapshots/s").mkdir()):
        with fails(EOPNOTSUPP):
            act()
        vm.error("EOPNOTSUPP", "devices.stick", "rm devices/stick")
        assert vm.state == "running" and os.listdir(vm / "snapshots") == []
    os.unlink(vm / "devices/stick")
    vm.do("sleep")
    assert vm.state == "asleep" and vm.read("error") == ""
    vm.do("kill")
