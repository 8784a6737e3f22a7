# SPDX-License-Identifier: Apache-2.0
"""Changing what runs: by spec.yaml, and by the directories disks/, nics/ and shares/."""
import os
import stat
from errno import (EBUSY, EEXIST, EILSEQ, EINVAL, EIO, EISDIR, ENOENT, ENOSPC, ENOTDIR,
                   EOPNOTSUPP, ETIMEDOUT, errorcode)

import pytest

from lib.util import exists, fails, links, until
from lib.vm import Shell


# ---- by spec.yaml ----


def test_disk_of_the_vm_itself(fs):
    """Neither a file nor an image: an empty one, that vmfs makes."""
    vm = fs.vm("web1", "backend: sim\ndisks: {data: {size: 1MiB}}\n")
    assert os.listdir(vm / "disks") == ["data"]
    assert os.readlink(vm / "disks/data").endswith("/data.qcow2")


def test_edit_is_applied(up, disk):
    up.write("spec.yaml", f"backend: sim\ndisks: {{data: {{file: {disk()}}}}}\n")
    assert up.read("pending") == ""
    assert up.read("error") == ""


def test_edit_that_must_wait(up, disk):
    up.write("spec.yaml", f"backend: sim\nmemory: 1GiB\ndisks: {{data: {{file: {disk()}}}}}\n")
    assert up.read("pending") == "memory\n"


def test_edit_that_fails(up, disk):
    up.sim("fail apply EIO")
    up.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk('a')}}}, "
                          f"b: {{file: {disk('b')}}}}}\n")
    assert up.read("pending") == "disks.a\n"
    assert " apply EIO: " in up.read("error")
    up.write("spec.yaml", up.read("spec.yaml"))  # tries again
    assert up.read("pending") == "disks\n"  # b came first, and boots first in the next run
    assert up.read("error") == ""


def test_edit_that_is_slow(up, disk):
    """close(2) does not wait for ever, and what is asked for meanwhile is done after it."""
    up.sim("slow apply 2000")
    up.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk()}}}}}\n")
    assert up.read("pending") == "disks.a\n"
    assert up.status["operation"] == "apply"
    up.sim("ok apply")
    up.write("spec.yaml", "backend: sim\nnics: {}\n")
    until(lambda: up.read("pending") == "", "all is applied")
    assert "operation" not in up.status


def test_edit_while_starting(vm, disk):
    vm.sim("slow start 300")
    start = vm.fs.spawn("bash", "-c", f"echo start > {vm / 'state'}")
    until(lambda: vm.state == "starting", "it starts")
    vm.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk()}}}}}\n")
    start.finish()
    until(lambda: vm.read("pending") == "", "the change is applied once it runs")


def test_pending_over_restart(up, disk):
    """What runs is known to the next daemon, whatever was changed live before."""
    up.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk()}}}}}\n")
    up.write("spec.yaml", f"backend: sim\ncpus: 2\ndisks: {{a: {{file: {disk()}}}}}\n")
    assert up.read("pending") == "cpus\n"
    up.fs.kill9()
    up.fs.restart()
    until(lambda: up.state == "running", "it is found again")
    assert up.read("pending") == "cpus\n"


def test_kill_while_applied(up, disk):
    up.sim("hang apply")
    up.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk()}}}}}\n")
    up.do("kill")
    assert up.state == "stopped" and up.read("pending") == ""


# ---- the directories ----

def test_listing(vm, disk, scratch):
    a, b = disk("a.raw"), disk("b.qcow2")
    vm.write("spec.yaml", f"backend: sim\ndisks:\n  b: {{file: {b}}}\n  a: {{file: {a}}}\n"
                          f"shares: {{src: {{path: {scratch}, readonly: true}}}}\n")
    assert links(vm) == {"a": str(a), "b": str(b)}
    assert links(vm, "nics") == {"eth0": "user"}
    assert links(vm, "shares") == {"src": str(scratch)}
    for path in (vm / "disks/a", vm / "nics/eth0", vm / "shares/src"):
        st = os.lstat(path)
        assert stat.S_ISLNK(st.st_mode) and st.st_size == len(os.readlink(path))
    assert (vm / "disks/a").samefile(a)
    with fails(ENOENT):
        os.readlink(vm / "disks/c")
    vm.write("spec.yaml", "backend: sim\nnics: {}\n")
    assert links(vm) == links(vm, "nics") == links(vm, "shares") == {}
    with fails(ENOENT):
        os.readlink(vm / "disks/a")


