# SPDX-License-Identifier: Apache-2.0
"""exec/: what goes wrong, and what only real guests do. The rest is in test_conformance.py."""
import os
import re
import select
from errno import (E2BIG, EEXIST, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOMEM, ENXIO, EPERM, EPROTO,
                   ESRCH, ETIMEDOUT)
from pathlib import Path

import pytest

from lib.backends import on_libvirt, on_qemu, real
from lib.util import deadline, exists, fails, get, until, wait_blocked

# Names and limits


def test_needs_a_guest(vm):
    with fails(ESRCH):
        (vm / "exec/j").mkdir()
    vm.error("ESRCH", "start")


def test_names(vm):
    vm.do("start")
    for name, errno in ((".j", EINVAL), ("a b", EINVAL), ("x" * 64, ENAMETOOLONG)):
        with fails(errno):
            (vm / "exec" / name).mkdir()
    (vm / "exec/j").mkdir()
    with fails(EEXIST):
        (vm / "exec/j").mkdir()
    with fails(ENOENT):
        (vm / "exec/k").rmdir()
    vm.fs.sh("mktemp -d web1/exec/XXXX; rm -r web1/exec/j", check=False)
    assert len(os.listdir(vm / "exec")) == 2 and set(os.listdir(vm / "exec/j")) == {
        "cmd", "status", "stdin", "stdout", "stderr"}
    with fails(EPERM):
        os.rename(vm / "exec/j", vm / "exec/k")


def test_bad_commands(vm):
    vm.do("start")
    with vm.job() as job:
        for text, errno in ((b"\n", EINVAL), (b"\xff", EINVAL), (b"a\0b", EINVAL),
                            (b"x" * 40000, E2BIG)):
            with fails(errno):
                job.write("cmd", text)
            vm.error()
        assert job.status == "new" and get(job / "cmd") == b""
        for text in (b"signal\n", b"signal 0\n", b"signal 65\n", b"signal 9 9\n", b"kill\n"):
            with fails(EINVAL):
                job.write("status", text)
        with fails(ESRCH):
            job.write("status", "signal 9\n")


def test_removed_while_open(vm):
    vm.do("start")
    with vm.job("echo hello") as job:
        assert job.out() == b"hello\n"
        fds = [os.open(job / name, os.O_RDONLY) for name in ("status", "stdout")]
    for fd in fds:
        assert os.read(fd, 100) == b""
        os.close(fd)
    assert not exists(job.dir)


def test_same_name_again(vm):
    vm.do("start")
    for text in ("one", "two"):
        (vm / "exec/j").mkdir()
        vm.write("exec/j/cmd", f"echo {text}\n")
        assert vm.read("exec/j/stdout") == text + "\n"
        (vm / "exec/j").rmdir()


def test_events(vm):
    events = vm.events()
    vm.do("start")
    with vm.job("exit 3") as job:
        job.out()
    events.expect(rf" web1 exec {job.name} new$")
    events.expect(rf" web1 exec {job.name} running$")
    events.expect(rf" web1 exec {job.name} exit 3$")


def test_poll(vm):
    vm.do("start")
    with vm.job("cat") as job:
        out, status = (os.open(job / name, os.O_RDONLY | os.O_NONBLOCK)
                       for name in ("stdout", "status"))
        os.read(status, 100)
        poll = select.poll()
        poll.register(out, select.POLLIN)
        poll.register(status, select.POLLPRI)
        assert poll.poll(0) == []
        with pytest.raises(BlockingIOError):
            os.read(out, 100)
        stdin = os.open(job / "stdin", os.O_WRONLY)
        os.write(stdin, b"hello")
        assert poll.poll(10000)[0] == (out, select.POLLIN)
        assert os.read(out, 100) == b"hello"
        os.close(stdin)
        until(lambda: {fd for fd, _ in poll.poll(10000)} == {out, status}, "both are told")
        assert os.read(out, 100) == b""
        os.close(out)
        os.close(status)


# Guests and agents that fail


def test_refused_and_tried_again(vm):
    vm.do("start")
    with vm.job() as job:
        vm.sim("fail exec ENOMEM")
        with fails(ENOMEM):
            job.run("echo hello")
        vm.error("ENOMEM")
        assert job.status == "new"
        job.run("echo hello")
        assert job.out() == b"hello\n" and vm.read("error") == ""


def test_slow_agent(vm):
    vm.do("start")
    vm.sim("slow exec 1500")
    with vm.job("echo hello") as job:  # waited for in close(2)
        assert job.out() == b"hello\n"


@pytest.mark.daemon("-o", "verb_timeout=1")
def test_agent_that_does_not_answer(vm):
    vm.do("start")
    vm.sim("hang exec")
    with vm.job() as job:
        with fails(ETIMEDOUT):
            job.run("echo hello")
        assert job.status == "new"


