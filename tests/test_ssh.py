# SPDX-License-Identifier: Apache-2.0
"""ssh_config and wait/ssh: a way to the guest's ssh server."""
import os
import re
import select
import socket
import stat
from contextlib import closing
from errno import EINVAL, ENOENT
from pathlib import Path

import pytest

from lib.backends import real
from lib.util import fails, get, until


@pytest.fixture
def guest_vm(backend):
    vm = backend.vm()
    backend.up(vm)
    return vm


def ssh(vm, command, check=True):
    return vm.fs.sh(f"ssh -F {vm.name}/ssh_config {vm.name} '{command}'", check=check).stdout


def option(vm, name):
    return re.search(rf'^  {name} "?([^"\n]*)"?$', vm.read("ssh_config"), re.M)[1]


@real
def test_tools(guest_vm, fs, scratch):
    """As in the README: the file simply works."""
    assert ssh(guest_vm, "echo $((40 + 2))") == "42\n"
    (scratch / "f").write_bytes(os.urandom(100_000))
    fs.sh(f"""set -e
        scp -q -F web1/ssh_config {scratch}/f web1:/tmp/f
        rsync -a -e 'ssh -F web1/ssh_config' web1:/tmp/f {scratch}/back
        cmp {scratch}/f {scratch}/back
        echo 'get /tmp/f {scratch}/again' | sftp -q -b - -F web1/ssh_config web1
        cmp {scratch}/f {scratch}/again
        ! ssh -F web1/ssh_config web1 'exit 3' || exit 1
        echo 'Include {fs.mnt}/*/ssh_config' > {scratch}/config
        ssh -F {scratch}/config web1 true""")
    assert guest_vm.read("error") == ""


@real
def test_wait(backend):
    """From before the start on, without an agent to tell."""
    vm = backend.vm(spec=backend.spec("vmfs.noagent"))
    waiting = vm.follow("wait/ssh")
    vm.do("start")
    waiting.expect(r"^127\.0\.0\.1:\d+$", 60)
    assert waiting.finish() == 0
    assert vm.wait("ssh") == vm.status["port.eth0.22"]


@real
def test_stopped_and_again(guest_vm):
    """One key for good; nothing to read while it does not run."""
    key = Path(option(guest_vm, "IdentityFile"))
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert ssh(guest_vm, "echo one") == "one\n"
    guest_vm.do("kill")
    assert guest_vm.read("ssh_config") == "" and guest_vm.read("error") == ""
    guest_vm.do("start")
    guest_vm.wait("agent", 60)
    guest_vm.wait("ssh", 60)
    assert ssh(guest_vm, "echo two") == "two\n" and key.read_bytes() == before


@real
def test_guest_with_new_keys(guest_vm, backend):
    """It lives in memory: after a reset its own key is another one, and ours is not there."""
    assert ssh(guest_vm, "echo one") == "one\n"
    watch = backend.watch(guest_vm)
    guest_vm.do("reset")
    backend.rebooted(watch)
    guest_vm.wait("agent", 60)
    guest_vm.wait("ssh", 60)
    assert ssh(guest_vm, "echo two") == "two\n"


@real
def test_key_comes_with_the_seed(backend):
    """Where there is no agent to take it."""
    vm = backend.vm(spec=backend.spec("vmfs.noagent", extra="cloud_init: {}\n"))
    vm.do("start")
    vm.wait("ssh", 60)
    assert ssh(vm, "echo hello") == "hello\n"


@real
def test_own_forward(backend):
    """The spec's own is used, and no other made."""
    vm = backend.vm(spec=backend.spec(nic="{network: user, ports: [\"127.0.0.1:0:22\"]}"))
    vm.do("start")
    before = vm.status["port.eth0.22"]
    assert f"127.0.0.1:{option(vm, 'Port')}" == before == vm.status["port.eth0.22"]


@real
def test_after_a_restart(guest_vm, fs):
    assert ssh(guest_vm, "echo one") == "one\n"
    port = option(guest_vm, "Port")
    fs.kill9()
    fs.restart()
    assert option(guest_vm, "Port") == port and ssh(guest_vm, "echo two") == "two\n"


@real
def test_damaged_key_is_made_again(guest_vm):
    key = Path(option(guest_vm, "IdentityFile"))
    key.with_suffix(".pub").write_bytes(b"ssh-ed25519 \x1b[2J\n")
    guest_vm.do("kill")
    guest_vm.do("start")
    guest_vm.wait("agent", 60)
    guest_vm.wait("ssh", 60)
    assert ssh(guest_vm, "echo hello") == "hello\n"
    assert b"\x1b" not in key.with_suffix(".pub").read_bytes()