def test_overlay_is_listed(vm, disk):
    vm.write("spec.yaml", f"backend: sim\ndisks: {{root: {{image: {disk()}}}}}\n")
    assert links(vm)["root"].endswith("/data/root.qcow2")


def test_inodes_outlive_the_daemon(vm, disk):
    names = [f"d{i}" for i in range(20)]
    text = "backend: sim\ndisks:\n" + "".join(f"  {n}: {{file: {disk(n)}}}\n" for n in names)
    vm.write("spec.yaml", text)
    before = {n: os.lstat(vm / "disks" / n).st_ino for n in names}
    assert len(set(before.values())) == len(names)
    vm.fs.kill9()
    vm.fs.restart()
    vm.write("spec.yaml", text.replace(f"  d0: {{file: {disk('d0')}}}\n", ""))
    assert sorted(os.listdir(vm / "disks")) == sorted(names[1:])
    assert {n: os.lstat(vm / "disks" / n).st_ino for n in names[1:]} == {
        n: before[n] for n in names[1:]}


def test_ln_and_rm_keep_the_text(vm, disk):
    data = disk()
    text = "# mine\nbackend: sim   # for tests\n\ndisks:\n  # none of these\n\nnics: {}\n"
    text = text.replace("disks:\n  # none of these\n", "disks: {}  # none yet\n")
    vm.write("spec.yaml", text)
    vm.fs.sh(f"ln -s {data} web1/disks/data")
    assert vm.spec == text.replace("{}  # none", f"{{data: {{file: {data}}}}}  # none")
    vm.fs.sh("rm web1/disks/data")
    assert vm.spec == text
    assert vm.read("error") == "" and vm.read("pending") == ""


def test_ln_makes_the_section(vm, disk, scratch):
    data = disk()
    vm.fs.sh(f"ln -s {data} web1/disks/data; ln -s {scratch} web1/shares/src; "
             f"ln -s user web1/nics/eth1")
    assert vm.spec == (f"backend: sim\ndisks:\n  data: {{file: {data}}}\n"
                       f"shares:\n  src: {{path: {scratch}}}\n"
                       "nics:\n  eth0: {}\n  eth1: {network: user}\n")
    vm.fs.sh("rm web1/disks/data web1/shares/src web1/nics/eth0 web1/nics/eth1")
    assert vm.spec == "backend: sim\ndisks: {}\nshares: {}\nnics: {}\n"


def test_rm_of_the_preset_nic(vm):
    vm.fs.sh("rm web1/nics/eth0")
    assert vm.spec == "backend: sim\nnics: {}\n"
    assert links(vm, "nics") == {}


def test_targets(vm, disk, scratch):
    """Relative ones are as the kernel would follow them; the mount itself is no place for disks."""
    data = disk("with space: #1.raw")
    os.symlink(os.path.relpath(data, vm / "disks"), vm / "disks/data")
    assert links(vm) == {"data": str(data)}
    with fails(EINVAL):
        os.symlink(vm / "console.log", vm / "disks/log")
    vm.error("EINVAL", "inside")
    with fails(EINVAL):
        os.symlink("nowhere/net", vm / "nics/eth1")
    vm.error("EINVAL", "network")
    with fails(EILSEQ):
        os.symlink(os.fsencode(scratch) + b"/\xff", os.fsencode(vm / "disks") + b"/x")
    assert list(links(vm)) == ["data"] and list(links(vm, "nics")) == ["eth0"]


def test_mistakes(vm, disk, scratch):
    data = disk()
    os.symlink(data, vm / "disks/data")
    before = vm.spec
    for target, name, errno in ((scratch / "none", "x", ENOENT), (scratch, "x", EISDIR),
                                (data, "data", EEXIST), (data, "again", EBUSY),
                                (data, "bad name", EINVAL), (data, "x" * 40, EINVAL),
                                ("/dev/null", "x", EINVAL)):
        with fails(errno):
            os.symlink(target, vm / "disks" / name)
        if errno != EEXIST:
            verb, _, _ = vm.error(errorcode[errno])
            assert verb == (f"disks/{name}" if name in ("x", "again") else "disks")
    with fails(ENOTDIR):
        os.symlink(data, vm / "shares/x")
    for call in (lambda: os.unlink(vm / "disks/none"), lambda: os.rmdir(vm / "disks/data"),
                 lambda: os.mkdir(vm / "disks/x"), lambda: os.link(data, vm / "disks/x"),
                 lambda: os.rename(vm / "disks/data", vm / "disks/other"),
                 lambda: os.rmdir(vm / "disks")):
        with pytest.raises(OSError):
            call()
    assert vm.spec == before and list(links(vm)) == ["data"]
    assert not exists(vm / "spec.yaml.rej")