def test_agent_goes(vm):
    vm.do("start")
    job = vm.job("sleep 600")
    out = vm.follow(f"exec/{job.name}/stdout")
    vm.sim("agent down")
    assert out.finish() == 0 and job.status == "lost agent"
    job.dir.rmdir()
    with vm.job() as job, fails(ENXIO):
        job.run("echo hello")
    vm.error("ENXIO", "agent")


def test_restart_says_what_is_lost(fs, vm):
    """The commands of a simulated guest end with the daemon."""
    vm.do("start")
    done, running, new = vm.job("exit 3"), vm.job("sleep 600"), vm.job()
    assert done.out() == b""
    fs.stop()
    fs.restart()
    assert [j.status for j in (done, running, new)] == ["exit 3", "lost restart", "new"]
    assert running.out() == b""
    new.run("echo hello")
    assert new.out() == b"hello\n"
    (vm / "exec/another").mkdir()


def test_numbers_are_not_used_again(fs, vm):
    """What a job left in the VMM when the daemon was killed must not be in the way of the next."""
    vm.do("start")
    with vm.job() as job:
        number = os.stat(job.dir).st_ino
    fs.kill9()
    fs.restart()
    with vm.job() as job:
        assert os.stat(job.dir).st_ino != number


def test_writer_waits_for_the_command(vm):
    """As with a pipe; and it can be interrupted."""
    vm.do("start")
    with vm.job("sleep 600") as job:
        writer = vm.fs.spawn("bash", "-c", f"head -c 1000000 /dev/zero > {job / 'stdin'}")
        wait_blocked(writer.proc.pid)
        assert writer.interrupt() != 0
        job.write("status", "signal 9\n")
        job.out()


# Real guests


qemu_only = pytest.mark.parametrize("backend", [on_qemu], indirect=True)
libvirt_only = pytest.mark.parametrize("backend", [on_libvirt], indirect=True)


@pytest.fixture
def guest_vm(backend):
    vm = backend.vm()
    backend.up(vm)
    vm.wait("agent", 60)
    return vm


def rss(pid):
    """KiB"""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


@real
def test_large_output(guest_vm, fs, backend):
    """Much of it, at first with nobody reading: nobody keeps it, and nothing of it is lost."""
    vm, mib = guest_vm, {"qemu": 100, "libvirt": 3}[backend.name]
    vmm = backend.vmm(vm)
    little = "head -c 1000000 /dev/urandom >/tmp/r; sha256sum </tmp/r >&2; cat /tmp/r"
    with vm.job(little) as job:  # what QEMU itself needs for such
        job.out()
    before = rss(fs.pid) + rss(vmm)
    with vm.job(f"head -c {mib << 20} /dev/zero") as job:
        with vm.job(little) as other:
            data = other.out()
            ours = vm.fs.sh(f"sha256sum < {other.file(data)}").stdout
            assert other.err().decode() == ours and other.status == "exit 0"
        assert job.status == "running"
        assert rss(fs.pid) + rss(vmm) < before + (64 << 10)
        vm.fs.sh(f"cmp {job / 'stdout'} <(head -c {mib}M /dev/zero)", timeout=120)
        assert job.status == "exit 0"


@real
def test_survives_the_daemon(guest_vm, fs):
    """What was printed, what is running, and what waits for input."""
    done, running = guest_vm.job("seq 1 5000; exit 4"), guest_vm.job("read a; echo $a; cat; exit 7")
    until(lambda: done.status == "exit 4", "it ends without a reader")
    fs.kill9()
    fs.restart()
    assert done.status == "exit 4" and running.status == "running"
    assert done.out() == b"".join(b"%d\n" % n for n in range(1, 5001))
    running.write("stdin", "one\ntwo\n")
    assert running.out() == b"one\ntwo\n" and running.status == "exit 7"
    for job in (done, running):
        job.dir.rmdir()


@real
def test_readers_and_writers_over_a_crash(guest_vm, fs):
    """A pipeline through a command in the guest does not notice ten deaths of the daemon."""
    with guest_vm.job("cat; exit 5") as job:
        reader = fs.spawn("bash", "-c", f"cat {job / 'stdout'}; cat {job / 'status'}")
        wait_blocked(reader.proc.pid)
        pipe = os.open(job / "stdin", os.O_WRONLY)
        for n in range(1, 11):
            os.write(pipe, f"line {n}\n".encode())
            if n % 2:
                fs.crash()
            reader.expect(f"^line {n}$")
            if n % 2 == 0:
                fs.crash()
        os.close(pipe)
        assert reader.finish() == 0
        assert reader.text == "".join(f"line {n}\n" for n in range(1, 11)) + "exit 5\n"


