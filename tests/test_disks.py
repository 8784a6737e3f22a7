# SPDX-License-Identifier: Apache-2.0
"""Base images and their names, and the disks that are made of them."""
import json
import os
import shutil
import subprocess
from errno import (EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOSPC, EOPNOTSUPP, EPERM,
                   errorcode)
from pathlib import Path

import pytest

from lib.backends import on_libvirt, real
from lib.guest import run, started
from lib.libvirtd import Libvirtd, missing
from lib.util import exists, fails, unmount_disk, until

MIB = 1 << 20


@pytest.fixture
def images(fs):
    return fs.mnt / ".vmfs/images"


@pytest.fixture
def base(fs):
    """A raw image."""
    path = fs.base / "base.raw"
    path.write_bytes(os.urandom(MIB))
    return path


def spec_of(image, rest=""):
    return f"backend: sim\ndisks:\n  root: {{image: {image}{rest}}}\n"


# Names

def test_a_name_is_a_link(fs, images, base):
    assert os.listdir(images) == []
    fs.sh(f"ln -s {base} .vmfs/images/debian-12")
    assert os.listdir(images) == ["debian-12"]
    assert os.readlink(images / "debian-12") == str(base)
    assert (images / "debian-12").lstat().st_size == len(str(base))
    assert (images / "debian-12").read_bytes() == base.read_bytes()
    fs.sh("rm .vmfs/images/debian-12")
    assert os.listdir(images) == [] and base.exists()


def test_names_survive(fs, images, base):
    for name in ("a", "b", "c"):
        (images / name).symlink_to(base)
    (images / "b").unlink()
    (images / "c").rename(images / "d")
    inode = (images / "d").lstat().st_ino
    images.chmod(0o1777)
    fs.kill9()
    fs.restart()
    assert sorted(os.listdir(images)) == ["a", "d"]
    assert os.readlink(images / "d") == str(base)
    assert (images / "d").lstat().st_ino == inode
    assert images.stat().st_mode & 0o7777 == 0o1777


def test_a_name_can_be_given_another_target(fs, images, base):
    (images / "deb").symlink_to("/old")
    fs.sh(f"ln -sfn {base} .vmfs/images/deb")
    assert os.readlink(images / "deb") == str(base)
    assert os.listdir(images) == ["deb"]
    (images / "deb").rename(images / "debian")
    (images / "debian").rename(images / "debian")
    assert os.listdir(images) == ["debian"]


def test_odd_names_and_targets(fs, images, base):
    with fails(EINVAL):
        (images / "rel").symlink_to("../base.raw")
    for name in (".hidden", "a b", "é", "-a"):
        with fails(EINVAL):
            (images / name).symlink_to(base)
    (images / "a").symlink_to(base)
    with fails(EEXIST):
        (images / "a").symlink_to(base)
    with fails(EINVAL):
        (images / "a").rename(images / "a b")
    with fails(EPERM):
        (images / "dir").mkdir()
    with fails(EPERM, EACCES):
        shutil.copyfile(base, images / "file")
    with fails(EPERM):
        (images / "a").rename(fs.mnt / ".vmfs/a")
    assert os.listdir(images) == ["a"]
    long = "x" * 255
    (images / long).symlink_to("/" + "y" * 4000)
    fs.kill9()
    fs.restart()
    assert sorted(os.listdir(images)) == ["a", long]


@pytest.mark.slow
def test_many_names(fs, images):
    for n in range(1000):
        (images / f"n{n}").symlink_to("/x")
    assert len(os.listdir(images)) == 1000
    with fails(ENOSPC):
        (images / "more").symlink_to("/x")
    (images / "n7").unlink()
    (images / "more").symlink_to("/x")