def test_refused_document_is_left_alone(vm, disk):
    with fails(EINVAL):
        vm.write("spec.yaml", "cpus: many\n")
    os.symlink(disk(), vm / "disks/data")
    assert vm.read("spec.yaml.rej") == "cpus: many\n"


def test_unspliceable_document(vm, disk):
    vm.write("spec.yaml", "backend: sim\n? disks\n: a: {file: %s}\n" % disk("a"))
    with fails(EINVAL):
        os.unlink(vm / "disks/a")
    vm.error("EINVAL", "edit it")
    assert list(links(vm)) == ["a"]


def test_many(vm, disk):
    """As many as a document may have, and not one more."""
    for i in range(64):
        os.symlink(disk(f"d{i}"), vm / f"disks/d{i}")
    with fails(EINVAL):
        os.symlink(disk("more"), vm / "disks/more")
    assert len(links(vm)) == 64
    vm.fs.sh("rm web1/disks/*")
    assert links(vm) == {}


def test_all_at_once(vm, disk):
    """Changes of one document by many hands: none is lost."""
    vm.fs.sh("; ".join(f"ln -s {disk(f'd{i}')} web1/disks/d{i} & ln -s user web1/nics/n{i} &"
                       .removesuffix(";") for i in range(20)).replace("&;", "&") + " wait")
    assert sorted(links(vm)) == sorted(f"d{i}" for i in range(20))
    assert sorted(links(vm, "nics")) == sorted(["eth0", *(f"n{i}" for i in range(20))])


@pytest.mark.parametrize("remove", ["rm -r web1/disks", "rm -rf web1", "busybox rm -r web1",
                                    "find web1/disks -delete", "python3 -c \"import shutil; "
                                    "shutil.rmtree('web1/disks', ignore_errors=True)\""])
def test_recursive_removal_does_no_harm(vm, disk, remove):
    vm.write("spec.yaml", f"backend: sim\ndisks: {{a: {{file: {disk('a')}}}, "
                          f"b: {{file: {disk('b')}}}}}\n")
    before = vm.spec
    vm.fs.sh(f"{remove} < /dev/null", check=False)
    until(lambda: exists(vm / "spec.yaml"), "spec.yaml is back")
    assert vm.spec == before and sorted(links(vm)) == ["a", "b"]
    vm.fs.sh("cd web1/disks; ls; rm a b")
    assert links(vm) == {}


# ---- live, on sim ----

def test_hot_ln_and_rm(up, disk):
    os.symlink(disk(), up / "disks/data")
    assert up.read("pending") == "" and list(links(up)) == ["data"]
    os.unlink(up / "disks/data")
    assert up.read("pending") == "" and links(up) == {}
    assert up.read("error") == ""


def test_hot_ln_fails(up, disk):
    before = up.spec
    up.sim("fail apply EIO")
    with fails(EIO):
        os.symlink(disk(), up / "disks/data")
    assert up.error("EIO")[0] == "disks/data"
    assert up.spec == before and links(up) == {} and up.read("pending") == ""
    assert not exists(up / "spec.yaml.rej")


def test_guest_keeps_it(up, disk):
    os.symlink(disk(), up / "disks/data")
    before = up.spec
    up.sim("refuse eject")
    with fails(ETIMEDOUT):
        os.unlink(up / "disks/data")
    assert up.error("ETIMEDOUT")[0] == "disks/data"
    assert up.spec == before and list(links(up)) == ["data"] and up.read("pending") == ""
    up.write("spec.yaml", "backend: sim\n")
    assert links(up) == {} and up.read("pending") == "disks.data\n"
    up.sim("allow eject")
    up.write("spec.yaml", "backend: sim\n")
    assert up.read("pending") == ""