@real
def test_leaves_nothing(guest_vm, fs):
    before = fs.stored()
    for _ in range(3):
        with guest_vm.job("echo hello") as job:
            assert job.out() == b"hello\n"
    assert fs.stored() == before


@qemu_only
def test_port_is_taken_away(guest_vm, fs):
    """The owner can do that in the monitor: its stream is at its end, and nothing turns in circles."""
    vm = guest_vm
    with vm.job("echo hello; exec sleep 1000") as job:
        with open(job / "stdout", "rb", buffering=0) as out, open(vm / "monitor", "r+b", buffering=0) as m:
            assert out.read(6) == b"hello\n"
            m.write(b"device_del exec-1-out\n")
            assert m.read(100) == b""
            with deadline():
                assert out.read(100) == b""
        assert job.status == "running" and job.out() == b""
        job.write("status", "signal 9")
        until(lambda: job.status == "signal 9", "it is ended")


@real
def test_no_agent(backend):
    vm = backend.vm(spec=backend.spec("vmfs.noagent"))
    vm.do("start")
    with vm.job() as job, fails(ENXIO):
        job.run("echo hello")
    vm.error("ENXIO", "qemu-guest-agent")


# As long as nobody is connected, the port is at its end.
LIAR = """P=; for p in /sys/class/virtio-ports/*; do
grep -q guest_agent $p/name && P=/dev/${p##*/}; done; exec 3<>$P; while :; do
read -r l <&3 || { sleep 0.1; continue; }; case $l in *sync*) id=${l##*:}; printf '\\377{"return": %s}\\n' "${id%%\\}*}" >&3;;
*guest-file*) echo '{"error": {"class": "GenericError", "desc": "none"}}' >&3;;
*guest-exec-status*) echo 'STATUS' >&3;; *guest-exec*) echo 'EXEC' >&3;; esac; done
"""


COMPLAINT = '{"return": {"exited": true, "err-data": "bm8gc2hlbGw="}}'
NONSENSE = '{"return": {"exited": true, "exitcode": 1e99}}'


@pytest.mark.parametrize("backend,answer,status,errno", [
    (*on_qemu.values, '{"return": {"pid": -5}}', "", EPROTO),
    (*on_qemu.values, '{"return": {"pid": "1"}}', "", EPROTO),
    (*on_qemu.values, '{"return": [[[[[[', "", ETIMEDOUT),
    (*on_qemu.values, '{"error": {"class": "GenericError", "desc": "no"}}', "", EIO),
    (*on_qemu.values, '{"return": {"pid": 99}}', COMPLAINT, EIO),
    (*on_qemu.values, '{"return": {"pid": 99}}', NONSENSE, None),
], indirect=["backend"])
@pytest.mark.qemu
def test_agent_that_lies(backend, answer, status, errno):
    vm = backend.vm(spec=backend.spec("vmfs.noagent"))
    backend.up(vm)
    liar = LIAR.replace("STATUS", status).replace("EXEC", answer).replace("\n", " ")
    vm.write("console", liar + "\n", 0)
    vm.wait("agent")
    with vm.job() as job:
        if errno:
            with fails(errno):
                job.run("echo hello")
            vm.error()
            assert job.status == "new"
        else:
            job.run("echo hello")
            assert job.out() == b"" and job.status == "lost agent"
    assert vm.state == "running"


# What it answers is in files, and without one it does not.
FREE_LIAR = """mkdir /a; (P=; for p in /sys/class/virtio-ports/*; do
grep -q guest_agent $p/name && P=/dev/${p##*/}; done; exec 3<>$P; while :; do
read -r l <&3 || { sleep 0.1; continue; }; case $l in
*sync*) id=${l##*:}; printf '{"return": %s}\\n' "${id%%\\}*}" >&3;;
*) c=${l#*execute*:*\\"}; c=/a/${c%%\\"*}; test -e $c && cat $c >&3;; esac; done) & :"""