def test_image_by_name(fs, images, base):
    vm = fs.vm("web1")
    with fails(ENOENT):
        vm.write("spec.yaml", spec_of("deb"))
    vm.error("ENOENT", "disks.root.image", "deb", ".vmfs/images")
    (images / "deb").symlink_to(base)
    vm.write("spec.yaml", spec_of("deb"))
    assert vm.read("error") == ""
    (images / "gone").symlink_to(fs.base / "nothing")
    with fails(ENOENT):
        vm.write("spec.yaml", spec_of("gone"))
    vm.error("ENOENT", "line 3", "disks.root.image", "nothing")
    (images / "dir").symlink_to(fs.base)
    with fails(EISDIR):
        vm.write("spec.yaml", spec_of("dir"))
    (images / "inside").symlink_to(fs.mnt / "web1/spec.yaml")
    with fails(EINVAL):
        vm.write("spec.yaml", spec_of("inside"))
    vm.error("EINVAL", "outside of it")


def test_directory_as_disk(fs):
    vm = fs.vm("web1")
    for key in ("image", "file"):
        with fails(EISDIR):
            vm.write("spec.yaml", f"backend: sim\ndisks: {{root: {{{key}: {fs.base}}}}}\n")
        vm.error("EISDIR", f"disks.root.{key}", str(fs.base))


def test_base_that_another_vm_writes(fs, images, base):
    """In either order, by path or by name; but two may share what none writes."""
    (images / "deb").symlink_to(f"{base.parent}//{base.name}")
    writer, reader = fs.vm("writer"), fs.vm("reader")
    writer.write("spec.yaml", f"backend: sim\ndisks: {{data: {{file: {base}}}}}\n")
    for image in (base, "deb"):
        with fails(EBUSY):
            reader.write("spec.yaml", spec_of(image))
        reader.error("EBUSY", "disks.root.image", base.name, "'data' of VM 'writer'")
    writer.write("spec.yaml", f"backend: sim\ndisks: {{data: {{file: {base}, readonly: true}}}}\n")
    reader.write("spec.yaml", spec_of("deb"))
    fs.vm("third", spec_of(base))
    with fails(EBUSY):
        writer.write("spec.yaml", f"backend: sim\ndisks: {{data: {{file: {base}}}}}\n")
    writer.error("EBUSY", "disks.data.file", "base of disk 'root' of VM 'reader'")


# Who may

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
USER, OTHER = 12345, 12346


@needs_root
@pytest.mark.daemon("-o", "allow_other")
def test_who_may_name_images(fs, images):
    assert fs.sh("ln -s /x .vmfs/images/mine", user=USER, check=False).returncode != 0
    images.chmod(0o1777)
    fs.sh("ln -s /x .vmfs/images/mine; ln -s /y .vmfs/images/yours", user=USER)
    assert (images / "mine").lstat().st_uid == USER
    assert fs.sh("rm -f .vmfs/images/mine", user=OTHER, check=False).returncode != 0
    assert fs.sh("mv .vmfs/images/mine .vmfs/images/b", user=OTHER, check=False).returncode != 0
    fs.sh("rm .vmfs/images/mine", user=USER)
    os.chown(images, OTHER, OTHER)
    images.chmod(0o755)
    assert fs.sh("rm -f .vmfs/images/yours", user=USER, check=False).returncode != 0
    fs.sh("rm .vmfs/images/yours; ln -s /z .vmfs/images/z", user=OTHER)
    assert os.listdir(images) == ["z"]


@needs_root
@pytest.mark.daemon("-o", "allow_other")
def test_a_name_gives_no_rights(fs, images, base):
    """What it stands for is opened with the rights of whoever uses it."""
    base.chmod(0o600)
    (images / "secret").symlink_to(base)
    fs.mnt.chmod(0o1777)
    fs.sh("mkdir web1", user=USER)
    done = fs.sh("cat > web1/spec.yaml <<'E'\n" + spec_of("secret") + "E", user=USER, check=False)
    assert done.returncode != 0
    fs.vm("web1").error("EACCES", "disks.root.image", str(base))