@pytest.mark.parametrize("end", ["poweroff", "die", "panic"])
def test_end_in_the_middle(up, disk, end):
    up.sim("hang apply")
    ln = up.fs.spawn("ln", "-s", disk(), up / "disks/data")
    until(lambda: up.status.get("operation") == "apply", "it is being attached")
    up.sim(end)
    assert ln.finish() != 0
    until(lambda: "operation" not in up.status, "it is over")
    assert links(up) == {} and up.read("pending") == ""
    up.error("EIO")


def test_kill_in_the_middle(up, disk):
    up.sim("hang apply")
    ln = up.fs.spawn("ln", "-s", disk(), up / "disks/data")
    until(lambda: up.status.get("operation") == "apply", "it is being attached")
    up.do("kill")
    assert ln.finish() != 0
    assert links(up) == {} and up.state == "stopped"


def test_daemon_dies_in_the_middle(up, disk):
    up.sim("hang apply")
    ln = up.fs.spawn("ln", "-s", disk(), up / "disks/data")
    until(lambda: up.status.get("operation") == "apply", "it is being attached")
    up.fs.kill9()
    assert ln.finish() != 0
    up.fs.restart()
    until(lambda: up.state == "running", "it is found again")
    assert links(up) == {} and up.read("pending") == ""


def test_ln_over_a_crash(up, disk):
    """Whoever takes over answers it, and it is attached once."""
    up.sim("hang apply")
    events = up.events()
    ln = up.fs.spawn("ln", "-s", disk(), up / "disks/data")
    until(lambda: up.status.get("operation") == "apply", "it is being attached")
    up.fs.crash()
    assert ln.finish() == 0
    assert list(links(up)) == ["data"] and up.read("pending") == ""
    assert up.spec.count("data:") == 1 and up.state == "running"
    up.do("kill")
    events.expect(" state stopped$")
    assert not events.has(" crashed$")


def test_rm_over_a_crash(up, disk):
    os.symlink(disk(), up / "disks/data")
    up.sim("hang apply")
    rm = up.fs.spawn("rm", up / "disks/data")
    until(lambda: up.status.get("operation") == "apply", "it is being detached")
    up.fs.crash()
    assert rm.finish() == 0
    assert links(up) == {} and up.read("pending") == "" and "data" not in up.spec


def test_edit_over_a_crash(up, disk):
    """What an edit attaches goes on as well, whoever waits for it or does not."""
    up.sim("hang apply")
    text = up.spec + f"disks:\n  data: {{file: {disk()}}}\n"
    editor = up.fs.spawn("bash", "-c", f"cat > {up / 'spec.yaml'} <<'END'\n{text}END")
    until(lambda: up.status.get("operation") == "apply", "it is being attached")
    up.fs.crash()
    assert editor.finish() == 0
    until(lambda: up.read("pending") == "", "it is attached")
    assert up.spec == text and list(links(up)) == ["data"]


def test_ctrl_c(up, disk):
    """The waiting ends, the work does not."""
    up.sim("slow apply 1000")
    ln = up.fs.spawn("ln", "-s", disk(), up / "disks/data")
    until(lambda: up.status.get("operation") == "apply", "it is being attached")
    ln.interrupt()
    until(lambda: list(links(up)) == ["data"], "it is attached after all")


def test_document_in_the_middle(up, disk):
    """A document that comes into force while a disk is attached live: both hold."""
    up.sim("slow apply 1000")
    data = disk()
    ln = up.fs.spawn("ln", "-s", data, up / "disks/data")
    until(lambda: up.status.get("operation") == "apply", "it is being attached")
    up.write("spec.yaml", "# new\nbackend: sim\n")
    assert ln.finish() == 0
    assert up.spec == f"# new\nbackend: sim\ndisks:\n  data: {{file: {data}}}\n"
    until(lambda: up.read("pending") == "", "both agree")


# ---- live, in a real guest ----

@pytest.fixture
def real(qemu):
    vm = qemu.vm()
    qemu.up(vm)
    return vm


STUBBORN = "acpi=off vmfs.noagent"  # cannot be asked to let go of anything


@pytest.mark.qemu
def test_guest_sees_a_disk_come_and_go(real, disk):
    data, sh = disk(), Shell(real)
    for _ in range(2):
        os.symlink(data, real / "disks/data")
        assert real.read("pending") == ""
        sh("grep -c vda /proc/partitions", "1")
        sh("cat /sys/block/vda/serial", "data")
        sh("echo written > /dev/vda; sync; head -c7 /dev/vda", "written")
        os.unlink(real / "disks/data")
        sh("grep -c vda /proc/partitions", "0")
    assert data.read_bytes().startswith(b"written\n")
    assert real.read("pending") == "" and links(real) == {}
    assert real.read("error") == ""


