# SPDX-License-Identifier: Apache-2.0
"""libvirt: the domains that are there, on this host and on others, and what others do to them."""
import os
import signal
import subprocess
import time
import uuid
from errno import EBUSY, EEXIST, EHOSTDOWN, EINVAL, ENOENT, EPERM

import pytest

from lib.util import exists, fails, get, put, until

pytestmark = pytest.mark.libvirt

NODE = """<node>
  <domain type='test'><name>{name}</name><uuid>{uuid}</uuid>
    <memory unit='MiB'>64</memory><vcpu>2</vcpu><os><type>hvm</type></os></domain>
  {more}
</node>
"""


@pytest.fixture
def lv(domains):
    return domains


@pytest.fixture
def on(box, lv):
    """A mount that shows its domains; to be started."""
    def start(*args):
        return box.start(f"-ohost=local={lv.uri}", *args)
    return start


def shown(fs):
    """Name to state, as .vmfs/list has them."""
    return dict(line.split()[:2] for line in fs.host("list").splitlines())


def inodes(fs):
    return {name: (fs.mnt / name).stat().st_ino for name in fs.names()}


def watch(fs, *words):
    follower = fs.spawn("inotifywait", "-m", "--format", "%e %f", *words)
    follower.expect("Watches established")
    return follower


# What is there


def test_domains_are_there_with_their_states(lv, on):
    for name in ("one", "two", "three"):
        lv.define(name, memory=64)
    lv.virsh("start", "two")
    lv.virsh("start", "three")
    lv.virsh("suspend", "three")
    fs = on()
    assert shown(fs) == {"one": "stopped", "two": "running", "three": "paused"}
    assert fs.names() == ["one", "three", "two"]
    status = fs.vm("two").status
    assert (status["backend"], status["host"]) == ("libvirt", "local")
    host = dict(line.split(" ", 1) for line in fs.host("hosts/local/status").splitlines())
    assert (host["state"], host["connection"], host["vms"], host["live"]) == ("up", "up", "3", "2")
    assert host["version"].startswith("libvirt ")
    assert fs.host("hosts/local/uri").strip() == lv.uri


def test_inodes_and_names_survive_a_restart(lv, on):
    for name in ("one", "two"):
        lv.define(name)
    fs = on()
    before = inodes(fs)
    fs.stop()
    lv.virsh("undefine", "one")
    lv.virsh("domrename", "two", "second")
    lv.define("one")  # another one, of the same name
    fs.restart()
    after = inodes(fs)
    assert after["second"] == before["two"]
    assert after["one"] not in before.values()


def test_what_virsh_does_shows_at_once(lv, on):
    lv.define("web")
    fs = on()
    vm = fs.vm("web")
    seen = watch(fs, vm / "state")
    events = vm.events()
    for verb, state in (("start", "running"), ("suspend", "paused"), ("resume", "running"),
                        ("destroy", "stopped")):
        lv.virsh(verb, "web")
        events.expect(rf" web state {state}$")
        assert vm.state == state
    assert vm.status["reason"] == "killed"
    seen.expect("MODIFY")


def test_watchers_of_the_root_are_told(lv, on):
    fs = on()
    seen = watch(fs, fs.mnt)
    lv.define("web")
    seen.expect("^CREATE,ISDIR web$")
    assert fs.vm("web").state == "stopped"
    lv.virsh("domrename", "web", "www")
    seen.expect("^MOVED_FROM,ISDIR web$")
    seen.expect("^MOVED_TO,ISDIR www$")
    assert fs.names() == ["www"]
    lv.virsh("undefine", "www")
    seen.expect("^DELETE,ISDIR www$")
    assert fs.names() == [] and not exists(fs.mnt / "www")


def test_transient_domain_comes_and_goes(lv, on):
    fs = on()
    seen = watch(fs, fs.mnt)
    lv.define("web")
    xml = lv.virsh("dumpxml", "web").stdout.replace(">web<", ">brief<")
    lv.virsh("undefine", "web")
    seen.expect("^DELETE,ISDIR web$")
    (lv.dir / "brief.xml").write_text(xml.replace(xml.split("<uuid>")[1].split("<")[0],
                                                  str(uuid.uuid4())))
    lv.virsh("create", lv.dir / "brief.xml")
    seen.expect("^CREATE,ISDIR brief$")
    assert fs.vm("brief").state == "running"
    lv.virsh("destroy", "brief")
    seen.expect("^DELETE,ISDIR brief$")
    lv.define("last")  # what comes after it in order is told after it
    seen.expect("^CREATE,ISDIR last$")
    assert "brief" not in seen.text[seen.text.rindex("DELETE,ISDIR brief") + 20:]
    assert fs.names() == ["last"]


