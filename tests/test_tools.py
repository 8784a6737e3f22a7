# SPDX-License-Identifier: Apache-2.0
"""Tools that walk trees end, give whole finite files, never hang on a stream, and do no harm."""
import os
import shutil

import pytest

from lib.util import exists, get, until

SPEC = "# find me\nbackend: sim\nsim: {ip: 192.0.2.7}\n"


@pytest.fixture
def fleet(fs):
    """A running and a stopped VM, with readers asleep in the streams."""
    web1 = fs.vm("web1", SPEC)
    web1.do("start")
    web1.sim("print hello from the console")
    web1.follow("console").expect("hello")
    fs.vm("web2", SPEC)
    return fs


def finite(vm):
    """Name to text of the VM's readable plain files."""
    return {e.name: get(e.path) for e in os.scandir(vm.dir)
            if e.is_file(follow_symlinks=False) and e.stat().st_mode & 0o400}


def checked(done):
    """Nothing to complain of."""
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("tree", ["web1", "web2", "."])
def test_grep(fleet, tree):
    out = checked(fleet.sh(f"grep -r 'find me' {tree}", check=False))
    assert out.count("spec.yaml:# find me") == (2 if tree == "." else 1)


def test_tar(fleet, scratch):
    want = finite(fleet.vm("web1"))
    checked(fleet.sh(f"tar -cf {scratch}/all.tar web1 web2", check=False))
    fleet.sh("tar -xf all.tar", cwd=scratch)
    got = {name: (scratch / "web1" / name).read_bytes() for name in want}
    assert got == want
    assert os.readlink(scratch / "web1/console") == ".io/console"


@pytest.mark.parametrize("tool", ["cp -r", "cp -a", "rsync -a", "rsync -rc"])
def test_copy(fleet, scratch, tool):
    if not shutil.which(tool.split()[0]):
        pytest.skip(f"{tool.split()[0]} is not installed")
    want = finite(fleet.vm("web1"))
    checked(fleet.sh(f"{tool} web1 {scratch}/", check=False))
    got = {name: (scratch / "web1" / name).read_bytes() for name in want}
    assert got == want


def test_copy_of_the_whole_tree(fleet, scratch):
    checked(fleet.sh(f"cp -r . {scratch}/all", check=False))
    assert {"web1", "web2"} <= set(os.listdir(scratch / "all"))
    assert (scratch / "all/web1/spec.yaml").read_text() == SPEC


def test_find(fleet):
    out = fleet.sh("find . -type f").stdout.split()
    assert "./web1/state" in out and not [p for p in out if ".io" in p]
    checked(fleet.sh("find web1 web2 -type f -exec cat {} + > /dev/null", check=False))


def test_listings(fleet):
    for command in ("ls -lR", "ls -laR", "du -a", "stat */*"):
        assert "web1" in fleet.sh(command).stdout


def test_sizes_and_sums(fleet):
    want = finite(fleet.vm("web1"))
    for name, text in want.items():
        path = f"web1/{name}"
        assert fleet.sh(f"wc -c < {path}").stdout.strip() == str(len(text))
        assert (fleet.sh(f"test -s {path}", check=False).returncode == 0) == bool(text)


def test_common_readers(fleet):
    assert fleet.sh("head -n1 web1/state; tail -n1 web1/state; sort web1/state; sed q web1/state; "
                    "awk 1 web1/state; read x < web1/state; echo $x; dd if=web1/state status=none; "
                    "diff web1/state web1/state").stdout == "running\n" * 7


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.parametrize("tool", ["rm -r", "rm -rf"])
def test_rm_does_no_harm(fleet, state, tool):
    name = {"running": "web1", "stopped": "web2"}[state]
    vm = fleet.vm(name)
    before, number = set(os.listdir(vm.dir)), vm.read("id")
    done = fleet.sh(f"{tool} {name} </dev/null", check=False)
    assert done.returncode != 0 and "not permitted" in done.stderr
    assert vm.state == state and vm.read("id") == number
    until(lambda: exists(vm / "spec.yaml"), "spec.yaml is back")  # away for the editors' sake
    assert vm.spec == SPEC
    assert set(os.listdir(vm.dir)) == before


def test_archive_brings_a_document_back(fleet, scratch):
    """A backup of the specs is tar; so is putting them back."""
    fleet.sh(f"tar -cf {scratch}/specs.tar */spec.yaml")
    fleet.vm("web2").write("spec.yaml", "backend: sim\ncpus: 9\n")
    fleet.sh(f"tar -xf {scratch}/specs.tar web2/spec.yaml")
    assert fleet.vm("web2").spec == SPEC


def test_globs_in_a_script(fleet):
    out = fleet.sh('for vm in */; do echo "$vm $(cat "$vm/state") $(cat "$vm/ip")"; done').stdout
    assert out == "web1/ running 192.0.2.7\nweb2/ stopped \n"


def test_df_and_statfs(fleet):
    fleet.sh("df . ; stat -f .")