@pytest.mark.qemu
def test_disk_of_the_start_goes(qemu, disk):
    vm = qemu.vm(spec=qemu.spec(extra=f"disks:\n  a: {{file: {disk('a')}}}\n"
                                      f"  b: {{file: {disk('b')}}}\n"))
    vm.do("start")
    sh = Shell(vm, qemu)
    vm.fs.sh("rm web1/disks/a")
    sh("grep -c vd /proc/partitions", "1")
    vm.fs.sh("rm web1/disks/b")
    sh("grep -c vd /proc/partitions", "0")
    assert vm.read("pending") == "" and "disks: {}" in vm.spec


@pytest.mark.qemu
def test_guest_sees_a_nic_come_and_go(real):
    sh = Shell(real)
    os.symlink("user", real / "nics/net1")
    sh("cat /sys/class/net/eth1/address | cut -c1-5", "52:54")
    assert real.read("pending") == ""
    os.unlink(real / "nics/net1")
    sh("ls /sys/class/net | grep -c eth", "1")
    os.unlink(real / "nics/eth0")
    sh("ls /sys/class/net | grep -c eth", "0")
    os.symlink("user", real / "nics/eth0")
    sh("ls /sys/class/net | grep -c eth", "1")
    assert real.read("pending") == ""


@pytest.mark.qemu
def test_what_its_backend_cannot(qemu):
    """It is judged by what it runs on, which its document need not name."""
    vm = qemu.vm(spec=qemu.spec().replace("backend: qemu\n", ""))
    vm.do("start")
    before = vm.spec
    with fails(EOPNOTSUPP):
        os.symlink("br0", vm / "nics/net1")
    vm.error("EOPNOTSUPP", "nics.net1", "br0")
    with fails(EOPNOTSUPP):
        vm.write("spec.yaml", before.replace("cpus: 1", "cpus: 1000"))
    assert vm.spec == before and links(vm, "nics") == {"eth0": "user"}


@pytest.mark.qemu
def test_nic_with_ports_while_it_runs(real):
    text = real.spec
    real.write("spec.yaml", text.replace("nics:\n", "nics:\n  net1: {ports: [\"0:22\"]}\n"))
    until(lambda: "port.net1.22" in real.status, "the port that was picked is told")
    assert real.read("error") == ""


@pytest.mark.qemu
def test_new_overlay_while_it_runs(real, guest):
    text = real.spec
    real.write("spec.yaml", text + f"disks: {{more: {{image: {guest.disk}}}}}\n")
    until(lambda: real.read("pending") == "", "it is attached")
    Shell(real)("cat /sys/block/vda/serial", "more")
    real.write("spec.yaml", text)
    until(lambda: real.read("pending") == "", "it is detached")


@pytest.mark.qemu
def test_stubborn_guest_keeps_its_disk(qemu, disk):
    vm = qemu.vm(spec=qemu.spec(STUBBORN, extra=f"disks: {{data: {{file: {disk()}}}}}\n"))
    vm.do("start")
    sh, before = Shell(vm, qemu), vm.spec
    with fails(ETIMEDOUT):
        os.unlink(vm / "disks/data")
    vm.error("ETIMEDOUT", "guest", "let go")
    assert vm.spec == before and list(links(vm)) == ["data"] and vm.read("pending") == ""
    sh("grep -c vda /proc/partitions", "1")
    # A reset takes it away after all: spec.yaml has it, what runs has not.
    vm.do("reset")
    until(lambda: vm.read("pending") == "disks.data\n", "that it went is told")
    vm.write("spec.yaml", before)
    until(lambda: vm.read("pending") == "", "it is attached again")


@pytest.mark.qemu
@pytest.mark.parametrize("end", ["crash", "reboot", pytest.param("kill", marks=pytest.mark.slow)])
def test_guest_ends_in_the_middle(qemu, disk, end):
    vm = qemu.vm(spec=qemu.spec(STUBBORN, extra=f"disks: {{data: {{file: {disk()}}}}}\n"))
    vm.do("start")
    Shell(vm, qemu)
    rm = vm.fs.spawn("rm", vm / "disks/data")
    until(lambda: vm.status.get("operation") == "apply", "it is being detached")
    if end == "crash":
        qemu.crash(vm)
    elif end == "kill":
        vm.do("kill")
    else:
        vm.write("console", "echo b > /proc/sysrq-trigger\n", 0)
    status = rm.finish()
    until(lambda: "operation" not in vm.status, "it is over")
    assert vm.read("pending") == ""
    if end == "reboot":
        assert status == 0 and links(vm) == {} and vm.state == "running"
    else:
        assert status != 0 and list(links(vm)) == ["data"]
        assert vm.state == {"crash": "crashed", "kill": "stopped"}[end]


