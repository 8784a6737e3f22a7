# SPDX-License-Identifier: Apache-2.0
"""spec.yaml: every way in which people write files, what is refused, and what stays then."""
import os
import pty
import re
import select
import shutil
import threading
import time
from contextlib import suppress
from errno import E2BIG, EBADMSG, EFBIG, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP

import pytest

from lib.util import PATIENCE, exists, fails, get, put, until

GOOD = "# my machine\nbackend: sim\ncpus: 2   # two\n\nmemory: 512MiB\n"
NEW = GOOD.replace("cpus: 2", "cpus: 4")
BAD = GOOD.replace("cpus: 2", "cpus: zero")
KEEP = 256 << 10

PYTHON_ATOMIC = """/usr/bin/python3 - "$T/new" <<'END'
import os, shutil, sys, tempfile
fd, tmp = tempfile.mkstemp(dir=".")
try:
    with open(fd, "w") as f:
        f.write(open(sys.argv[1]).read())
        os.fsync(fd)
    os.chmod(tmp, 0o644)
    os.replace(tmp, "spec.yaml")
except OSError:
    os.unlink(tmp)
    raise
d = os.open(".", os.O_DIRECTORY)
os.fsync(d)
END"""
VIM = ("vim -es -u NONE -i NONE -N -c 'set backupskip= %s' "
       "-c '%%s/cpus: 2/cpus: '$N'/' -c wq spec.yaml")

# Shell scripts run in the VM's directory: $T/new is the new text, $N the new value of cpus.
EDITORS = {
    "sed": "sed -i s/cpus:.2/cpus:\\ $N/ spec.yaml",
    "sed-backup": "sed -i.bak s/cpus:.2/cpus:\\ $N/ spec.yaml",
    "perl": "perl -pi -e \"s/cpus: 2/cpus: $N/\" spec.yaml",
    "perl-backup": "perl -pi.bak -e \"s/cpus: 2/cpus: $N/\" spec.yaml",
    "vim-copy": VIM % "backupcopy=yes",
    "vim-rename": VIM % "backupcopy=no",
    "vim-backup": VIM % "backup backupcopy=auto",
    "ex": "printf '%s\\n' \"%s/cpus: 2/cpus: $N/\" wq | ex -s -u NONE -i NONE spec.yaml",
    "ed": "printf '%s\\n' \",s/cpus: 2/cpus: $N/\" w q | ed -s spec.yaml",
    "patch": "! diff -u spec.yaml $T/new > $T/p; patch -s spec.yaml $T/p",
    "mv-inside": "cat $T/new > spec.new; mv spec.new spec.yaml",
    "mv-from-elsewhere": "cp $T/new $T/x; mv $T/x spec.yaml",
    "cp": "cp $T/new spec.yaml",
    "cp-new-inode": "cp --remove-destination $T/new spec.yaml",
    "install": "install -m 644 $T/new spec.yaml",
    "cat": "cat $T/new > spec.yaml",
    "tee": "tee spec.yaml < $T/new > $T/out",
    "dd-bytes": "dd if=$T/new of=spec.yaml bs=1 status=none",
    "rsync": "rsync -aI $T/new spec.yaml",
    "rsync-inplace": "rsync -I --inplace $T/new spec.yaml",
    "git-checkout": "cp $T/new $T/spec.yaml; git init -q $T; git -C $T add spec.yaml; "
                    "git --git-dir=$T/.git --work-tree=. checkout -f -q -- spec.yaml",
    "python": "/usr/bin/python3 -c \"open('spec.yaml','w').write(open('$T/new').read())\"",
    "python-atomic": PYTHON_ATOMIC,
    "bash-lines": 'printf "%s" "$(cat $T/new; echo .)" | { mapfile -t L; unset "L[-1]"; '
                  'printf "%s\\n" "${L[@]}" > spec.yaml; }',
    "redirections": "{ head -n 2 $T/new; tail -n +3 $T/new; } > spec.yaml",
}


def edit(vm, how, text, scratch, value, check=True):
    tool = how.split("-")[0]
    if tool in ("perl", "vim", "ex", "ed", "patch", "rsync", "git") and not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    (scratch / "new").write_text(text)
    env = {"T": str(scratch), "N": value, "HOME": str(scratch)}
    return vm.fs.sh("set -e -o pipefail\n" + EDITORS[how], cwd=vm.dir, env=env, check=check)


