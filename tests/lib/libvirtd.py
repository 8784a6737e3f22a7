# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of our own: its sockets, pids, configuration and domains are in directories of ours."""
import os
import shutil
import signal
import subprocess
import tempfile
import uuid as uuids
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from lib.golden import Saved
from lib.util import alive, until

BENCH = Path(__file__).resolve().parents[1] / "bench"
PLACES = [Path(p) for p in ("/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt",
                            "/run/libvirt", "/etc/libvirt")]

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>{uuid}
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>{devices}</devices>
</domain>
"""
BOOT = ("<kernel>{kernel}</kernel><initrd>{initrd}</initrd>"
        "<cmdline>console=ttyS0 quiet</cmdline>")
DEVICES = """
    <serial type='pty'><target port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <interface type='user'><model type='virtio'/></interface>
    <memballoon model='none'/>
  """


def missing():
    """What a private libvirtd lacks here, or None."""
    if os.geteuid():
        return "a private libvirtd needs root"
    for path in ("/usr/sbin/libvirtd", "/usr/bin/virsh"):
        if not Path(path).exists():
            return f"{path} is not installed"
    return None


@contextmanager
def places():
    """What directories of our own are mounted on: there for all libvirtds that tests start."""
    made = [path for path in PLACES if not path.is_dir()] if not missing() else []
    for path in made:
        path.mkdir()
    yield
    for path in made:
        path.rmdir()


@contextmanager
def frozen(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Libvirtd:
    """With an address, it is a host of its own: in namespaces for its network and its name. With a
    user, its QEMUs run as that one."""
    def __init__(self, address=None, user=None):
        self.address = address
        self.dir = Path(tempfile.mkdtemp(prefix="vmfs-libvirt-", dir="/tmp"))
        self.run = self.dir / "run"
        self.run.mkdir()
        self.reaper = self.dir / "reaper"
        subprocess.run(["cc", "-D_GNU_SOURCE", "-o", self.reaper, BENCH / "c/reaper.c"],
                       check=True)
        if user:
            self.dir.chmod(0o711)
            (self.dir / "qemu.conf").write_text(f'user = "{user}"\ngroup = "{user}"\n')
        if address:
            (self.dir / "qemu.conf").write_text(f'migration_host = "{address}"\n')
            (self.dir / "libvirtd.conf").write_text(f'host_uuid = "{uuids.uuid4()}"\n')
        self.proc, self.golden = None, Saved(self)
        self.start()

    @property
    def uri(self):
        return f"qemu:///system?socket={quote(str(self.run / 'libvirt-sock'))}"

    @property
    def pid(self):
        return int((self.dir / "pid").read_text())

    def start(self):
        with open(self.dir / "out", "ab") as out:
            self.proc = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private",
                 *(["--net", "--uts"] if self.address else []), BENCH / "private-libvirtd",
                 self.dir, self.run, self.reaper, "again"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        until(lambda: self._answers() or self.proc.poll() is not None, "libvirtd answers", 60)
        assert self.proc.poll() is None, (self.dir / "out").read_text()

    def _answers(self):
        """Its socket is there before it is ready, so a client that waits is the answer."""
        return (self.run / "libvirt-sock").exists() and not self.virsh("uri", check=False).returncode

    def virsh(self, *words, check=True, text=None):
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *map(str, words)], check=False,
                              capture_output=True, text=True, input=text or "", timeout=60)
        assert not check or done.returncode == 0, f"virsh {words}: {done.stderr}"
        return done

    def define(self, name, uuid=None, guest=None, memory=256, devices=""):
        """A domain; with a guest, one that boots it."""
        boot = BOOT.format(kernel=guest.kernel, initrd=guest.initrd) if guest else ""
        path = self.dir / "domain.xml"
        path.write_text(DOMAIN.format(
            name=name, memory=memory, boot=boot, uuid=f"<uuid>{uuid}</uuid>" if uuid else "",
            devices=(DEVICES if guest else "") + devices))
        self.virsh("define", path)

    def domains(self):
        return list(filter(None, self.virsh("list", "--all", "--name").stdout.splitlines()))

    def vmm(self, name):
        """The process id of a domain's QEMU."""
        path = self.run / "qemu" / f"{name}.pid"
        until(lambda: path.exists() and path.read_text(), f"the pid of {name}")
        return int(path.read_text())

    def at_rest(self, name):
        """Wait until it does nothing to a domain."""
        until(lambda: "None" in (job := self.virsh("domjobinfo", name, check=False)).stdout
              or "not running" in job.stderr, "libvirtd is at rest")

    def clear(self):
        """Undefine all domains."""
        for name in self.domains():
            self.virsh("destroy", name, check=False)
            self.virsh("undefine", name, "--managed-save", "--snapshots-metadata", "--nvram",
                       check=False)

    def kill(self):
        """kill -9. Another one comes; what the first started goes on."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "libvirtd is dead")

    def answers(self):
        until(self._answers, "libvirtd answers", 60)

    def pause(self):
        """A context in which it is frozen."""
        return frozen(self.pid)

    def within(self, *words):
        """Run a command in its network."""
        subprocess.run(["nsenter", "--target", str(self.proc.pid), "--net", "--uts", *words],
                       check=True)

    def stop(self):
        if self.proc:
            self.proc.terminate()
            self.proc.wait(60)
        self.proc = None

    def close(self):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)


@contextmanager
def two_hosts():
    """Two of them, with a network between them."""
    with ExitStack() as stack:
        hosts = []
        for i in (1, 2):
            hosts.append(Libvirtd(f"192.0.2.{i}"))
            stack.callback(hosts[-1].close)
        subprocess.run(["ip", "link", "add", "vmfs", "netns", str(hosts[0].proc.pid), "type", "veth",
                        "peer", "name", "vmfs", "netns", str(hosts[1].proc.pid)], check=True)
        for i, host in enumerate(hosts, 1):
            host.within("hostname", f"node{i}")
            host.within("ip", "link", "set", "lo", "up")
            host.within("ip", "address", "add", f"{host.address}/24", "dev", "vmfs")
            host.within("ip", "link", "set", "vmfs", "up")
        yield hosts