@pytest.mark.qemu
def test_daemon_dies_while_the_guest_thinks(qemu, disk):
    vm = qemu.vm(spec=qemu.spec(STUBBORN, extra=f"disks: {{data: {{file: {disk()}}}}}\n"))
    vm.do("start")
    Shell(vm, qemu)
    rm = vm.fs.spawn("rm", vm / "disks/data")
    until(lambda: vm.status.get("operation") == "apply", "it is being detached")
    vm.fs.kill9()
    assert rm.finish() != 0
    vm.fs.restart()
    until(lambda: vm.state == "running", "it is found again")
    assert list(links(vm)) == ["data"] and vm.read("pending") == ""


@pytest.mark.qemu
def test_attached_over_a_restart(real, disk):
    os.symlink(disk("a"), real / "disks/a")
    os.symlink(disk("b"), real / "disks/b")
    real.fs.kill9()
    real.fs.restart()
    until(lambda: real.state == "running", "it is found again")
    assert real.read("pending") == "" and sorted(links(real)) == ["a", "b"]
    os.unlink(real / "disks/a")
    os.symlink(disk("c"), real / "disks/c")
    sh = Shell(real)
    sh("grep -l [bc] /sys/block/vd*/serial | wc -l", "2")
    assert real.read("pending") == ""


@pytest.mark.qemu
def test_unknown_to_the_successor(real, disk):
    """What was plugged in by a daemon that died before it took note is taken out again."""
    data = disk()
    stored = next(real.fs.state.glob("vms/*/spec.yaml"))
    before = stored.read_bytes()
    Shell(real)("grep -c vda /proc/partitions", "0")
    os.symlink(data, real / "disks/data")
    real.fs.kill9()
    stored.write_bytes(before)
    (stored.parent / "started.yaml").write_bytes(before)
    real.fs.restart()
    until(lambda: real.state == "running", "it is found again")
    assert links(real) == {} and real.read("pending") == ""
    Shell(real)("grep -c vda /proc/partitions", "0")
    until(lambda: real.fs.sh(f"ln -s {data} web1/disks/data", check=False).returncode == 0,
          "QEMU has closed it too")
    assert real.read("pending") == ""


@pytest.mark.qemu
def test_disk_in_use_elsewhere(real, qemu, disk):
    data = disk()
    other = qemu.vm("web2", qemu.spec(extra=f"disks: {{data: {{file: {data}}}}}\n"))
    other.do("start")
    before = real.spec
    with fails(EBUSY):
        os.symlink(data, real / "disks/data")
    real.error("EBUSY", "open")
    assert real.spec == before and links(real) == {} and real.read("pending") == ""
    other.do("kill")
    os.symlink(data, real / "disks/data")  # nothing of the failure is in its way
    assert real.read("pending") == ""


@pytest.mark.qemu
def test_no_slot_is_left(real, disk):
    for i in range(30):  # and one nic
        os.symlink(disk(f"d{i}"), real / f"disks/d{i}")
    with fails(ENOSPC):
        os.symlink(disk("more"), real / "disks/more")
    real.error("ENOSPC", "slots")
    assert len(links(real)) == 30 and real.read("pending") == ""
    real.do("kill")
    os.symlink(disk("more"), real / "disks/more")
    real.do("start")
    assert real.read("pending") == ""


@pytest.mark.qemu
def test_shares(qemu, scratch):
    """Of 9p the guest finds a device each; live they must wait. (Its kernel, the cloud's, has no 9p.)"""
    (scratch / "out").mkdir()
    vm = qemu.vm(spec=qemu.spec(extra=f"shares:\n  in: {{path: {scratch}, readonly: true}}\n"
                                      f"  out: {{path: {scratch / 'out'}, type: 9p}}\n"))
    vm.do("start")
    Shell(vm, qemu)("cat /sys/bus/virtio/devices/*/device | grep -c 0x0009", "2")
    (scratch / "later").mkdir()
    os.symlink(scratch / "later", vm / "shares/later")
    assert vm.read("pending") == "shares.later\n"
    os.unlink(vm / "shares/later")
    assert vm.read("pending") == ""


