# SPDX-License-Identifier: Apache-2.0
"""libvirt: the domains that are there, on this host and on others, and what others do to them."""
import os
import re
import select
import signal
import subprocess
import time
import uuid
from errno import EBUSY, EEXIST, EHOSTDOWN, EINVAL, EIO, EOPNOTSUPP, EPERM, ESRCH, ETIMEDOUT
from pathlib import Path

import pytest

from lib.guest import run, started
from lib.backends import Libvirt
from lib.util import exists, fails, get, put, until

pytestmark = pytest.mark.libvirt

NODE = """<node>
  <memory>8388608</memory>
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


def test_pid(lv, on):
    lv.define("web", memory=64)
    vm = on().vm("web")
    vm.do("start")
    assert vm.pid == lv.vmm("web")  # at once
    vm.do("sleep")
    assert vm.read("pid") == ""
    lv.virsh("start", "web")
    until(lambda: vm.read("pid") == f"{lv.vmm('web')}\n", "that of another QEMU")
    os.kill(vm.pid, signal.SIGKILL)
    until(lambda: vm.read("pid") == "" and vm.state == "crashed", "its end is known")


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
    assert get(host / "uri") == get(host / "node") == b""
    assert b"state away\n" in get(host / "status")
    put(host / "uri", f"test://{tmp_path}/node.xml\n")
    until(lambda: fs.names() == ["far"], "its domain is shown")
    assert shown(fs) == {"far": "running"}
    assert fs.vm("far").status["host"] == "node2"
    assert b"state up\n" in get(host / "status")
    node = dict(line.split(" ", 1) for line in get(host / "node").decode().splitlines())
    assert int(node["cpus"]) == 16 and int(node["memory"]) == 8 << 30
    assert int(node["free"]) <= 8 << 30  # of which this driver has none to tell
    assert node["version"].startswith("libvirt ")
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


def test_watchers_are_told_that_a_host_goes_and_comes(lv, on):
    fs = on()
    status = fs.mnt / ".vmfs/hosts/local/status"
    seen, both = watch(fs, status), watch(fs, status.parent)
    with open(status, "rb") as f:
        f.read()
        poll = select.poll()
        poll.register(f, select.POLLPRI)
        assert not poll.poll(0)
        lv.kill()
        seen.expect("^MODIFY")
        both.expect("^MODIFY status$")
        assert poll.poll(5000)
    until(lambda: b"state up\n" in get(status), "it is back")
    seen.expect("^MODIFY")
    both.expect("^MODIFY status$")


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


# What they are


KEPT = """
    <!-- a comment of its owner's -->
    <sound model='ich9'/>
    <watchdog model='i6300esb' action='poweroff'/>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/>
      <source protocol='nbd' name='x'><host name='192.0.2.1' port='10809'/></source>
      <target dev='vdz' bus='virtio'/></disk>
