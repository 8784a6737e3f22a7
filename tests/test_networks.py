# SPDX-License-Identifier: Apache-2.0
""".vmfs/networks/: the networks of the hosts, from here and from virsh."""
import os
import re
import select
import shutil
from errno import EALREADY, EBUSY, EEXIST, EHOSTDOWN, EINVAL, EIO, ENOENT, ENOSPC, EPERM, EXDEV

import pytest

from lib.guest import run, started
from lib.libvirtd import Libvirtd, missing
from lib.util import exists, fails, get, put, until, wait_blocked

pytestmark = pytest.mark.libvirt

LAN = """forward: none
address: 192.168.150.1/24
dhcp: 192.168.150.10-192.168.150.20
"""


@pytest.fixture(scope="module")
def host():
    """One with a network of its own: bridges and filters are made in it."""
    if why := missing():
        pytest.skip(why)
    for program in ("dnsmasq", "iptables"):
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            pytest.skip(f"{program} is not installed")
    found = Libvirtd("192.0.2.1")
    found.within("ip", "link", "set", "lo", "up")
    yield found
    found.close()


@pytest.fixture
def lv(host):
    clear(host)
    yield host
    clear(host)


def clear(host):
    host.clear()
    for name in known(host):
        host.virsh("net-destroy", name, check=False)
        host.virsh("net-undefine", name, check=False)


def known(host):
    return host.virsh("net-list", "--all", "--name").stdout.split()


def define(host, name, body=""):
    path = host.dir / "network.xml"
    path.write_text(f"<network><name>{name}</name>{body}</network>")
    host.virsh("net-define", path)


@pytest.fixture
def fs(box, lv):
    return box.start(f"-ohost=local={lv.uri}")


@pytest.fixture
def nets(fs):
    return fs.mnt / ".vmfs/networks"


def text(path):
    return get(path).decode()


def state(net):
    return text(net / "state").strip()


def watch(fs, path):
    follower = fs.spawn("inotifywait", "-m", "--format", "%e %f", path)
    follower.expect("Watches established")
    return follower


def test_made_started_and_removed(nets, lv):
    net = nets / "lab"
    net.mkdir()
    assert known(lv) == ["lab"] and state(net) == "inactive"
    assert text(net / "spec.yaml").startswith("forward: none\n")
    put(net / "spec.yaml", LAN + "domain: lab.example\nautostart: true\n")
    xml = lv.virsh("net-dumpxml", "lab").stdout
    assert re.search("<ip address='192.168.150.1' prefix='24'>", xml)
    assert re.search("<range start='192.168.150.10' end='192.168.150.20'/>", xml)
    assert "<domain name='lab.example'/>" in xml and "<forward" not in xml
    assert re.search("Autostart: +yes", lv.virsh("net-info", "lab").stdout)
    put(net / "state", "start\n")
    assert state(net) == "active"
    assert re.search("Active: +yes", lv.virsh("net-info", "lab").stdout)
    with fails(EALREADY):
        put(net / "state", "start\n")
    assert "EALREADY" in text(net / "error")
    put(net / "state", "active\n")
    assert text(net / "error") == ""
    with fails(EBUSY):
        net.rmdir()
    assert text(net / "leases") == ""
    put(net / "state", "stop\n")
    assert state(net) == "inactive"
    net.rmdir()
    assert known(lv) == [] and os.listdir(nets) == [] and not exists(net)