@pytest.mark.qemu
def test_microvm_must_wait(qemu, guest, disk):
    vm = qemu.vm(spec=qemu.spec().replace("backend: qemu\n", "backend: qemu\nmachine: microvm\n"))
    vm.do("start")
    os.symlink(disk(), vm / "disks/data")
    assert list(links(vm)) == ["data"] and vm.read("pending") == "disks.data\n"
    os.unlink(vm / "disks/data")
    assert vm.read("pending") == ""


@pytest.mark.qemu
def test_sleep_with_what_was_plugged_in(real, disk):
    """The guest finds its devices where they were, however they came there."""
    sh = Shell(real)
    for name in ("a", "b", "c"):
        os.symlink(disk(name), real / "disks" / name)
    sh("grep -c vd /proc/partitions", "3")
    os.unlink(real / "disks/a")
    sh("grep -c vd /proc/partitions", "2")
    real.do("sleep")
    real.do("wake")
    sh("grep -l [bc] /sys/block/vd*/serial | wc -l", "2")
    sh("cat /dev/vd? | head -c 9000000 | wc -c", "9000000")  # of both
    os.unlink(real / "disks/b")
    sh("grep -c vd /proc/partitions", "1")
    assert real.read("pending") == ""


def by_serial(name):
    """The guest's disk on SCSI of that name: its serial number is in page 0x80 of what it tells."""
    return f"grep -lE '{name}$' /sys/block/sd*/device/vpd_pg80 | wc -l"


@pytest.mark.qemu
def test_scsi(qemu, disk):
    """From the start and later; over a sleep, with the controller that came later."""
    vm = qemu.vm()
    qemu.up(vm)
    sh = Shell(vm)
    plain = vm.spec
    for names in (["a"], ["a", "b"]):
        vm.write("spec.yaml", plain + "disks:\n" + "".join(
            f"  {n}: {{file: {disk(n)}, bus: scsi}}\n" for n in names))
        assert vm.read("pending") == "" and vm.read("error") == ""
        sh("ls -d /sys/block/sd* | wc -l", str(len(names)))
    sh(by_serial("a"), "1")
    sh("echo written > /dev/sda; sync; head -c7 /dev/sda", "written")
    assert "block.a.write_ops" in vm.read("stats")
    vm.do("sleep")
    vm.do("wake")
    sh(by_serial("b"), "1")
    vm.fs.sh("rm web1/disks/a")
    sh("ls -d /sys/block/sd* | wc -l", "1")
    vm.fs.kill9()
    vm.fs.restart()
    until(lambda: vm.state == "running", "it is found again")
    sh.console = vm.follow("console")
    assert vm.read("pending") == ""
    vm.write("spec.yaml", plain + f"disks: {{b: {{file: {disk('b')}, bus: scsi}}, "
                                  f"c: {{file: {disk('c')}, bus: scsi}}}}\n")
    sh(by_serial("c"), "1")
    assert vm.read("pending") == ""
    vm.do("kill")
    vm.do("start")
    sh.console.expect("GUEST-UP")
    sh("ls -d /sys/block/sd* | wc -l", "2")


@pytest.mark.qemu
def test_boot_from_scsi(qemu, guest):
    vm = qemu.vm(spec="backend: qemu\naccel: tcg\nmemory: 256MiB\n"
                      f"disks: {{root: {{image: {guest.disk}, bus: scsi}}}}\n")
    vm.do("start")
    Shell(vm, qemu)(by_serial("root"), "1")
    (vm / "snapshots/s").mkdir()
    vm.wait("snapshots")
    vm.do("restore s")
    Shell(vm, qemu)("head -c 512 /dev/sda | wc -c", "512")


@pytest.mark.qemu
def test_bus_of_what_runs(real, disk):
    """Another bus is for the next start."""
    vm, data = real, disk()
    plain = vm.spec
    vm.write("spec.yaml", plain + f"disks: {{data: {{file: {data}}}}}\n")
    vm.write("spec.yaml", plain + f"disks: {{data: {{file: {data}, bus: scsi}}}}\n")
    assert vm.read("pending") == "disks.data.bus\n"