"""


def dumped(lv, name):
    return lv.virsh("dumpxml", "--inactive", name).stdout.splitlines()


def test_spec_of_a_domain_and_an_edit_of_it(lv, on):
    """Only what was edited is changed in the XML; all else stays as it was."""
    lv.define("web", memory=64, devices=KEPT)
    fs = on()
    vm = fs.vm("web")
    assert vm.spec == "backend: libvirt\ncpus: 1\nmemory: 64MiB\naccel: tcg\nnics: {}\n"
    before = dumped(lv, "web")
    vm.write("spec.yaml", "# mine\n" + vm.spec.replace("64MiB", "96MiB"))
    after = dumped(lv, "web")
    changed = [(a, b) for a, b in zip(before, after) if a != b]
    assert len(before) == len(after)
    assert changed == [("  <memory unit='KiB'>65536</memory>", "  <memory unit='KiB'>98304</memory>"),
                       ("  <currentMemory unit='KiB'>65536</currentMemory>",
                        "  <currentMemory unit='KiB'>98304</currentMemory>")]
    assert vm.spec.startswith("# mine\n")
    fs.stop()
    fs.restart()
    assert vm.spec.startswith("# mine\n")  # for as long as it says what the XML says
    (lv.dir / "edited.xml").write_text("\n".join(after).replace(">1</vcpu>", ">3</vcpu>"))
    lv.virsh("define", lv.dir / "edited.xml")
    until(lambda: "cpus: 3\n" in vm.spec, "what virsh changes shows")
    assert "memory: 96MiB\n" in vm.spec


def test_disk_and_nic_by_spec(lv, on, scratch):
    lv.define("web", memory=64, devices=KEPT)
    (scratch / "d.raw").write_bytes(bytes(1 << 20))
    fs = on()
    vm = fs.vm("web")
    before = dumped(lv, "web")
    text = vm.spec
    vm.write("spec.yaml", text.replace("nics: {}\n", "nics:\n  lan: {network: user}\n")
             + f"disks:\n  data: {{file: {scratch}/d.raw, readonly: true}}\n")
    xml = "\n".join(dumped(lv, "web"))
    assert f"<source file='{scratch}/d.raw'/>" in xml and "<readonly/>" in xml
    assert "<interface type='user'>" in xml
    vm.write("spec.yaml", text)
    after = "\n".join(dumped(lv, "web"))
    assert "d.raw" not in after and "type='user'" not in after
    for line in before:  # but for the bridges that libvirt has put in for them, and their order
        assert line in after or "address" in line or "target" in line, line


def test_spec_that_libvirt_refuses(lv, on):
    lv.define("web", memory=64)
    vm = on().vm("web")
    text, before = vm.spec, dumped(lv, "web")
    for bad in ("machine: microvm\nboot: {kernel: /etc/hostname}\n", "cloud_init: {user_data: x}\n",
                "disks: {root: {size: 1GiB}}\n"):
        with fails(EOPNOTSUPP):
            vm.write("spec.yaml", text + bad)
        vm.error("EOPNOTSUPP", "libvirt")
    with fails(EBUSY):
        vm.write("spec.yaml", "backend: sim\n")
    (vm / "spec.yaml.rej").unlink()
    assert vm.spec == text and dumped(lv, "web") == before


def test_pending_is_what_differs_and_no_more(lv, on, guest):
    """A MAC address that was left to vmfs, and the blanks of a command line, are no difference."""
    fs = on()
    text = ("backend: libvirt\nmemory: 128MiB\nboot: {kernel: %s, cmdline: \"quiet \"}\n"
            "nics: {eth0: {network: user}}\n" % guest.kernel)
    vm = fs.vm("web", text)
    vm.do("start")
    seen = watch(fs, vm / "spec.yaml")
    for memory in (80, 96):  # the second look is after all that the first has set off
        vm.write("spec.yaml", text.replace("128MiB", f"{memory}MiB"))
        assert vm.read("pending") == "memory\n"
        seen.expect("MODIFY|CLOSE_WRITE")
    until(lambda: exists(vm / "domain.xml") and "98304" in vm.read("domain.xml"),
          "libvirt's own has been looked at")
    assert vm.read("pending") == "memory\n"
    assert vm.spec == text.replace("128MiB", "96MiB")


def test_plugged_while_it_runs(lv, on, guest, scratch):
    """By link and by edit; the guest sees it, libvirt has it now and at the next start."""
    (scratch / "d.raw").write_bytes(bytes(1 << 20))
    fs = on()
    text = ("backend: libvirt\naccel: tcg\nmemory: 128MiB\nboot: {kernel: %s, initrd: %s, "
            "cmdline: console=ttyS0 quiet}\n" % (guest.kernel, guest.initrd))
    vm = fs.vm("web", text)
    console = started(vm)

    def seen(count):
        until(lambda: run(vm, console, "ls /sys/block | grep -c vd || :") == str(count), "disks")

    seen(0)
    os.symlink(scratch / "d.raw", vm / "disks/data")
    seen(1)
    for words in (["--inactive"], []):
        assert "d.raw" in lv.virsh("dumpxml", "web", *words).stdout
    assert vm.read("pending") == "" and f"data: {{file: {scratch}/d.raw}}" in vm.spec
    os.unlink(vm / "disks/data")
    for words in (["--inactive"], []):
        assert "d.raw" not in lv.virsh("dumpxml", "web", *words).stdout
    seen(0)
    assert vm.read("pending") == "" and vm.read("error") == ""
    vm.write("spec.yaml", text + "nics: {eth0: {}, lan: {}}\n"
             f"disks: {{data: {{file: {scratch}/d.raw, readonly: true}}}}\n")
    seen(1)
    until(lambda: run(vm, console, "ls /sys/class/net | grep -c eth || :") == "2", "the nic")
    assert vm.read("pending") == ""
    lv.virsh("detach-disk", "web", "vda", "--live")
    until(lambda: vm.read("pending") == "disks.data\n", "what virsh takes away is missing")
    vm.do("kill")
    macs = re.findall("<mac address='(.*)'", lv.virsh("dumpxml", "web").stdout)
    console = started(vm)
    seen(1)
    assert vm.read("pending") == "" and len(set(macs)) == 2
    assert re.findall("<mac address='(.*)'", lv.virsh("dumpxml", "web").stdout) == macs
    with fails(EBUSY, EIO):  # it has that already, by another name
        os.symlink(scratch / "d.raw", vm / "disks/again")


def test_domain_without_room(lv, on):
    """One with no free slot: refused with libvirt's words, and nothing is changed."""
    lv.define("web", memory=64)
    lv.virsh("start", "web")
    vm = on().vm("web")
    names = []
    with fails(EIO):
        for i in range(32):
            os.symlink("user", vm / f"nics/n{i}")
            names.append(f"n{i}")
    vm.error("EIO", "PCI")
    assert sorted(os.listdir(vm / "nics")) == sorted(names) and vm.read("pending") == ""
    assert lv.virsh("dumpxml", "web", "--inactive").stdout.count("<interface") == len(names)
    vm.write("spec.yaml", "backend: libvirt\nmemory: 64MiB\nnics: {%s, lan: {}}\n"
             % ", ".join(f"{n}: {{}}" for n in names))
    assert vm.read("pending") == "nics.lan\n"


