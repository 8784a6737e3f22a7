# SPDX-License-Identifier: Apache-2.0
"""Base images and their names, and the disks that are made of them."""
import os
import shutil
from errno import EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, EPERM

import pytest

from lib.util import exists, fails

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
    with fails(28):  # ENOSPC
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