def test_store_that_is_full(fs, images):
    """A name that cannot be kept is not there."""
    state = fs.state / "images.tmp"
    state.mkdir()  # in the way of the file that is to be written
    with fails(EISDIR):
        (images / "a").symlink_to("/x")
    assert not exists(images / "a") and os.listdir(images) == []
    state.rmdir()
    (images / "a").symlink_to("/x")
    state.mkdir()
    with fails(EISDIR):
        (images / "a").unlink()
    with fails(EISDIR):
        (images / "a").rename(images / "b")
    with fails(EISDIR):
        images.chmod(0o777)
    assert os.listdir(images) == ["a"] and os.readlink(images / "a") == "/x"
    assert images.stat().st_mode & 0o777 == 0o755
    state.rmdir()


# Files of disks, with real machines

qemu_only = pytest.mark.qemu
HEAD = "accel: tcg\nmemory: 256MiB\n"


def qemu_img(*args):
    return subprocess.run(["qemu-img", *map(str, args)], check=True, capture_output=True,
                          text=True).stdout


def info(path):
    return json.loads(qemu_img("info", "-U", "--output=json", path))


@pytest.fixture
def boot(request, guest):
    """The beginning of a spec whose guest needs no disk."""
    callspec = getattr(request.node, "callspec", None)
    name = callspec.params.get("backend", "qemu") if callspec else "qemu"
    return (f"backend: {name}\n{HEAD}boot:\n  kernel: {guest.kernel}\n  initrd: {guest.initrd}\n"
            f"  cmdline: console=ttyS0 quiet\ndisks:\n")


@pytest.fixture
def data(fs):
    """The data directory of the one VM that there is."""
    def find():
        return next(fs.state.glob("vms/*/data"))
    return find


@real
def test_overlay_is_what_qemu_img_makes(fs, backend, images, guest, boot, data):
    """By name, of a qcow2 and of a raw image, and larger than that."""
    (images / "small").symlink_to(guest.disk)
    size = info(guest.disk)["virtual-size"]
    vm = fs.vm("web1", f"{boot}  root: {{image: small}}\n"
                       f"  big: {{image: {guest.rawdisk}, size: 1TiB}}\n")
    vm.do("start")
    vm.do("kill")
    root, big = info(data() / "root.qcow2"), info(data() / "big.qcow2")
    assert root["virtual-size"] == size and big["virtual-size"] == 1 << 40
    assert root["backing-filename"] == os.path.realpath(guest.disk)
    assert root["backing-filename-format"] == "qcow2" and big["backing-filename-format"] == "raw"
    for name in ("root", "big"):
        assert "No errors" in qemu_img("check", data() / f"{name}.qcow2")
    assert not list(data().glob("*.new"))


@real
def test_a_name_that_moves_on(fs, backend, images, guest, boot, data):
    """Overlays stay with the image that they were made of; another name is another image."""
    old, new = fs.base / "old.qcow2", fs.base / "new.qcow2"
    shutil.copyfile(guest.disk, old)
    shutil.copyfile(guest.disk, new)
    (images / "deb").symlink_to(old)
    vm = fs.vm("web1", f"{boot}  root: {{image: deb}}\n")
    vm.do("start")
    vm.do("kill")
    fs.sh(f"ln -sfn {new} .vmfs/images/deb")
    vm.do("start")
    vm.do("kill")
    assert info(data() / "root.qcow2")["backing-filename"] == str(old)
    (images / "deb").unlink()
    vm.do("start")
    vm.do("kill")
    (images / "other").symlink_to(new)
    vm.write("spec.yaml", f"{boot}  root: {{image: other}}\n")
    with fails(EINVAL):
        vm.do("start")
    vm.error("EINVAL", "disks.root.image", "a disk of deb", "remove", "root.qcow2")
    (data() / "root.qcow2").unlink()
    vm.do("start")
    vm.do("kill")
    assert info(data() / "root.qcow2")["backing-filename"] == str(new)


@real
def test_a_name_that_is_gone(fs, backend, images, guest, boot):
    (images / "deb").symlink_to(guest.disk)
    vm = fs.vm("web1", f"{boot}  root: {{image: deb}}\n")
    (images / "deb").unlink()
    with fails(ENOENT):
        vm.do("start")
    vm.error("ENOENT", "disks.root.image", "no image 'deb'")