def test_domain_xml(lv, on):
    """The whole XML is read and taken; another domain's is not."""
    lv.define("web", memory=64, devices=KEPT)
    fs = on()
    vm = fs.vm("web")
    xml = vm.read("domain.xml")
    assert xml.splitlines() == dumped(lv, "web")
    assert (vm / "domain.xml").stat().st_size == len(xml)
    (lv.dir / "new.xml").write_text(xml.replace("'poweroff'", "'reset'").replace("65536", "98304"))
    fs.sh(f"cp {lv.dir}/new.xml web/domain.xml")
    until(lambda: "action='reset'" in vm.read("domain.xml"), "it is shown as it is now")
    assert "memory: 96MiB\n" in vm.spec
    before = dumped(lv, "web")
    for bad in (xml.replace("<uuid>", "<uuid>0"), xml.replace(">web<", ">www<"), "<domain/>", "x"):
        with fails(EINVAL):
            vm.write("domain.xml", bad)
    assert dumped(lv, "web") == before and lv.domains() == ["web"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_owner_has_not_libvirts_rights(on, scratch):
    """What goes to libvirt, or its QEMU, as it was written could be any file of the host's."""
    fs = on()
    os.chmod(fs.mnt, 0o1777)
    fs.sh("mkdir web && printf 'backend: libvirt\nmemory: 64MiB\n' > web/spec.yaml && "
          "echo start > web/state", user=54322)
    vm = fs.vm("web")
    until(lambda: exists(vm / "domain.xml"), "libvirt's own has been looked at")
    xml = vm.read("domain.xml")
    disk = "<disk type='file'><source file='/etc/shadow'/><target dev='vda'/></disk></devices>"
    (scratch / "bad.xml").write_text(xml.replace("</devices>", disk))
    done = fs.sh(f"cat {scratch}/bad.xml > web/domain.xml", user=54322, check=False)
    assert "not permitted" in done.stderr
    vm.error("EPERM", "domain.xml", "54322")
    done = fs.sh("exec 3<>web/monitor; echo info version >&3; head -c1 <&3", user=54322, check=False)
    assert "not permitted" in done.stderr
    vm.error("EPERM", "monitor")
    with fails(EPERM):
        vm.write("spec.yaml", vm.spec + "devices: {x: {pci: \"0000:99:00.0\"}}\n")
    vm.do("kill")
    assert vm.read("domain.xml") == xml


def test_removing_what_vmfs_did_not_make(lv, on):
    lv.define("web", memory=64)
    vm = on().vm("web")
    with fails(EPERM):
        vm.dir.rmdir()
    vm.error("EPERM", "undefine")
    assert lv.domains() == ["web"]
    vm.do("undefine")
    until(lambda: not exists(vm.dir), "it is gone")
    assert lv.domains() == []


def test_what_vmfs_made_is_libvirts_too(lv, on):
    """Defined when it is started; renamed, unmanaged and removed in both places."""
    fs = on()
    vm = fs.vm("web", "backend: libvirt\nmemory: 64MiB\n")
    assert lv.domains() == []
    with fails(ESRCH):
        vm.do("pause")
    vm.do("start")
    assert lv.virsh("domstate", "web").stdout.strip() == "running"
    vm.do("kill")
    os.rename(vm.dir, fs.mnt / "www")
    vm.name = "www"
    assert lv.domains() == ["www"]
    vm.write("spec.yaml", "backend: libvirt\nmemory: 80MiB\n")
    assert "81920" in lv.virsh("dumpxml", "www").stdout
    vm.do("unmanage")
    with fails(EPERM):
        vm.dir.rmdir()
    vm.do("undefine")
    until(lambda: fs.names() == [], "it is gone")
    vm = fs.vm("web", "backend: libvirt\nmemory: 64MiB\n")
    vm.do("start")
    vm.do("kill")
    vm.dir.rmdir()
    assert lv.domains() == [] and fs.names() == []


def test_undefined_by_virsh_meanwhile(lv, on):
    """One that vmfs made stays, and is defined again when it is started."""
    fs = on()
    vm = fs.vm("web", "backend: libvirt\nmemory: 64MiB\n")
    vm.do("start")
    events = vm.events()
    lv.virsh("destroy", "web")
    events.expect(" state stopped$")
    lv.virsh("undefine", "web")
    events.expect(" reason undefined$")
    vm.do("start")
    assert vm.state == "running" and lv.domains() == ["web"]


# Faults


def test_libvirtd_killed(lv, on):
    """Its VMs are unknown until it is back, and then as they were: nothing was restarted."""
    lv.define("other", memory=64)
    fs = on()
    vm = fs.vm("web", "backend: libvirt\nmemory: 64MiB\n")
    vm.do("start")
    vmm = lv.vmm("web")
    events = vm.events()
    lv.kill()
    events.expect(" state unknown$")
    events.expect(" state running$")
    assert lv.vmm("web") == vmm and shown(fs) == {"other": "stopped", "web": "running"}
    vm.do("kill")
    assert vm.state == "stopped"


def test_libvirtd_frozen(lv, on):
    """Nobody waits for it for ever, and nobody else waits for it at all."""
    lv.define("web", memory=64)
    fs = on()
    vm, other = fs.vm("web"), fs.vm("other", "backend: sim\n")
    events = vm.events()
    vm.do("start")
    with lv.pause():
        waiting = fs.spawn("bash", "-c", f"/bin/echo pause > {vm / 'state'}")
        started = time.monotonic()
        other.do("start")
        other.do("kill")
        with fails(ETIMEDOUT):
            vm.write("spec.yaml", vm.spec.replace("64MiB", "96MiB"))
        assert time.monotonic() - started < 10
        events.expect(" state unknown$")
        waiting.expect("Host is down")
        for verb in ("start", "stop", "pause", "kill"):
            started = time.monotonic()
            with fails(EHOSTDOWN):
                vm.do(verb)
            assert time.monotonic() - started < 5
        with fails(EHOSTDOWN):
            vm.dir.rmdir()
        assert "connection up" not in fs.host("hosts/local/status")
    events.expect(r" state (running|paused)$")
    vm.do("kill")
    assert vm.state == "stopped"


def test_daemon_ends_while_libvirtd_is_frozen(lv, on):
    lv.define("web", memory=64)
    fs = on()
    with lv.pause():
        fs.spawn("bash", "-c", f"echo start > {fs.mnt}/web/state")
        fs.stop()


def test_daemon_starts_while_libvirtd_is_frozen(lv, on):
    lv.define("web", memory=64)
    fs = on()
    fs.stop()
    with lv.pause():
        fs.restart()
        assert shown(fs) == {"web": "unknown"}
    until(lambda: shown(fs) == {"web": "stopped"}, "it answers at last")


@pytest.mark.qemu
@pytest.mark.parametrize("verb, after", [("start", "running"), ("wake", "running"),
                                         ("sleep", "asleep")])
def test_daemon_is_killed_in_the_middle(lv, on, guest, verb, after):
    """Its successor answers whoever waits, and what was begun comes to its end."""
    fs = on()
    libvirt = Libvirt(fs, guest, lv)
    vm = libvirt.vm(spec=libvirt.spec(extra=f"disks: {{root: {{image: {guest.rawdisk}}}}}\n"
                                            "cloud_init: {meta_data: {local-hostname: guest}}\n"))
    if verb != "start":
        vm.do("start")
        libvirt.booted(vm)
    if verb == "wake":
        vm.do("sleep")
    events = vm.events()
    echo = fs.spawn("bash", "-c", f"/bin/echo {verb} > {vm / 'state'}; echo over")
    events.expect(" operation " + verb)
    fs.crash()
    echo.expect("^over$")
    until(lambda: vm.state == after, f"it is {after}")
    libvirt.settled(vm)
    assert vm.state == after
    vm.do("kill")


def test_a_thousand_domains(box, tmp_path):
    more = "\n".join(
        f"<domain type='test'><name>d{i}</name><uuid>{uuid.uuid4()}</uuid>"
        "<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>"
        for i in range(999))
    (tmp_path / "node.xml").write_text(NODE.format(name="first", uuid=uuid.uuid4(), more=more))
    fs = box.start(f"-ohost=local=test://{tmp_path}/node.xml")
    # On a busy machine the host needs longer for its first answer than the mount waits for it.
    until(lambda: len(fs.names()) == 1000, "all are shown")
    assert set(shown(fs).values()) == {"running"}
    until(lambda: "cpus: 1\n" in fs.vm("d998").spec, "the last one's spec is known")
    before = inodes(fs)
    fs.stop()
    fs.restart()
    assert inodes(fs) == before


@pytest.mark.qemu
def test_guest_that_keeps_its_disk(lv, on, guest):
    """It cannot be asked to let go of anything: so libvirt has it still, and so have we."""
    fs = on()
    libvirt = Libvirt(fs, guest, lv)
    disk = fs.base / "data.raw"
    disk.write_bytes(bytes(1 << 20))
    vm = libvirt.vm(spec=libvirt.spec("acpi=off vmfs.noagent",
                                      extra=f"disks: {{data: {{file: {disk}}}}}\n"))
    vm.do("start")
    before = vm.spec
    with fails(ETIMEDOUT):
        os.unlink(vm / "disks/data")
    vm.error("ETIMEDOUT", "let go")
    assert vm.spec == before and os.listdir(vm / "disks") == ["data"] and vm.read("pending") == ""
    vm.do("kill")
    os.unlink(vm / "disks/data")
    assert disk.exists() and os.listdir(vm / "disks") == []


def test_daemon_ends_while_libvirtd_is_away(lv, on):
    """Then it takes its time to end, and LeakSanitizer looks at what is left."""
    fs = on()
    vm = fs.vm("web", "backend: libvirt\nmemory: 64MiB\n")
    vm.do("start")
    vm.write("console", "x", 0)  # it is connected
    lv.kill()
    until(lambda: vm.state == "unknown", "its host is away")
    fs.stop()
    lv.answers()


@pytest.mark.qemu
def test_console_that_virsh_has(lv, on, guest):
    """Only one client has it: that is told, and who looks after that has it."""
    lv.define("web", guest=guest)
    vm = on().vm("web")
    lv.virsh("start", "web")
    vm.wait("agent", 60)
    main, terminal = os.openpty()
    virsh = subprocess.Popen(["setsid", "--ctty", "virsh", "-c", lv.uri, "console", "web"],
                             stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    said = b""
    while b"Escape character" not in said:
        said += os.read(main, 4096)
    reader = vm.follow("console")
    until(lambda: "Active console session" in vm.status.get("console", ""), "it is told")
    reader.close()
    os.write(main, b"\x1d")  # ctrl-]
    assert virsh.wait(30) == 0
    os.close(main)
    reader = vm.follow("console")
    until(lambda: "console" not in vm.status, "it is vmfs's now")
    vm.write("console", "echo mine-$((1 + 1))\n", 0)
    reader.expect("^mine-2")


uefi = pytest.mark.skipif(not list(Path("/usr/share/qemu/firmware").glob("*.json")),
                          reason="no firmware for libvirt to choose from")


@pytest.fixture
def nvram(lv):
    path = lv.dir / "lib/qemu/nvram"
    path.mkdir(exist_ok=True)
    yield path
    for file in path.iterdir():
        file.unlink()


@pytest.mark.qemu
@uefi
def test_uefi(lv, on, guest, nvram):
    """It boots what nobody has signed; its variables go with it, and are no other machine's."""
    (nvram / "web_VARS.fd").write_bytes(b"of another machine")
    fs = on()
    text = ("backend: libvirt\naccel: tcg\nmemory: 256MiB\nfirmware: uefi\n"
            f"disks: {{root: {{image: {guest.disk}}}}}\n")
    vm = fs.vm("web", text)
    vm.do("start")
    vm.follow("console").expect("GUEST-UP", 60)
    (own,) = set(nvram.iterdir()) - {nvram / "web_VARS.fd"}
    assert own.name.startswith(lv.virsh("domuuid", "web").stdout.strip())
    assert own.stat().st_size > 1 << 16 and vm.read("pending") == "" and vm.spec == text
    vm.do("sleep")
    vm.do("wake")
    assert vm.state == "running"
    vm.do("kill")
    vm.write("spec.yaml", text.replace("uefi", "bios"))
    until(lambda: "secure-boot" not in vm.read("domain.xml"), "libvirt has it without")
    vm.do("start")
    vm.write("spec.yaml", text)
    assert vm.read("pending") == "firmware\n"
    vm.do("kill")
    vm.do("start")
    assert vm.read("pending") == ""
    vm.do("kill")
    vm.dir.rmdir()
    assert os.listdir(nvram) == ["web_VARS.fd"]


@uefi
def test_uefi_by_another_name(lv, on, nvram):
    """The variables are those of the machine, whatever it is called, and whoever made it."""
    devices = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    lv.define("theirs", memory=64, devices=devices)
    xml = lv.virsh("dumpxml", "theirs").stdout.replace("<os>", "<os firmware='efi'>")
    (lv.dir / "uefi.xml").write_text(xml)
    lv.virsh("define", lv.dir / "uefi.xml")
    fs = on()
    theirs, mine = fs.vm("theirs"), fs.vm("mine", "backend: libvirt\nmemory: 64MiB\nfirmware: uefi\n")
    seen = set()
    for vm, new in ((theirs, "theirs2"), (mine, "mine2")):
        vm.do("start")
        vm.do("kill")
        (file,) = set(nvram.iterdir()) - seen
        seen.add(file)
        with open(file, "r+b") as f:  # where no variable comes to so soon
            os.pwrite(f.fileno(), vm.name.encode(), 0x30000)
        os.rename(vm.dir, fs.mnt / new)
        vm.name = new
        vm.do("start")
        assert f">/var/lib/libvirt/qemu/nvram/{file.name}</nvram>" in lv.virsh("dumpxml", new).stdout
        vm.do("kill")
        assert set(nvram.iterdir()) == seen and new[:-1].encode() in file.read_bytes()
    again = fs.vm("mine", "backend: libvirt\nmemory: 64MiB\nfirmware: uefi\n")
    again.do("start")  # it is called so now, and has its own
    again.do("kill")
    assert len(set(nvram.iterdir()) - seen) == 1
    for vm in (again, mine):
        vm.dir.rmdir()
    theirs.do("undefine")
    assert os.listdir(nvram) == []