def test_what_virsh_does_shows_at_once(fs, nets, lv):
    seen = watch(fs, nets)
    define(lv, "lan", "<bridge name='lan0'/>")
    seen.expect("^CREATE,ISDIR lan$")
    net = nets / "lan"
    assert os.listdir(nets) == ["lan"] and state(net) == "inactive"
    file, inside = watch(fs, net / "state"), watch(fs, net)
    for verb, now in (("net-start", "active"), ("net-destroy", "inactive")):
        with open(net / "state", "rb") as f:
            f.read()
            poll = select.poll()
            poll.register(f, select.POLLPRI)
            assert not poll.poll(0)
            lv.virsh(verb, "lan")
            file.expect("^MODIFY")
            inside.expect("^MODIFY state$")
            assert poll.poll(5000) and state(net) == now
    xml = lv.virsh("net-dumpxml", "lan").stdout
    (lv.dir / "network.xml").write_text(xml.replace("</network>", "<domain name='x.y'/></network>"))
    lv.virsh("net-define", lv.dir / "network.xml")
    inside.expect("^MODIFY spec.yaml$")
    assert 'domain: "x.y"\n' in text(net / "spec.yaml")
    lv.virsh("net-undefine", "lan")
    seen.expect("^DELETE,ISDIR lan$")
    assert os.listdir(nets) == []


def test_what_is_there_keeps_its_inode(fs, nets, lv):
    for name in ("one", "two"):
        define(lv, name)
    until(lambda: sorted(os.listdir(nets)) == ["one", "two"], "both are shown")
    before = {name: (nets / name).stat().st_ino for name in ("one", "two")}
    fs.stop()
    lv.virsh("net-start", "two")
    fs.restart()
    assert {name: (nets / name).stat().st_ino for name in os.listdir(nets)} == before
    assert state(nets / "two") == "active"


def test_edit_changes_only_that(nets, lv):
    """What a spec does not know stays in the XML."""
    define(lv, "lan", "<forward mode='nat'><nat><port start='1024' end='2048'/></nat></forward>"
           "<mtu size='1400'/><ip address='192.168.151.1' netmask='255.255.255.0'><dhcp>"
           "<range start='192.168.151.2' end='192.168.151.9'/>"
           "<host mac='52:54:00:00:00:01' ip='192.168.151.5'/></dhcp></ip>")
    net = nets / "lan"
    until(lambda: exists(net), "it is shown")
    doc = text(net / "spec.yaml")
    assert "forward: nat\n" in doc and 'address: "192.168.151.1/24"\n' in doc
    put(net / "spec.yaml", re.sub("(?m)^dhcp: .*$", "dhcp: 192.168.151.7-192.168.151.8", doc))
    xml = lv.virsh("net-dumpxml", "lan").stdout
    for kept in ("<port start='1024' end='2048'/>", "<mtu size='1400'/>", "ip='192.168.151.5'",
                 "<range start='192.168.151.7' end='192.168.151.8'>|<range start='192.168.151.7' "
                 "end='192.168.151.8'/>"):
        assert re.search(kept, xml), xml
    put(net / "spec.yaml", "forward: none\n")
    xml = lv.virsh("net-dumpxml", "lan").stdout
    assert "<ip" not in xml and "<forward" not in xml and "<mtu size='1400'/>" in xml


@pytest.mark.parametrize("doc, why", [
    ("forward: nowhere\n", "'nowhere'"),
    ("adress: 1.2.3.4/24\n", "did you mean 'address'"),
    ("address: 192.168.150.1\n", "with its prefix"),
    ("address: 192.168.150.1/24\ndhcp: all\n", "range of addresses"),
    ("bridge: a-bridge-with-a-long-name\n", "name of an interface"),
    ("dhcp: 192.168.150.2-192.168.150.3\n", "needs an address"),
    ("- a\n", "key: value"),
    # What only libvirt knows:
    ("address: 192.168.150.1/24\ndhcp: 10.0.0.1-10.0.0.2\n", "10.0.0.1"),
])
def test_bad_documents_change_nothing(nets, lv, doc, why):
    net = nets / "lab"
    net.mkdir()
    put(net / "spec.yaml", LAN)
    before, xml = text(net / "spec.yaml"), lv.virsh("net-dumpxml", "lab").stdout
    with fails(EINVAL, EIO):
        put(net / "spec.yaml", doc)
    assert why in text(net / "error")
    assert text(net / "spec.yaml") == before and lv.virsh("net-dumpxml", "lab").stdout == xml
    put(net / "spec.yaml", before)
    assert text(net / "error") == ""