@libvirt_only
def test_agent_that_says_anything(backend):
    """Whatever it is: what is asked of the guest ends, with an errno and words that are true."""
    vm = backend.vm(spec=backend.spec("vmfs.noagent"))
    backend.up(vm)

    def answers(command, how):
        backend._shell(vm, f"{{ {how}; }} >/a/x && mv /a/x /a/{command}", "^DONE")

    def answer(command, text):
        answers(command, f"echo '{{\"return\": {text}}}'")

    def refused(errno, *words):
        with vm.job() as job:
            with fails(errno):
                job.run("echo hello")
            vm.error(None, *words)
            assert job.status == "new" and len(vm.read("error")) < 5000

    backend._shell(vm, FREE_LIAR.replace("\n", " "), "^DONE")
    vm.wait("agent")
    # By now it has been asked that, and has said nothing.
    mac = re.search("<mac address='(.*)'", vm.read("domain.xml"))[1]
    answer("guest-network-get-interfaces", f"""[7, {{"hardware-address": 7}}, {{"hardware-address":
"{mac.upper()}", "ip-addresses": [{{"ip-address": 9}}, [], {{"ip-address": "here"}},
{{"ip-address": "10.9.8.7"}}], "statistics": {{"rx-bytes": "much", "tx-bytes": 77, "tx-packets": -1}}}}]"""
           .replace("\n", " "))
    assert get(vm / "wait/ip", timeout=60) == b"10.9.8.7\n"
    net = [line for line in vm.read("stats").splitlines() if line.startswith("net.")]
    assert net == ["net.eth0.tx_bytes 77"]
    complaint = """echo '{"error": {"class": "GenericError", "desc": "no such luck"}}'"""
    answers("guest-file-open", complaint)
    for text in ("{}", '{"pid": -5}', '"x"'):
        answer("guest-exec", text)
        refused(EPROTO, "process id")
    answers("guest-exec", complaint)
    refused(EIO, "no such luck")
    answers("guest-exec", """echo '{"return": "'$(printf %04300000d 0)'"}'""")
    refused(EPROTO, "agent")
    answer("guest-exec", '{"pid": 99}')
    answers("guest-exec-status", """echo '{"return": {"exited": true, "err-data": "'$(printf %020000d 0)'"}}'""")
    refused(EIO, "the guest cannot run it")
    # It begins, and then its files are nothing that it could have written.
    answer("guest-exec-status", '{"exited": false}')
    answer("guest-file-write", "{}")
    answer("guest-file-close", "{}")
    answer("guest-file-open", "1000")
    answer("guest-file-read", '{"buf-b64": ""}')
    with vm.job() as job:
        job.run("echo hello")  # has looked at it once
        for part in ("[]", '{"buf-b64": "MAp4"}', '{"buf-b64": "MQpoZWxsbw=="}'):
            answer("guest-file-read", part)
        with open(job / "stdout", "rb", buffering=0) as out, deadline():
            assert out.read(100) == b"hello"
            answers("guest-exec-status", complaint)
            assert out.read(100) == b""
        assert job.status == "lost agent"
    assert vm.state == "running"


# As agents are everywhere: with nothing but the agent


@libvirt_only
def test_agent_that_stands_still(guest_vm):
    """It is told when a command is to begin; what runs goes on when it answers again."""
    vm = guest_vm
    with vm.job("cat; exit 3") as job:
        vm.write("console", "killall -STOP qemu-ga; echo sto''pped\n", 0)
        vm.follow("console").expect("^stopped")
        with vm.job() as other, fails(ETIMEDOUT):
            other.run("echo hello")
        assert job.status == "running" and vm.state == "running"
        vm.write("console", "killall -CONT qemu-ga\n", 0)
        job.write("stdin", "hello\n")
        assert job.out() == b"hello\n" and job.status == "exit 3"


@libvirt_only
def test_guest_that_has_no_room(guest_vm):
    """The guest's own words say why a command cannot begin."""
    vm = guest_vm
    vm.write("console", "mount -t tmpfs -o ro none /run; echo read''-only\n", 0)
    vm.follow("console").expect("^read-only")
    with vm.job() as job:
        with fails(EIO):
            job.run("echo hello")
        vm.error("EIO", "Read-only file system")
        assert job.status == "new"
        vm.write("console", "umount /run; echo writ''able\n", 0)
        vm.follow("console").expect("^writable")
        job.run("echo hello")
        assert job.out() == b"hello\n" and vm.read("error") == ""


@libvirt_only
def test_libvirtd_is_killed(guest_vm, backend):
    vm = guest_vm
    with vm.job("cat; exit 3") as job:
        backend.libvirtd.kill()
        backend.libvirtd.answers()
        until(lambda: vm.state == "running", "it is seen again")
        job.write("stdin", "hello\n")
        assert job.out() == b"hello\n" and job.status == "exit 3"


@libvirt_only
def test_goes_with_a_command_of_its_own(guest_vm):
    """What a command leaves behind does not keep it from its end, and prints into the void."""
    with guest_vm.job("(while :; do echo more; sleep 0.1; done) & echo done") as job:
        assert b"done\n" in job.out() and job.status == "exit 0"


@libvirt_only
def test_leaves_nothing_in_the_guest(guest_vm):
    vm = guest_vm
    with vm.job("exit 1") as job:
        job.out()
    with vm.job("yes") as job:
        job.write("status", "signal 9\n")
        job.out()
    with vm.job("ls -d /run/vmfs-exec-*") as job:
        until(lambda: len(job.out().splitlines()) == 1, "only its own directory is there")