@real
def test_empty_disks(fs, backend, boot, data):
    """The guest sees them, they are empty, keep what is written, and grow."""
    def spec(a, b):
        return f"{boot}  a: {{size: {a}}}\n  b: {{size: {b}, format: raw}}\n"
    vm = fs.vm("web1", spec("1GiB", "64MiB"))
    console = started(vm)
    assert run(vm, console, "cat /sys/block/vda/size") == str(1 << 21)
    assert run(vm, console, "cat /sys/block/vdb/size") == str(1 << 17)
    run(vm, console, "for d in vda vdb; do echo kept-$d | dd of=/dev/$d conv=sync; done; sync")
    vm.do("stop 20")
    assert (data() / "b.raw").stat().st_size == 64 * MIB
    vm.write("spec.yaml", spec("2GiB", "128MiB"))
    console = started(vm)
    assert run(vm, console, "cat /sys/block/vda/size") == str(1 << 22)
    assert run(vm, console, "cat /sys/block/vdb/size") == str(1 << 18)
    assert "kept-vda" in run(vm, console, "head -n1 /dev/vda")
    assert "kept-vdb" in run(vm, console, "head -n1 /dev/vdb")
    vm.do("kill")
    vm.write("spec.yaml", spec("1GiB", "128MiB"))
    with fails(EINVAL):
        vm.do("start")
    vm.error("EINVAL", "disks.a.size", "smaller")
    vm.write("spec.yaml", boot + "  a: {size: 2GiB, format: raw}\n")
    with fails(EINVAL):
        vm.do("start")
    vm.error("EINVAL", "disks.a.format", "a.qcow2")
    assert "No errors" in qemu_img("check", data() / "a.qcow2")
    vm.dir.rmdir()
    until(lambda: not list(fs.state.glob("vms/*/data")), "the disks are gone")


def err_name(errno):
    return "EOPNOTSUPP" if errno == EOPNOTSUPP else errorcode[errno]


def refused(fs, vm, spec, errno, *words):
    """The start, or already the document; and nothing is left of it."""
    try:
        vm.write("spec.yaml", spec)
    except OSError as e:
        assert e.errno == errno
    else:
        with fails(errno):
            vm.do("start")
    sentence = vm.error(err_name(errno), *words)[2]
    assert vm.state == "stopped" and vm.read("pid") == ""
    data = next(fs.state.glob("vms/*/data"))
    assert not [p for p in data.iterdir() if p.suffix in (".new", ".qcow2", ".image", ".iso")]
    return sentence