def test_refusals(nets, lv):
    define(lv, "lan")
    until(lambda: exists(nets / "lan"), "it is shown")
    with fails(EEXIST):
        (nets / "lan").mkdir()
    for name in ("user", "a b", "-x", "lab@local"):
        with fails(EINVAL):
            (nets / name).mkdir()
    with fails(ENOENT):
        (nets / "lab@nowhere").mkdir()
    with fails(EINVAL):
        put(nets / "lan/state", "jump\n")
    assert "write start or stop" in text(nets / "lan/error")
    for name in ("state", "leases", "error"):
        with fails(EPERM):
            os.unlink(nets / "lan" / name)
    with fails(EPERM):
        os.rename(nets / "lan/spec.yaml", nets / "lan/state")
    with fails(EPERM):
        put(nets / "other", "x", os.O_CREAT)


def test_networks_of_other_hosts(box):
    """They are called NAME@HOST, and are used by machines of that host only."""
    fs = box.start("-ohost=local=", "-ohost=far=test:///default")
    nets = fs.mnt / ".vmfs/networks"
    assert os.listdir(nets) == ["default@far"] and state(nets / "default@far") == "active"
    assert "192.168.122.1/24" in text(nets / "default@far/spec.yaml")
    with fails(EHOSTDOWN):
        (nets / "lab").mkdir()
    (nets / "lab@far").mkdir()
    put(nets / "lab@far/state", "start\n")
    assert state(nets / "lab@far") == "active" and state(nets / "default@far") == "active"
    vm = fs.vm("web", "backend: libvirt\nhost: far\n")
    os.symlink("../../.vmfs/networks/lab@far", vm / "nics/eth1")
    assert "eth1: {network: lab}" in vm.read("spec.yaml")
    assert os.readlink(vm / "nics/eth1") == "../../.vmfs/networks/lab@far"
    assert state(vm / "nics/eth1") == "active"  # the link leads there
    with fails(EXDEV):
        os.symlink("../../.vmfs/networks/lab", vm / "nics/eth2")
    vm.error("EXDEV", "on host local")
    put(fs.mnt / ".vmfs/hosts/far/uri", "\n")
    until(lambda: os.listdir(nets) == [], "they went with their host")


VIM = "vim -es -u NONE -i NONE -N -c 'set backupskip= %s' -c '%%s/one.example/two.example/' -c wq spec.yaml"
EDITORS = {
    "sed": "sed -i s/one.example/two.example/ spec.yaml",
    "sed-backup": "sed -i.bak s/one.example/two.example/ spec.yaml; rm spec.yaml.bak",
    "vim-copy": VIM % "backupcopy=yes",
    "vim-rename": VIM % "backupcopy=no",
    "mv-from-elsewhere": "sed s/one.example/two.example/ spec.yaml > $T/x; mv $T/x spec.yaml",
    "mv-inside": "sed s/one.example/two.example/ spec.yaml > new; test -f new; mv new spec.yaml",
    "cp-new-inode": "sed s/one.example/two.example/ spec.yaml > $T/x; cp --remove-destination $T/x spec.yaml",
}


@pytest.fixture
def far(box):
    """A host of libvirt's own making, with a network."""
    fs = box.start("-ohost=local=", "-ohost=far=test:///default")
    net = fs.mnt / ".vmfs/networks/lab@far"
    net.mkdir()
    return fs, net


def test_again_and_again(far):
    """What is under way for the watchers of what was there before is in nobody's way."""
    net = far[1]
    for _ in range(3):
        net.rmdir()
        net.mkdir()