@real
def test_no_nic(backend):
    vm = backend.vm(spec=re.sub(r"nics:\n.*\n", "nics: {}\n", backend.text))
    vm.do("start")
    assert vm.read("ssh_config") == "" and vm.read("error") == ""


# By way of another host, which libvirt reaches by ssh: with an `ssh` that stays on this one

OTHER_HOST = """#!/bin/bash
echo "$@" >> {log}
for word; do
    if [[ $word == -W ]]; then
        exec head -c 8 < "/dev/tcp/${{4%:*}}/${{4##*:}}"
    fi
done
exec socat - UNIX-CONNECT:{socket}
"""


@pytest.mark.qemu
@pytest.mark.libvirt
def test_another_host(box, domains, guest, scratch):
    ssh_program = scratch / "bin/ssh"
    ssh_program.parent.mkdir()
    ssh_program.write_text(OTHER_HOST.format(log=scratch / "log",
                                             socket=domains.run / "libvirt-sock"))
    ssh_program.chmod(0o755)
    box.env["PATH"] = f"{ssh_program.parent}:{os.environ['PATH']}"
    fs = box.start("-ohost=local=", "-ohost=far=qemu+ssh://me@far.test:2222/system"
                                    "?proxy=netcat&socket=/there")
    domains.define("web1", guest=guest)
    until(lambda: "web1" in fs.names(), "it is shown")
    vm = fs.vm("web1")
    vm.do("start")
    vm.wait("agent", 60)
    assert option(vm, "ProxyJump") == "me@far.test:2222"
    assert (option(vm, "HostName"), option(vm, "Port")) == tuple(
        vm.status["port.eth0.22"].split(":"))
    assert vm.wait("ssh", 60) == vm.status["port.eth0.22"]
    assert "-- me@far.test:2222" in (scratch / "log").read_text()


# What needs no guest: a simulated one, and a server of our own


@pytest.fixture
def server():
    """Not listening yet."""
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        yield s


@pytest.fixture
def sim_vm(fs, server):
    port = server.getsockname()[1]
    return fs.vm("web1", f"backend: sim\nsim: {{ssh: '127.0.0.1:{port}'}}\n")


def accept(server, timeout=10):
    assert select.select([server], [], [], timeout)[0], "nobody has tried"
    return server.accept()[0]


def test_wait_tries_until_it_answers(sim_vm, server):
    sim_vm.do("start")
    waiting = sim_vm.follow("wait/ssh")
    server.listen()
    for words in (b"", b"HTTP/1.1 400 no\r\n"):
        with accept(server) as peer:
            peer.sendall(words)
    with accept(server) as peer:
        peer.sendall(b"SSH-2.0-test\r\n")
        waiting.expect("127.0.0.1:%d\n" % server.getsockname()[1])
    assert waiting.finish() == 0


def test_nobody_waits_nobody_tries(sim_vm, server):
    server.listen()
    sim_vm.do("start")
    sim_vm.read("ssh_config")
    assert not select.select([server], [], [], 0.5)[0]
    waiting = sim_vm.follow("wait/ssh")
    accept(server).close()
    waiting.interrupt()

    def is_quiet():
        if select.select([server], [], [], 3)[0]:
            server.accept()[0].close()
            return False
        return True
    until(is_quiet, "it gives up")


def test_wait_ends_with_the_vm(sim_vm):
    waiting = sim_vm.follow("wait/ssh")
    sim_vm.dir.rmdir()
    assert waiting.finish() != 0
    with fails(ENOENT):
        get(sim_vm / "wait/ssh")


def test_user(sim_vm):
    sim_vm.do("start")
    assert option(sim_vm, "User") == "root"
    text = sim_vm.spec
    sim_vm.write("spec.yaml", text + "ssh: {user: debian}\n")
    until(lambda: option(sim_vm, "User") == "debian", "the new one is shown")
    assert sim_vm.read("pending") == ""
    for user in ("''", "'-oProxyCommand'", "\"a\\n  ProxyCommand touch /tmp/x\"", "a b", "x" * 33):
        with fails(EINVAL):
            sim_vm.write("spec.yaml", f"{text}ssh: {{user: {user}}}\n")
    assert option(sim_vm, "User") == "debian"


def test_renamed(sim_vm):
    sim_vm.do("start")
    assert sim_vm.read("ssh_config").startswith("Host web1\n")
    sim_vm.do("kill")
    os.rename(sim_vm.dir, sim_vm.fs.mnt / "web2")
    sim_vm.name = "web2"
    sim_vm.do("start")
    assert sim_vm.read("ssh_config").startswith("Host web2\n")