@qemu_only
@pytest.mark.parametrize("key", ["image", "file"])
def test_damaged_images(fs, boot, guest, key):
    """Truncated by much or by the last cluster, in itself or in what it is based on."""
    vm, path, top = fs.vm("web1"), fs.base / "base.qcow2", fs.base / "top.qcow2"
    whole = Path(guest.disk).read_bytes()
    qemu_img("create", "-qf", "qcow2", "-F", "qcow2", "-b", guest.disk, top)
    qemu_img("rebase", "-uf", "qcow2", "-F", "qcow2", "-b", "base.qcow2", top)
    for n in (len(whole) - 65536, len(whole) // 2, 70000, 60):
        path.write_bytes(whole[:n])
        for disk in (path, top):
            words = refused(fs, vm, f"{boot}  root: {{{key}: {disk}}}\n", EINVAL,
                            f"disks.root.{key}", "truncated")
            assert "based on" in words or disk == path
    path.write_bytes(whole)
    vm.write("spec.yaml", f"{boot}  root: {{{key}: {top}}}\n")
    vm.do("start")


@qemu_only
def test_what_is_no_image(fs, boot, guest):
    vm, path = fs.vm("web1"), fs.base / "disk"
    path.write_bytes(b"KDMV" + bytes(4096))
    refused(fs, vm, f"{boot}  a: {{image: {path}}}\n", EINVAL, "VMDK", "qemu-img convert")
    refused(fs, vm, f"{boot}  a: {{file: {path}, format: qcow2}}\n", EINVAL, "not a qcow2 image")
    refused(fs, vm, f"{boot}  a: {{image: {guest.disk}, size: 1MiB}}\n", EINVAL, "smaller")
    nbd = fs.base / "nbd.qcow2"
    qemu_img("create", "-qf", "qcow2", "-uF", "raw", "-b", "nbd:localhost:1", nbd, "1M")
    refused(fs, vm, f"{boot}  a: {{image: {nbd}}}\n", EOPNOTSUPP, "nbd:localhost:1", "not a file")
    loop = fs.base / "loop.qcow2"
    qemu_img("create", "-qf", "qcow2", "-uF", "qcow2", "-b", "loop.qcow2", loop, "1M")
    refused(fs, vm, f"{boot}  a: {{image: {loop}}}\n", ELOOP, "based on more than")


@qemu_only
@needs_root
@pytest.mark.daemon("-o", "allow_other")
def test_chain_that_the_owner_may_not_read(fs, boot, guest):
    base, top = fs.base / "secret.qcow2", fs.base / "top.qcow2"
    shutil.copyfile(guest.disk, base)
    qemu_img("create", "-qf", "qcow2", "-F", "qcow2", "-b", base, top)
    base.chmod(0o600)
    top.chmod(0o644)
    fs.mnt.chmod(0o1777)
    fs.sh("mkdir web1", user=USER)
    vm = fs.vm("web1", f"{boot}  root: {{image: {top}}}\n")  # root may read it, the owner not
    with fails(EACCES):
        vm.do("start")
    vm.error("EACCES", "disks.root.image", f"based on {base}", "owner")
    base.chmod(0o644)
    vm.do("start")
    data = next(fs.state.glob("vms/*/data"))
    assert (data / "root.qcow2").stat().st_uid == USER
    vm.do("kill")


@qemu_only
def test_image_that_is_open_elsewhere(fs, boot, guest):
    """Also when nothing in a document tells of it: other programs, and other names."""
    path, link = fs.base / "disk.qcow2", fs.base / "link.qcow2"
    shutil.copyfile(guest.disk, path)
    link.symlink_to(path)
    writer = fs.vm("writer", f"{boot}  data: {{file: {link}}}\n")
    reader = fs.vm("reader", f"{boot}  root: {{image: {path}}}\n")
    writer.do("start")
    with fails(EBUSY):
        reader.do("start")
    reader.error("EBUSY", "disks.root.image", str(path), "for writing")
    writer.do("kill")
    reader.do("start")
    with fails(EBUSY):
        writer.do("start")
    writer.error("EBUSY", "disks.data.file", "must not see it change")
    reader.do("kill")
    writer.do("start")
    writer.do("kill")


@pytest.fixture
def tiny(scratch):
    """A file system of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", scratch], check=True)
    yield scratch
    unmount_disk(scratch)


@qemu_only
@needs_root
def test_no_space(tiny, box, boot, guest):
    """Half-way through; nothing is left over, and with space it works."""
    box.state = tiny / "s"
    vm = box.start().vm("web1", f"{boot}  root: {{image: {guest.disk}}}\n  b: {{size: 1GiB}}\n"
                                "cloud_init: {user_data: abc}\n")
    data, fill = next(box.state.glob("vms/*/data")), tiny / "fill"
    started_with, failed_with = [], []
    for pages in range(0, 30, 3):
        left = os.statvfs(tiny)
        fill.write_bytes(bytes((left.f_bavail - pages) * left.f_bsize))
        try:
            vm.do("start")
            started_with.append(pages)
            vm.do("kill")
        except OSError as e:
            assert e.errno == ENOSPC
            failed_with.append(pages)
            fill.unlink()
            vm.error("ENOSPC")
            assert vm.state == "stopped"
            assert {p.name for p in data.iterdir()} <= {"console.log", "root.qcow2", "root.image",
                                                      "b.qcow2", "ssh_key", "ssh_key.pub"}
        fill.unlink(missing_ok=True)
        for path in data.iterdir():
            path.unlink()
    assert started_with and len(failed_with) > 2


@qemu_only
def test_rests_of_a_daemon_that_was_killed(fs, boot, guest, data):
    """A half-written file is written again, and one that a power cut has emptied as well."""
    vm = fs.vm("web1", f"{boot}  root: {{image: {guest.disk}}}\n  b: {{size: 1GiB}}\n")
    for name in ("root", "b"):
        (data() / f"{name}.qcow2.new").write_bytes(b"half")
    (data() / "root.image").symlink_to("/other")
    (data() / "root.qcow2").write_bytes(b"")
    (data() / "b.qcow2").write_bytes(bytes(262144))
    vm.do("start")
    vm.do("kill")
    assert not list(data().glob("*.new"))
    for name in ("root", "b"):
        assert "No errors" in qemu_img("check", data() / f"{name}.qcow2")


@real
def test_kill_and_start_at_once(fs, backend, boot, guest):
    """One start after the other is given up: the next one gets what it needs."""
    vm = fs.vm("web1", f"{boot}  root: {{image: {guest.disk}}}\n")
    for _ in range(10):
        vm.write("state", "start\n", os.O_NONBLOCK)
        vm.do("kill")
        assert vm.state == "stopped"
    vm.do("start")
    assert vm.state == "running"


# What libvirt is told of them

libvirt_only = pytest.mark.parametrize("backend", [on_libvirt], indirect=True)


@libvirt_only
def test_libvirt_keeps_what_a_disk_is(fs, backend, boot, images, guest, data):
    """The user's text stays as it is, while the machine runs, over restarts, and with virsh's
    changes beside it; and a disk comes while it runs."""
    (images / "small").symlink_to(guest.disk)
    text = f"{boot}  root: {{image: small}}  # mine\n  b: {{size: 64MiB}}\ncloud_init: {{}}\n"
    more = text.replace("  b:", "  c: {size: 32MiB, format: raw}\n  b:")
    lv, vm = backend.libvirtd, fs.vm("web1", text)
    console = started(vm, "web1")
    assert vm.spec == text and vm.read("pending") == ""
    assert set(os.listdir(vm / "disks")) == {"root", "b"} and "block._seed" not in vm.read("stats")
    vm.write("spec.yaml", more)
    assert vm.read("error") == "" and vm.read("pending") == ""
    # Behind the seed, which is there.
    until(lambda: run(vm, console, "cat /sys/block/vdd/size || :") == "65536", "the disk")
    fs.kill9()
    fs.restart()
    assert vm.spec == more and vm.read("pending") == ""
    vm.do("kill")
    (lv.dir / "edited.xml").write_text(lv.virsh("dumpxml", "web1").stdout.replace(
        ">1</vcpu>", ">2</vcpu>"))
    lv.virsh("define", lv.dir / "edited.xml")
    until(lambda: "cpus: 2\n" in vm.spec, "what virsh changes shows")
    for word in ("small", "67108864", "cloud_init"):
        assert word in vm.spec
    vm.write("spec.yaml", boot + "  root: {image: small}\n")
    xml = lv.virsh("dumpxml", "web1").stdout
    assert xml.count("<disk type") == 1 and xml.count("<disk name") == 1 and "_seed" not in xml
    vm.dir.rmdir()
    until(lambda: not list(fs.state.glob("vms/*/data")), "the disks are gone")
    assert lv.domains() == []


@libvirt_only
def test_libvirt_of_another_machine(fs, backend, boot, guest):
    """Files of this one are of no use there; nor is a machine to be given away with them."""
    (fs.mnt / ".vmfs/hosts/far").mkdir()
    (fs.mnt / ".vmfs/hosts/far/uri").write_text("qemu+ssh://vmfs.invalid/system\n")
    vm = fs.vm("web1")
    for own in ("  b: {size: 1MiB}\n", f"  b: {{file: {guest.rawdisk}}}\ncloud_init: {{}}\n"):
        with fails(EOPNOTSUPP):
            vm.write("spec.yaml", f"{boot}{own}host: far\n")
        vm.error("EOPNOTSUPP", "host far is another")
    (vm / "spec.yaml.rej").unlink()
    vm.write("spec.yaml", f"{boot}  b: {{size: 1MiB}}\n")
    vm.do("start")
    with fails(EOPNOTSUPP):
        vm.write("host", "far\n")
    vm.error("EOPNOTSUPP", "host far is another")
    with fails(EBUSY):
        vm.do("unmanage")
    vm.error("EBUSY", "which go with the machine")
    assert vm.state == "running"
    lv = backend.libvirtd
    xml = lv.virsh("dumpxml", "--inactive", "web1").stdout
    vm.do("kill")
    vm.dir.rmdir()
    # A foreign one that says the same: what is there is there, and more is not made.
    (lv.dir / "foreign.xml").write_text(xml.replace(">web1<", ">web2<"))
    lv.virsh("define", lv.dir / "foreign.xml")
    until(lambda: "web2" in fs.names(), "it is shown")
    vm = fs.vm("web2")
    until(lambda: "b: {" in vm.spec, "what it is is known")
    for more in ("disks: {c: {size: 1MiB}}\n", "disks: {}\ncloud_init: {}\n"):
        with fails(EOPNOTSUPP):
            vm.write("spec.yaml", f"backend: libvirt\n{more}")
        vm.error("EOPNOTSUPP", "that vmfs has made itself")


@pytest.fixture
def other_libvirtd():
    """One whose QEMUs are not root."""
    if why := missing():
        pytest.skip(why)
    lv = Libvirtd(user="libvirt-qemu")
    yield lv
    lv.clear()
    lv.close()


@qemu_only
@pytest.mark.libvirt
@needs_root
def test_libvirt_lets_its_user_through(other_libvirtd, box, guest):
    """To the files of the machine and to nothing else; they stay their owner's, as images do."""
    lv = other_libvirtd
    fs = box.start(f"-ohost=local={lv.uri}", "-o", "allow_other")
    kernel, initrd, base = (shutil.copy(path, fs.base) for path in
                            (guest.kernel, guest.initrd, guest.rawdisk))
    text = (f"backend: libvirt\n{HEAD}boot:\n  kernel: {kernel}\n  initrd: {initrd}\n"
            f"  cmdline: console=ttyS0 quiet\ndisks:\n  root: {{image: {base}}}\n"
            "  b: {size: 1MiB, format: raw}\ncloud_init: {}\n")
    fs.mnt.chmod(0o1777)
    fs.sh("mkdir web1", user=USER)
    vm = fs.vm("web1", text)
    console = started(vm, "web1")
    run(vm, console, "echo kept | dd of=/dev/vdb conv=sync; sync")
    data = next(fs.state.glob("vms/*/data"))
    qemu = os.stat(f"/proc/{lv.vmm('web1')}").st_uid
    assert qemu not in (0, USER)
    files = [data, data / "root.qcow2", data / "b.raw", data / "seed.iso"]
    assert {p.stat().st_uid for p in files} == {USER} and os.stat(base).st_uid == 0
    for user, reads in ((qemu, True), (OTHER, False)):
        done = fs.sh(f"head -c4 {data}/b.raw", user=user, check=False)
        assert (done.returncode == 0) == reads
    assert fs.sh(f"cat {data}/console.log", user=qemu, check=False).returncode != 0
    vm.do("kill")
    os.chmod(base, 0o600)  # its owner's alone, who is neither
    with fails(EACCES):
        vm.do("start")
    vm.error("EACCES", "disks.root.image", str(base), "owner")
    os.chmod(base, 0o644)
    vm.do("start")
    assert (data / "b.raw").read_bytes().startswith(b"kept")
    vm.do("kill")
