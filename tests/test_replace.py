# SPDX-License-Identifier: Apache-2.0
"""`ln -sfn` over what is attached: another takes its place, or nothing is changed."""
import os
from errno import ENOSPC, EPERM

import pytest

from lib.util import exists, fails, links, until
from lib.vm import Shell


@pytest.mark.parametrize("ln", ["ln -sfn {} {}", "busybox ln -sfn {} {}",
                                "ln -s {} web1/disks/.new && mv -T web1/disks/.new {}"])
@pytest.mark.parametrize("before, after", [
    ("disks:  # mine\n  data: {{file: {a}, readonly: true}}  # the data\n  more: {{file: {c}}}\n",
     "disks:  # mine\n  data: {{file: {b}, readonly: true}}  # the data\n  more: {{file: {c}}}\n"),
    ("disks:\n  data:\n    # where\n    file: {a}  # there\n    readonly: true\n",
     "disks:\n  data:\n    # where\n    file: {b}  # there\n    readonly: true\n"),
    ("disks: {{data: {{size: 1MiB}}, more: {{file: '{c}'}}}}\n",
     "disks: {{data: {{file: {b}}}, more: {{file: '{c}'}}}}\n"),
    ("disks:\n  data:\n    size: 1MiB\nnics: {{}}\n",
     "disks:\n  data:\n    {{file: {b}}}\nnics: {{}}\n"),
])
def test_ln_over_a_link(vm, disk, before, after, ln):
    """What is attached is another; the rest is as the user wrote it."""
    names = {n: disk(n) for n in "abc"}
    vm.write("spec.yaml", "backend: sim\n" + before.format(**names))
    if ln.startswith("busybox"):  # it removes and makes
        before = before.replace(", readonly: true", "").replace("    readonly: true\n", "")
        vm.write("spec.yaml", "backend: sim\n" + before.format(**names))
    vm.fs.sh(ln.format(names["b"], "web1/disks/data"))
    assert links(vm)["data"] == str(names["b"])
    assert vm.read("error") == ""
    assert not [n for n in links(vm) if n not in ("data", "more")]
    if not ln.startswith("busybox"):
        assert vm.spec == "backend: sim\n" + after.format(**names)


def test_ln_over_other_links(vm, scratch):
    """A share, and a nic that no document names; of what is there already nothing changes."""
    for name in ("a", "b"):
        (scratch / name).mkdir()
    vm.fs.sh(f"ln -sfn {scratch / 'a'} web1/shares/src && ln -sfn {scratch / 'b'} web1/shares/src")
    text = f"backend: sim\nshares:\n  src: {{path: {scratch / 'b'}}}\n"
    assert vm.spec == text
    vm.fs.sh(f"ln -sfn {scratch / 'b'} web1/shares/src && ln -sfn user web1/nics/eth0")
    assert vm.spec == text and list(links(vm, "shares")) == ["src"]
    done = vm.fs.sh("ln -sfn lan web1/nics/eth0", check=False)
    assert done.returncode != 0
    vm.error("EOPNOTSUPP", "network 'lan'")
    assert vm.spec == text and links(vm, "nics") == {"eth0": "user"}


def test_ln_over_a_link_fails(vm, disk, scratch):
    data = disk()
    vm.fs.sh(f"ln -s {data} web1/disks/data; ln -s {disk('b')} web1/disks/more")
    before = vm.spec
    for target, why in ((scratch / "none", "No such file"), (scratch, "Is a directory"),
                        (disk("b"), "busy")):
        done = vm.fs.sh(f"ln -sfn {target} web1/disks/data", check=False)
        assert done.returncode != 0 and why in done.stderr, done
        assert vm.error()[0] == "disks/data"
        assert vm.spec == before and sorted(links(vm)) == ["data", "more"]
        assert links(vm)["data"] == str(data)
    assert not exists(vm / "spec.yaml.rej")


