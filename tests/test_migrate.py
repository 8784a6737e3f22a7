# SPDX-License-Identifier: Apache-2.0
"""From one libvirt host to another: two of them, with a network between them."""
from errno import EBUSY, EHOSTDOWN, EINVAL, EIO, EOPNOTSUPP, ESRCH

import pytest

from lib.guest import run, started
from lib.libvirtd import missing, two_hosts
from lib.util import exists, fails, until

pytestmark = [pytest.mark.libvirt, pytest.mark.qemu]

@pytest.fixture(name="pair", scope="module")
def make_pair():
    if why := missing():
        pytest.skip(why)
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture
def nodes(pair):
    for node in pair:
        node.clear()
    yield pair
    for node in pair:
        node.clear()


@pytest.fixture
def fs(box, nodes):
    return box.start(*(f"-ohost=node{i}={node.uri}" for i, node in enumerate(nodes, 1)),
                     "-ohost=local=")


def spec(guest, host="node1"):
    return (f"backend: libvirt\nhost: {host}\naccel: tcg\nmemory: 128MiB\n"
            f"boot: {{kernel: {guest.kernel}, initrd: {guest.initrd}, "
            "cmdline: console=ttyS0 quiet}\n")


def running(node):
    return node.virsh("list", "--name").stdout.split()


def test_made_elsewhere_and_moved_live(fs, nodes, guest):
    """What runs in it goes on, its directory stays the same, and it runs at one place only."""
    vm = fs.vm("web", spec(guest) + "nics: {eth0: {ports: ['0:22']}}\n")
    node = dict(line.split(" ", 1) for line in fs.host("hosts/node1/node").splitlines())
    assert 0 < int(node["free"]) <= int(node["memory"])
    assert vm.read("host") == "node1\n"
    with fails(ESRCH):
        vm.write("host", "node2\n")
    console = started(vm)
    assert running(nodes[0]) == ["web"] and vm.status["host"] == "node1"
    events, inode = vm.events(), vm.dir.stat().st_ino
    run(vm, console, "i=41")
    vm.wait("agent", 60)
    job = vm.job("read a; read b; echo $a $b; exit 3")
    stdin = open(job / "stdin", "wb", buffering=0)
    stdin.write(b"here\n")
    vm.write("host", "node2\n")
    assert (running(nodes[0]), running(nodes[1])) == ([], ["web"])
    assert vm.read("host") == "node2\n" and vm.state == "running"
    events.expect(" web host node2$")
    until(lambda: vm.status["reason"] == "migrated", "node2 has been looked at")
    assert run(vm, console, "echo $((i + 1))") == "42"
    until(lambda: "port.eth0.22" in vm.status, "its forward is made there")
    port = vm.status["port.eth0.22"].split(":")[1]
    nodes[1].within("bash", "-c", f"head -c4 < /dev/tcp/127.0.0.1/{port} | grep -q SSH-")
    stdin.write(b"there\n")
    stdin.close()
    assert job.out() == b"here there\n" and job.status == "exit 3"
    assert vm.dir.stat().st_ino == inode and fs.names() == ["web"]
    assert nodes[0].domains() == [] and vm.status["host"] == "node2"
    assert fs.host("list").startswith("web running libvirt node2 ")
    assert not events.has(" state (stopped|paused|unknown)$")
    vm.do("kill")
    assert running(nodes[1]) == []
    fs.stop()
    fs.restart()
    assert vm.read("host") == "node2\n" and vm.state == "stopped"


@pytest.fixture
def slow(fs, nodes, guest):
    """One that runs on node1, and would take minutes to move."""
    vm = fs.vm("web", spec(guest))
    vm.console = started(vm)
    nodes[0].virsh("migrate-setspeed", "web", 1)
    return vm


def move(vm, host):
    """Begin to move it; the `echo` that waits for the end."""
    echo = vm.fs.spawn("bash", "-c", f"/bin/echo {host} > {vm / 'host'}")
    until(lambda: "progress" in vm.status, "it is under way")
    return echo


def test_move_shows_progress_and_can_be_ended(slow, nodes):
    vm, events = slow, slow.events()
    echo = move(vm, "node2")
    status = vm.status
    assert (status["operation"], status["destination"]) == ("migrate moving", "node2")
    assert 0 <= int(status["progress"]) < 100
    assert vm.read("host") == "node1\n" and vm.state == "running" and vm.fs.names() == ["web"]
    with fails(EBUSY):
        vm.do("pause")
    vm.write("host", "node1\n")  # it is to stay
    echo.expect("canceled")
    until(lambda: nodes[1].domains() == [], "node2 has let go of it")
    assert running(nodes[0]) == ["web"] and vm.read("host") == "node1\n"
    assert not events.has(" (state (stopped|paused|unknown)|host node2)$")
    vm.error("ECANCELED", "stay on node1")
    assert "destination" not in vm.status
    assert run(vm, vm.console, "echo still") == "still"
    nodes[0].virsh("migrate-setspeed", "web", 1000)
    vm.write("host", "node2\n")
    assert running(nodes[1]) == ["web"] and vm.read("error") == ""


def test_kill_ends_a_move(slow, nodes):
    echo = move(slow, "node2")
    slow.do("kill")
    assert slow.state == "stopped" and running(nodes[0]) == running(nodes[1]) == []
    echo.expect("canceled")
    assert slow.read("host") == "node1\n"