@pytest.mark.parametrize("how", EDITORS)
def test_edit(fs, scratch, how):
    vm = fs.vm("web1", GOOD).to("running")
    edit(vm, how, NEW, scratch, "4")
    assert vm.spec == NEW
    assert vm.read("pending").split() == ["cpus"]  # it is in force, and the VM runs on without it
    assert vm.read("error") == ""
    assert not exists(vm / "spec.yaml.rej")
    assert vm.state == "running"
    vm.do("stop")
    assert vm.read("pending") == ""


# That python line ignores errors; each part of the redirection is a document when it closes.
@pytest.mark.parametrize("how", [e for e in EDITORS if e not in ("python", "redirections")])
def test_edit_refused(fs, scratch, how):
    vm = fs.vm("web1", GOOD)
    done = edit(vm, how, BAD, scratch, "zero", check=False)
    assert done.returncode != 0, "the tool did not notice"
    until(lambda: exists(vm / "spec.yaml"), "spec.yaml is back")
    assert vm.spec == GOOD
    if how.startswith("vim-"):
        return  # on a failure it puts the old text back, and that is a good document
    rej = vm.read("spec.yaml.rej")  # who writes bit by bit is stopped at the bad line
    assert "zero" in rej and BAD.startswith(rej)
    vm.error(None, "line 3", "cpus")
    refused_start(vm)


def refused_start(vm):
    """Who missed the error cannot start the wrong machine."""
    with pytest.raises(OSError):
        vm.do("start")
    assert vm.state == "stopped"
    vm.error(None, "spec.yaml.rej")


def test_nano(fs):
    """Typed at on a terminal, as there is no other way."""
    if not shutil.which("nano"):
        pytest.skip("nano is not installed")
    vm = fs.vm("web1", GOOD)
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(vm.dir)
        os.execvpe("nano", ["nano", "-I", "spec.yaml"], {**os.environ, "TERM": "xterm"})
    try:
        screen = b""

        def until_shown(word):
            nonlocal screen
            end = time.monotonic() + PATIENCE
            while word not in screen:
                assert select.select([fd], [], [], end - time.monotonic())[0], screen
                screen += os.read(fd, 4096)
            screen = b""

        until_shown(b"Exit")
        os.write(fd, b"# nano was here\r")
        until_shown(b"Modified")
        os.write(fd, b"\x0f")  # ^O
        until_shown(b"File Name to Write")
        os.write(fd, b"\r")
        until_shown(b"Wrote")
        os.write(fd, b"\x18")  # ^X
        with pytest.raises(OSError):  # the terminal closes
            while os.read(fd, 4096):
                pass
    finally:
        os.close(fd)
        os.waitpid(pid, 0)
    assert vm.spec == "# nano was here\n" + GOOD
    assert not [n for n in os.listdir(vm.dir) if n.endswith(".swp")]


def test_append(fs):
    vm = fs.vm("web1", GOOD)
    fs.sh("echo 'stop_timeout: 5s' >> web1/spec.yaml")
    assert vm.spec == GOOD + "stop_timeout: 5s\n"


def test_empty_means_defaults(fs):
    vm = fs.vm("web1", GOOD)
    fs.sh(": > web1/spec.yaml")
    until(lambda: vm.spec == "", "the empty document is in force")
    assert not exists(vm / "spec.yaml.rej")


def test_unlink_does_not_lose_it(fs):
    vm = fs.vm("web1", GOOD)
    os.unlink(vm / "spec.yaml")
    until(lambda: exists(vm / "spec.yaml"), "spec.yaml is back")
    assert vm.spec == GOOD
    os.rename(vm / "spec.yaml", vm / "spec.old")
    until(lambda: exists(vm / "spec.yaml"), "spec.yaml is back")
    assert vm.spec == GOOD == vm.read("spec.old")


# Documents