def test_temporary_links(vm, disk):
    """They attach nothing, and are no place for more than a few."""
    before, data = vm.spec, disk()
    os.symlink(data, vm / "disks/.new")
    assert vm.spec == before and links(vm) == {".new": str(data)}
    assert ".new" not in os.listdir(vm.dir)
    vm.fs.kill9()
    vm.fs.restart()
    assert vm.spec == before
    # A word of eight letters, by one who replaces nothing, is a name like others.
    vm.fs.sh(f"ln -s {data} web1/disks/Customer")
    assert "  Customer: " in vm.spec and links(vm)["Customer"] == str(data)
    with fails(EPERM):
        os.rename(vm / "disks/Customer", vm / "disks/Cupboard")
    vm.error("EPERM", "keeps its name")
    with fails(ENOSPC):
        for i in range(100):
            os.symlink(data, vm / f"disks/.{i}")
    vm.fs.sh("rm web1/disks/.* web1/disks/Customer", check=False)
    assert links(vm) == {}


def test_links_replaced_at_once(vm, disk):
    """By many hands: each is one of those that were asked for, and no temporary one is left."""
    paths = [disk(f"f{i}") for i in range(12)]
    for i in range(4):
        os.symlink(paths[i], vm / f"disks/d{i}")
    vm.fs.sh("; ".join(f"ln -sfn {paths[4 + i]} web1/disks/d{i % 4} &" for i in range(8))
             .replace("&;", "&") + " wait")
    found = links(vm)
    assert sorted(found) == ["d0", "d1", "d2", "d3"]
    for i in range(4):
        assert found[f"d{i}"] in (str(paths[4 + i]), str(paths[8 + i])), vm.read("error")


def test_hot_ln_over_a_link(up, disk):
    a, b = disk("a"), disk("b")
    up.fs.sh(f"ln -s {disk('c')} web1/disks/more; ln -s {a} web1/disks/data")
    up.fs.sh(f"ln -sfn {b} web1/disks/data")
    assert links(up)["data"] == str(b) and up.read("error") == ""
    assert up.read("pending") == ""
    before = up.spec
    up.sim("refuse eject")
    assert up.fs.sh(f"ln -sfn {a} web1/disks/data", check=False).returncode != 0
    assert up.error("ETIMEDOUT")[0] == "disks/data"
    assert up.spec == before and links(up)["data"] == str(b) and up.read("pending") == ""
    up.sim("allow eject")
    up.fs.sh(f"ln -sfn {a} web1/disks/more")
    assert up.read("pending") == "disks\n"  # it came last, and is the first in the next run


def test_ln_over_a_link_over_a_crash(up, disk):
    up.fs.sh(f"ln -s {disk('a')} web1/disks/data")
    up.sim("hang apply")
    ln = up.fs.spawn("ln", "-sfn", disk("b"), up / "disks/data")
    until(lambda: up.status.get("operation") == "apply", "it is being detached")
    up.fs.crash()
    assert ln.finish() == 0
    assert links(up) == {"data": str(disk("b"))} and up.read("pending") == ""
    assert up.spec.count("data:") == 1


@pytest.mark.qemu
def test_guest_sees_another_disk_in_its_place(qemu, disk):
    """And the old one again, where the new one cannot be had."""
    a, b, taken = disk("a"), disk("b"), disk("taken")
    for path in (a, b):
        with open(path, "r+") as f:
            f.write(path.name)
    real, other = qemu.vm(), qemu.vm("web2", qemu.spec(extra=f"disks: {{data: {{file: {taken}}}}}\n"))
    real.do("start")
    other.do("start")
    sh = Shell(real, qemu)
    os.symlink(a, real / "disks/data")
    sh("head -c1 /dev/vda", "a")
    real.fs.sh(f"ln -sfn {b} web1/disks/data")
    sh("head -c1 /dev/vda", "b")
    assert links(real) == {"data": str(b)} and real.read("pending") == ""
    before = real.spec
    done = real.fs.sh(f"ln -sfn {taken} web1/disks/data", check=False)
    assert done.returncode != 0 and "busy" in done.stderr
    real.error("EBUSY", "open")
    assert real.spec == before and links(real) == {"data": str(b)}
    until(lambda: real.read("pending") == "", "the old one is back")
    sh("head -c1 /dev/vda", "b")
    sh("ls -d /sys/block/vd* | wc -l", "1")