def test_editors(far, scratch):
    """They replace spec.yaml as in a VM's directory, and leave nothing behind."""
    fs, net = far
    files = os.listdir(net)
    for how, script in EDITORS.items():
        if how.startswith("vim") and not shutil.which("vim"):
            continue
        put(net / "spec.yaml", "forward: none\ndomain: one.example\n")
        fs.sh(f"set -e\n{script}", cwd=net, env={"T": str(scratch)})
        assert "two.example" in text(net / "spec.yaml"), how
        assert os.listdir(net) == files and text(net / "error") == "", how
    done = fs.sh("sed -i s/forward:.none/forward:\\ nowhere/ spec.yaml", cwd=net, check=False)
    assert "Bad message" in done.stderr and "nowhere" in text(net / "error")
    assert "two.example" in text(net / "spec.yaml") and os.listdir(net) == files
    os.unlink(net / "spec.yaml")
    until(lambda: exists(net / "spec.yaml"), "it is back")


def test_editors_files(far):
    """They are of one network, go on in another daemon, and go with their network."""
    fs, lab = far
    net, files = lab.parent / "default@far", set(os.listdir(lab))
    put(net / "new", "domain: two.example\n", os.O_CREAT | os.O_EXCL)
    os.chmod(net / "new", 0o640)
    assert set(os.listdir(net)) == files | {"new"} and set(os.listdir(lab)) == files
    for other in (lab, fs.vm("web", "backend: sim\n")):
        with fails(EXDEV):
            os.rename(net / "new", other / "spec.yaml")
    os.rename(net / "spec.yaml", net / "spec.yaml~")
    assert not exists(net / "spec.yaml")
    for i in range(14):
        put(lab / f"n{i}", "x", os.O_CREAT)
    with fails(ENOSPC):
        put(lab / "n14", "x", os.O_CREAT)
    lab.rmdir()
    lab.mkdir()
    assert set(os.listdir(lab)) == files
    fs.crash()
    until(lambda: exists(net / "new"), "its network is there again")
    assert (net / "new").stat().st_mode & 0o777 == 0o640
    until(lambda: state(net) == "active", "its host is there again")
    put(net / "state", "stop\n")  # this one shows no other definition than that of what is active
    os.rename(net / "new", net / "spec.yaml")
    assert "two.example" in text(net / "spec.yaml") and "nat" in text(net / "spec.yaml~")
    assert "address" not in text(net / "spec.yaml") and text(net / "error") == ""


NODE = """<node><network><name>lan</name><uuid>00000000-0000-4000-8000-000000000001</uuid>
<domain name='lan.example'/></network>{more}</node>"""
GONE = "<network><name>gone</name><uuid>00000000-0000-4000-8000-000000000002</uuid></network>"


def test_host_that_is_away_when_the_daemon_comes_again(box, scratch):
    """Its networks are there as they were known, with open files and editors' files of theirs."""
    node, away = scratch / "node.xml", scratch / "away.xml"
    node.write_text(NODE.format(more=GONE))
    fs = box.start("-ohost=local=", f"-ohost=far=test://{node}")
    nets = fs.mnt / ".vmfs/networks"
    net = nets / "lan@far"
    doc, inode = text(net / "spec.yaml"), net.stat().st_ino
    assert "lan.example" in doc and state(net) == "active"
    put(net / "new", doc, os.O_CREAT)
    opened = os.open(net / "state", os.O_RDONLY)
    node.rename(away)
    fs.crash()
    assert os.pread(opened, 100, 0) == b"unknown\n"
    os.close(opened)
    assert sorted(os.listdir(nets)) == ["gone@far", "lan@far"] and net.stat().st_ino == inode
    assert state(net) == "unknown" and text(net / "spec.yaml") == doc
    for attempt in (lambda: put(net / "state", "start\n"), lambda: get(net / "leases"),
                    lambda: os.rename(net / "new", net / "spec.yaml"), (nets / "gone@far").rmdir):
        with fails(EHOSTDOWN):
            attempt()
    assert "EHOSTDOWN" in text(net / "error") and exists(net / "new")
    away.write_text(NODE.format(more=""))
    away.rename(node)
    until(lambda: state(net) == "active", "its host is there again")
    until(lambda: os.listdir(nets) == ["lan@far"], "what is no more is gone")
    assert net.stat().st_ino == inode and exists(net / "new")