def test_name_that_is_taken(lv, on, box):
    """The one that was here keeps its name; the other has its host's behind it, and keeps that."""
    fs = on()
    fs.vm("web", "backend: sim\n")
    lv.define("web")
    until(lambda: "web@local" in fs.names(), "the domain is shown under another name")
    inode = inodes(fs)["web@local"]
    with fails(EINVAL):
        os.mkdir(fs.mnt / "x@local")
    fs.vm("web").dir.rmdir()
    fs.stop()
    fs.restart()
    assert inodes(fs) == {"web@local": inode}
    lv.virsh("undefine", "web")
    until(lambda: fs.names() == [], "it is gone")


def test_names_that_no_directory_could_have(lv, on):
    for name in ("my vm", ".hidden", "ümlaut"):
        lv.define(name)
    fs = on()
    assert fs.names() == ["d.hidden", "d__mlaut", "my_vm"]


def test_mkdir_of_a_name_that_libvirt_has(lv, on):
    lv.define("web")
    fs = on()
    with fails(EEXIST):
        os.mkdir(fs.mnt / "web")


# Hosts


def test_host_by_hand(box, tmp_path):
    """mkdir and a URI make a host, rmdir lets go of it; and it is there after a restart."""
    key = str(uuid.uuid4())
    (tmp_path / "node.xml").write_text(NODE.format(name="far", uuid=key, more=""))
    fs = box.start()
    host = fs.mnt / ".vmfs/hosts/node2"
    host.mkdir()
    assert get(host / "uri") == b"" and b"state away\n" in get(host / "status")
    put(host / "uri", f"test://{tmp_path}/node.xml\n")
    until(lambda: fs.names() == ["far"], "its domain is shown")
    assert shown(fs) == {"far": "running"}
    assert fs.vm("far").status["host"] == "node2"
    assert b"state up\n" in get(host / "status")
    with fails(EEXIST):
        host.mkdir()
    inode = inodes(fs)
    fs.stop()
    fs.restart()
    assert inodes(fs) == inode
    host.rmdir()
    until(lambda: fs.names() == [], "its domains went with it")
    assert sorted(os.listdir(host.parent)) == ["local"]
    fs.stop()
    fs.restart()
    assert fs.names() == [] and sorted(os.listdir(host.parent)) == ["local"]


def test_hosts_from_options_and_the_file(box, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.xml").write_text(
            NODE.format(name="same", uuid=uuid.uuid4(), more=""))
    (tmp_path / "hosts").write_text(f"# others\n\nnode2\ttest://{tmp_path}/a.xml  # one\n")
    fs = box.start(f"-ohosts={tmp_path}/hosts", f"-ohost=node3=test://{tmp_path}/b.xml")
    assert len(fs.names()) == 2
    hosts = {fs.vm(name).status["host"]: name for name in fs.names()}
    assert set(hosts) == {"node2", "node3"}
    first, second = sorted(hosts.values(), key=len)
    assert first == "same" and second == f"same@{fs.vm(second).status['host']}"
    fs.stop()
    fs.restart()
    assert {fs.vm(name).status["host"]: name for name in fs.names()} == hosts
    fs.stop()
    fs.start()  # without them
    assert fs.names() == [] and os.listdir(fs.mnt / ".vmfs/hosts") == ["local"]


def test_bad_hosts(box, tmp_path):
    fs = box.start()
    hosts = fs.mnt / ".vmfs/hosts"
    for name in ("a b", "-x", "x" * 64):
        with fails(EINVAL, 36):
            (hosts / name).mkdir()
    with fails(EPERM):
        (hosts / "local").rmdir()
    (hosts / "node2").mkdir()
    for uri in ("no uri", "word", "x" * 5000):
        with fails(EINVAL, 7, 27):
            put(hosts / "node2/uri", uri + "\n")
    put(hosts / "node2/uri", "qemu+unix:///system?socket=/nonexistent/sock\n")
    until(lambda: b"\nwhy " in get(hosts / "node2/status"), "it says why it is away")
    fs.stop()
    for args in (["-ohost=x"], [f"-ohosts={tmp_path}/none"], ["-ohost=a b=test:///default"]):
        done = subprocess.run(fs.command(*args), capture_output=True, text=True, check=False,
                              timeout=60)
        assert done.returncode == 1 and "host" in done.stderr