REFUSED = {  # text, words of the sentence
    "tab": ("backend: sim\n\tcpus: 2\n", ["line 2"]),
    "unknown-key": ("backend: sim\ncpsu: 2\n", ["line 2", "'cpsu'", "did you mean 'cpus'"]),
    "unknown-inner-key": ("disks:\n  root: {image: /x, sze: 1GiB}\n",
                          ["line 2", "disks.root", "'sze'", "did you mean 'size'"]),
    "duplicate-key": ("cpus: 2\ncpus: 2\n", ["line 2", "cpus"]),
    "duplicate-disk": ("disks:\n  a: {file: /x}\n  a: {file: /y}\n", ["line 3"]),
    "alias-bomb": ("a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\n", ["line 1"]),
    "anchor": ("cpus: &n 2\n", ["line 1"]),
    "merge-key": ("disks:\n  <<: {a: {file: /x}}\n", ["line 2"]),
    "tag": ("cpus: !!python/object:os.system 2\n", ["line 1"]),
    "deep": ("sim: " + "[" * 17 + "]" * 17 + "\n", ["line 1"]),
    "very-deep": ("[" * 50_000, []),
    "cpus-0": ("cpus: 0\n", ["line 1", "cpus"]),
    "cpus-negative": ("cpus: -1\n", ["line 1", "cpus"]),
    "cpus-word": ("cpus: many\n", ["line 1", "cpus"]),
    "cpus-huge": ("cpus: 99999999999999999999\n", ["line 1", "cpus"]),
    "cpus-list": ("cpus: [1]\n", ["line 1", "cpus"]),
    "cpus-null": ("cpus:\nmemory: 1GiB\n", ["line 1", "cpus"]),
    "memory-1T": ("memory: 1T\n", ["line 1", "memory"]),
    "memory-0": ("memory: 0MiB\n", ["line 1", "memory"]),
    "memory-unit": ("memory: 2 apples\n", ["line 1", "memory"]),
    "memory-overflow": ("memory: 18446744073709551617MiB\n", ["line 1", "memory"]),
    "stop-timeout": ("stop_timeout: soon\n", ["line 1", "stop_timeout"]),
    "accel": ("accel: warp\n", ["line 1", "accel"]),
    "port": ("nics:\n  eth0: {network: user, ports: [\"127.0.0.1:0:70000\"]}\n",
             ["line 2", "port"]),
    "disk-name": ("disks:\n  ../x: {file: /x}\n", ["line 2"]),
    "disk-of-nothing": ("disks:\n  root: {format: raw}\n", ["disks.root"]),
    "disk-of-both": ("disks:\n  root: {image: /etc/hosts, file: /etc/hosts}\n", ["disks.root"]),
    "unclosed": ("cpus: 2\nboot: {kernel: /x\n", ["line"]),
    "unclosed-quote": ("backend: \"sim\n", ["line"]),
    "list": ("- cpus\n- memory\n", ["line 1"]),
    "scalar": ("hello\n", ["line 1"]),
    "two-documents": ("---\ncpus: 1\n---\ncpus: 2\n", ["line 3"]),
    "not-utf8": (b"backend: s\xffim\n", []),
    "nul": (b"backend: sim\0\n", []),
    "binary": (bytes(range(256)) * 8, []),
    "elf": (b"\x7fELF\2\1\1" + bytes(500), []),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(fs, name):
    text, words = REFUSED[name]
    vm = fs.vm("web1", GOOD)
    with fails(EINVAL):
        put(vm / "spec.yaml", text)
    vm.error("EINVAL", *words)
    assert vm.spec == GOOD
    assert get(vm / "spec.yaml.rej") == (text.encode() if isinstance(text, str) else text)
    refused_start(vm)


def test_unknown_backend(fs):
    vm = fs.vm("web1", GOOD)
    with fails(EINVAL, EOPNOTSUPP):
        vm.write("spec.yaml", "cpus: 1\nbackend: xen\n")
    vm.error(None, "xen")
    assert vm.spec == GOOD


MISSING = {"image": "disks:\n  root: {image: /no/such.qcow2}\n",
           "file": "disks:\n  root: {file: /no/such.raw}\n",
           "kernel": "boot:\n  kernel: /no/such\n"}


@pytest.mark.parametrize("what", MISSING)
def test_missing_file(fs, what):
    vm = fs.vm("web1", GOOD)
    with fails(ENOENT):
        vm.write("spec.yaml", "backend: sim\n" + MISSING[what])
    vm.error("ENOENT", "/no/such", what, "line 3")
    assert vm.spec == GOOD


@pytest.mark.parametrize("indirect", [False, True], ids=["plain", "symlink"])
def test_path_under_the_mount(fs, scratch, indirect):
    """To look at it the daemon would wait for itself."""
    vm = fs.vm("web1", GOOD)
    path = vm / "console.log"
    if indirect:
        (scratch / "link").symlink_to(path)
        path = scratch / "link"
    with fails(EINVAL):
        vm.write("spec.yaml", f"backend: sim\ndisks:\n  root: {{file: {path}}}\n")
    vm.error("EINVAL", "disks.root")
    assert vm.spec == GOOD


def padded(size):
    """A good document of this many bytes."""
    comment = ("#" + "x" * 62 + "\n") * (size // 64 + 1)
    return GOOD + comment[:size - len(GOOD) - 1] + "\n"


def test_largest_document(fs, scratch):
    vm = fs.vm("web1", GOOD)
    (scratch / "new").write_text(padded(KEEP))
    for tool in ("cp", "rsync -I"):  # cp writes it in chunks
        fs.sh(f"{tool} {scratch}/new web1/spec.yaml")
        assert vm.spec == padded(KEEP)
        vm.write("spec.yaml", GOOD)


@pytest.mark.parametrize("size", [KEEP + 1, 1 << 20, 10 << 20])
def test_too_large(fs, scratch, size):
    vm = fs.vm("web1", GOOD)
    with fails(EFBIG, E2BIG):
        put(vm / "spec.yaml", padded(size))
    assert re.match(r"\S+ \S+ (EFBIG|E2BIG): ", vm.read("error"))
    assert vm.spec == GOOD
    (scratch / "new").write_text(padded(size))
    assert fs.sh(f"cp {scratch}/new web1/spec.yaml", check=False).returncode != 0
    assert vm.spec == GOOD and vm.state == "stopped"


def test_hopeless_fails_at_write(fs):
    """The shells' own echo does not look at close, so what can be known is said before."""
    vm = fs.vm("web1", GOOD)
    for shell in ("bash", "dash"):
        script = "printf 'backend: sim\\ncpsu: 2\\n' > web1/spec.yaml"
        done = fs.sh(script, shell=shell, check=False)
        assert done.returncode != 0, shell
        vm.error("EINVAL", "cpsu")
    fd = os.open(vm / "spec.yaml", os.O_WRONLY | os.O_TRUNC)
    with fails(EINVAL):
        os.write(fd, b"cpsu: 2\nmemory: 1GiB\n")
    with suppress(OSError):  # it may say it again
        os.close(fd)
    assert vm.spec == GOOD


def test_unfinished_fails_at_close(fs):
    vm = fs.vm("web1", GOOD)
    fd = os.open(vm / "spec.yaml", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"backend: sim\nboot: {kernel:\n")
    with fails(EINVAL):
        os.close(fd)
    assert vm.spec == GOOD


def test_refused_at_rename(fs):
    """With the errno for which mv has sensible words, and the temporary file stays."""
    vm = fs.vm("web1", GOOD)
    (vm / "tmp").write_text(BAD)
    with fails(EBADMSG):
        os.rename(vm / "tmp", vm / "spec.yaml")
    vm.error(None, "line 3", "cpus")
    assert (vm.spec, vm.read("tmp"), vm.read("spec.yaml.rej")) == (GOOD, BAD, BAD)


def test_half_written_is_not_in_force(fs):
    vm = fs.vm("web1", GOOD)
    with open(vm / "spec.yaml", "wb", buffering=0) as f:
        f.write(b"backend: sim\n")
        f.write(b"cpus: 7\n")
        vm.do("start")  # with the old one
        f.write(b"memory: 128MiB\n")
    assert vm.spec == "backend: sim\ncpus: 7\nmemory: 128MiB\n"
    assert set(vm.read("pending").split()) == {"cpus", "memory"}


# spec.yaml.rej

@pytest.fixture
def rejected(fs):
    vm = fs.vm("web1", GOOD)
    with fails(EINVAL):
        vm.write("spec.yaml", BAD)
    assert "spec.yaml.rej" in os.listdir(vm.dir)
    assert (vm / "spec.yaml.rej").stat().st_size == len(BAD)
    assert not (vm / "spec.yaml.rej").stat().st_mode & 0o222
    return vm


def test_rej_goes_by_rm(rejected):
    os.unlink(rejected / "spec.yaml.rej")
    assert "spec.yaml.rej" not in os.listdir(rejected.dir)
    rejected.do("start")
    assert rejected.spec == GOOD and rejected.read("error") == ""


def test_rej_goes_by_a_good_document(rejected):
    rejected.write("spec.yaml", NEW)
    assert not exists(rejected / "spec.yaml.rej")
    rejected.do("start")
    assert rejected.spec == NEW


def test_rej_can_be_mended(rejected):
    rejected.fs.sh("sed 's/zero/3/' spec.yaml.rej > fixed; mv fixed spec.yaml", cwd=rejected.dir)
    assert rejected.spec == GOOD.replace("cpus: 2", "cpus: 3")
    assert not exists(rejected / "spec.yaml.rej")


def test_rej_does_not_stop_a_running_vm(fs):
    vm = fs.vm("web1", GOOD).to("running")
    with fails(EINVAL):
        vm.write("spec.yaml", BAD)
    vm.do("pause")
    vm.do("stop")
    refused_start(vm)


# pending

def test_pending(fs):
    vm = fs.vm("web1", GOOD)
    vm.write("spec.yaml", NEW)
    assert vm.read("pending") == ""
    vm.do("start")
    assert vm.read("pending") == ""
    vm.write("spec.yaml", GOOD.replace("512MiB", "1GiB"))
    assert set(vm.read("pending").split()) == {"cpus", "memory"}
    vm.write("spec.yaml", NEW.replace("# two", "# a comment is no change"))
    assert vm.read("pending") == ""


# Several at once

def test_two_writers_last_close_wins(fs):
    vm = fs.vm("web1", GOOD)
    one = os.open(vm / "spec.yaml", os.O_WRONLY | os.O_TRUNC)
    two = os.open(vm / "spec.yaml", os.O_WRONLY | os.O_TRUNC)
    os.write(one, b"backend: sim\n")
    os.write(two, b"backend: sim\nmemory: 256MiB\n")
    os.close(two)
    assert vm.spec == "backend: sim\nmemory: 256MiB\n"
    os.write(one, b"cpus: 3\n")
    os.close(one)
    assert vm.spec == "backend: sim\ncpus: 3\n"


def test_writers_and_readers_never_mix(fs):
    vm = fs.vm("web1", GOOD)
    texts = [f"backend: sim\ncpus: {n}\n" + f"# {n}\n" * 2000 for n in range(1, 4)]
    vm.write("spec.yaml", texts[0])
    errors, seen, stop = [], set(), threading.Event()

    def write(text):
        try:
            for _ in range(50):
                put(vm / "spec.yaml", text)
        except OSError as e:
            errors.append(e)

    def read():
        while not stop.is_set():
            seen.add(get(vm / "spec.yaml").decode())

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=[t]) for t in texts]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not errors
    assert vm.spec in texts
    assert seen <= set(texts), [len(t) for t in seen]


# Scratch files are bounded

def test_scratch_files_are_few(vm):
    for n in range(16):
        (vm / f"scratch{n}").write_text("x")
    with fails(ENOSPC):
        (vm / "one-more").touch()
    vm.fs.sh("rm scratch*", cwd=vm.dir)
    (vm / "one-more").touch()


def test_scratch_files_are_small(vm):
    put(vm / "big", b"x" * (1 << 20), os.O_CREAT)
    with fails(EFBIG):
        put(vm / "big", b"x", os.O_APPEND)
    with fails(EFBIG):
        os.truncate(vm / "big", (1 << 20) + 1)
    assert (vm / "big").stat().st_size == 1 << 20


def test_refused_document_is_removed_while_open(vm):
    with fails(EINVAL):
        vm.write("spec.yaml", "no: such key\n")
    with open(vm / "spec.yaml.rej", "rb", buffering=0) as f:
        (vm / "spec.yaml.rej").unlink()
        assert os.fstat(f.fileno()).st_size == 0
        assert f.read() == b""
    # Fixture: the daemon did not complain.