@pytest.mark.qemu
def test_guest_gets_its_address(fs, nets, lv, guest):
    net = nets / "lan"
    net.mkdir()
    put(net / "spec.yaml", LAN)
    vm = fs.vm("web", "backend: libvirt\naccel: tcg\nmemory: 128MiB\nnics: {eth0: {network: lan}}\n"
               f"boot: {{kernel: {guest.kernel}, initrd: {guest.initrd}, "
               "cmdline: console=ttyS0 quiet}\n")
    with fails(EBUSY, EIO, EINVAL):
        vm.do("start")
    assert "lan" in vm.read("error") and "not active" in vm.read("error")
    put(net / "state", "start\n")
    console = started(vm)
    assert "<source network='lan'" in lv.virsh("dumpxml", "web").stdout
    address = get(vm / "wait/ip").decode().strip()
    assert f"HostName {address}\n  Port 22\n" in vm.read("ssh_config")
    assert re.fullmatch(r"192\.168\.150\.1\d", address), address
    mac = run(vm, console, "cat /sys/class/net/eth0/address")
    assert re.search(rf"(?m)^{address} {mac} \S+ 2\d\d\d-", text(net / "leases"))
    assert (net / "leases").stat().st_size == len(text(net / "leases"))
    assert vm.read("pending") == ""
    os.symlink("../../.vmfs/networks/lan", vm / "nics/eth1")
    until(lambda: "eth1" in run(vm, console, "ls /sys/class/net"), "the guest sees the second")
    assert len(re.findall("<source network='lan'", lv.virsh("dumpxml", "web").stdout)) == 2
    os.unlink(vm / "nics/eth1")
    vm.do("kill")


def test_host_that_is_frozen(fs, nets, lv):
    define(lv, "lan")
    net = nets / "lan"
    until(lambda: exists(net), "it is shown")
    seen = watch(fs, net / "state")
    with lv.pause():
        with fails(EHOSTDOWN):
            put(net / "state", "start\n")
        assert state(net) == "unknown"
        seen.expect("^MODIFY")
        for attempt in (lambda: put(net / "state", "start\n"), lambda: put(net / "spec.yaml", LAN),
                        lambda: get(net / "leases"), net.rmdir, (nets / "lab").mkdir):
            with fails(EHOSTDOWN):
                attempt()
    until(lambda: state(net) != "unknown", "its host is back")
    # What it was asked while it was frozen, it may have done.
    assert (state(net) == "active") == ("lan" in lv.virsh("net-list", "--name").stdout.split())


def test_libvirtd_is_killed(fs, nets, lv):
    define(lv, "lan")
    net = nets / "lan"
    until(lambda: exists(net), "it is shown")
    put(net / "state", "start\n")
    inode = net.stat().st_ino
    lv.kill()
    until(lambda: state(net) == "unknown", "its host is away")
    until(lambda: state(net) == "active", "it is back")
    assert net.stat().st_ino == inode
    put(net / "state", "stop\n")
    assert state(net) == "inactive"


def test_daemon_is_killed_while_it_starts_one(fs, nets, lv):
    """Its successor answers whoever waits, and shows what is so."""
    define(lv, "lan")
    net = nets / "lan"
    until(lambda: exists(net), "it is shown")
    with lv.pause():
        echo = fs.spawn("/bin/sh", "-c", f"/bin/echo start > {net}/state && echo done")
        wait_blocked(echo.proc.pid)
        fs.crash()
    echo.expect("done|Host is down")
    until(lambda: (state(net) == "active") ==
          ("lan" in lv.virsh("net-list", "--name").stdout.split()), "its state is true")