def test_other_host_dies_meanwhile(slow, nodes):
    vm = slow
    echo = move(vm, "node2")
    nodes[1].kill()
    echo.expect("Host is down|Input/output error|canceled")
    assert vm.read("host") == "node1\n" and running(nodes[0]) == ["web"]
    assert vm.state == "running" and run(vm, vm.console, "echo still") == "still"
    nodes[1].answers()
    assert running(nodes[1]) == [] and vm.fs.names() == ["web"]


@pytest.mark.slow  # in test_other_host_dies_meanwhile it is as lost
def test_other_host_freezes_meanwhile(slow, nodes):
    vm = slow
    echo = move(vm, "node2")
    with nodes[1].pause():
        echo.expect("Host is down|Input/output error|canceled", 60)
        assert vm.read("host") == "node1\n"
        until(lambda: running(nodes[0]) == ["web"], "it runs where it was")
        assert vm.state == "running" and run(vm, vm.console, "echo still") == "still"
    nodes[1].answers()
    until(lambda: running(nodes[1]) == [], "node2 has let go of it")
    assert vm.fs.names() == ["web"]


def test_own_host_dies_meanwhile(slow, nodes):
    """Its libvirtd, which then comes again: the guest runs on there."""
    vm, events = slow, slow.events()
    echo = move(vm, "node2")
    nodes[0].kill()
    echo.expect("Host is down")
    events.expect(" state unknown$")
    events.expect(" state running$")
    assert vm.read("host") == "node1\n" and vm.fs.names() == ["web"]
    assert running(nodes[0]) == ["web"]
    until(lambda: running(nodes[1]) == [], "node2 has let go of it")


def test_daemon_dies_meanwhile(slow, nodes):
    """Whoever ordered it is gone: libvirt ends it, and it runs at one place."""
    vm, fs = slow, slow.fs
    move(vm, "node2")
    fs.kill9()
    fs.restart()
    until(lambda: nodes[1].domains() == [], "node2 has let go of it")
    assert running(nodes[0]) == ["web"]
    assert fs.names() == ["web"] and vm.read("host") == "node1\n" and vm.state == "running"


def test_paused_one_stays_paused(fs, nodes, guest):
    vm = fs.vm("web", spec(guest))
    vm.do("start")
    vm.do("pause")
    vm.write("host", "node2\n")
    assert vm.state == "paused" and vm.read("host") == "node2\n" and fs.names() == ["web"]
    assert nodes[1].virsh("domstate", "web").stdout.strip() == "paused"
    assert nodes[0].domains() == []


def test_stopped_one_is_defined_elsewhere(fs, nodes):
    nodes[0].define("web", memory=64)
    until(lambda: fs.names() == ["web"], "it is shown")
    vm = fs.vm("web")
    inode, spec_before = vm.dir.stat().st_ino, vm.spec
    vm.write("host", "node2\n")
    assert nodes[0].domains() == [] and nodes[1].domains() == ["web"]
    assert vm.read("host") == "node2\n" and vm.state == "stopped" and fs.names() == ["web"]
    assert vm.dir.stat().st_ino == inode and vm.spec == spec_before
    vm.do("start")
    assert running(nodes[1]) == ["web"]
    vm.do("kill")
    vm.write("host", "node1\n")
    assert nodes[0].domains() == ["web"] and fs.names() == ["web"]


def test_moved_by_virsh(fs, nodes, guest):
    """The directory goes with it."""
    vm = fs.vm("web", spec(guest))
    console, inode = started(vm), vm.dir.stat().st_ino
    events = vm.events()
    nodes[0].virsh("migrate", "--live", "--persistent", "--undefinesource", "web", nodes[1].uri)
    events.expect(" web host node2$")
    assert vm.dir.stat().st_ino == inode and vm.state == "running"
    assert run(vm, console, "echo still") == "still"
    until(lambda: fs.names() == ["web"], "it is shown once")
    vm.do("kill")
    assert running(nodes[1]) == [] and vm.state == "stopped"


def test_moves_that_cannot_be(fs, nodes, tmp_path):
    nodes[0].define("web", memory=64)
    nodes[1].define("www", memory=64)
    until(lambda: fs.names() == ["web", "www"], "both are shown")
    vm = fs.vm("web")
    for bad in ("", "node3", "node1 node2"):
        with fails(EINVAL):
            vm.write("host", bad + "\n")
    vm.error("EINVAL", "no host")
    vm.write("host", "node1\n")  # it is there
    with fails(EHOSTDOWN):
        vm.write("host", "local\n")
    with fails(EBUSY):
        vm.write("spec.yaml", vm.spec + "host: node2\n")
    vm.error("EBUSY", "file 'host'")
    (vm / "spec.yaml.rej").unlink()
    nodes[1].virsh("domrename", "www", "web")
    with fails(EIO):
        vm.write("host", "node2\n")
    vm.error("EIO", "'web' already exists")
    assert nodes[0].domains() == ["web"] and vm.read("host") == "node1\n"
    other = fs.vm("other", "backend: sim\n")
    with fails(EOPNOTSUPP):
        other.write("spec.yaml", "backend: sim\nhost: node1\n")
    with fails(EINVAL):
        other.write("spec.yaml", "host: node9\n")
    assert not exists(other / "host")
    other = fs.vm("third", "host: node2\n")
    assert other.read("host") == "node2\n" and other.status["backend"] == "libvirt"
    with fails(EBUSY):
        (fs.mnt / ".vmfs/hosts/node2").rmdir()
