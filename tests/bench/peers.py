# SPDX-License-Identifier: Apache-2.0
"""Those that vmfs is compared with: an empty FUSE file system, tmpfs, QEMU itself, libvirt."""
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from measure import Missing, Watch

HERE = Path(__file__).resolve().parent
DOMAIN = """<domain type='qemu'{namespace}>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>{devices}</devices>{extra}
</domain>
"""
BOOT = "<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline>"
DEVICES = """
    <serial type='unix'><source mode='bind' path='{console}'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <interface type='user'><model type='virtio'/></interface>
    <memballoon model='none'/>
  """
COMMANDLINE = "\n  <qemu:commandline>{}</qemu:commandline>"
NAMESPACE = " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def until(cond, what, timeout=60):
    end = time.monotonic() + timeout
    while not (value := cond()):
        if time.monotonic() > end:
            raise Missing(f"not within {timeout} s: {what}")
        time.sleep(0.02)
    return value


def is_mount(path):
    return any(mount.split()[4] == str(path)
               for mount in Path("/proc/self/mountinfo").read_text().splitlines())


class Tmpfs:
    """As many directories with a file `state` as there are VMs."""

    def __init__(self, bench):
        self.dir = bench.directory("tmpfs", fast=True)

    def fill(self, names):
        for name in names:
            (self.dir / name).mkdir()
            (self.dir / name / "state").write_text("stopped\n")


class EmptyFuse:
    def __init__(self, bench, directories=0):
        self.dir = bench.directory("empty")
        self.proc = subprocess.Popen([bench.helper("empty"), str(directories), "-f", self.dir],
                                     stdin=subprocess.DEVNULL, start_new_session=True)
        bench.cleanup.callback(self.close)
        until(lambda: is_mount(self.dir) or self.proc.poll() is not None, "the empty mount")
        if self.proc.poll() is not None:
            raise Missing("the empty FUSE file system does not mount")

    @property
    def file(self):
        return self.dir / "state"

    def close(self):
        self.proc.terminate()
        self.proc.wait()


class BareMonitor:
    """A QEMU that does nothing but answer on its monitor."""

    def __init__(self, bench):
        self.socket = bench.directory("qmp", fast=True) / "qmp"
        self.proc = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "none", "-accel", "tcg", "-nodefaults", "-display",
             "none", "-S", "-qmp", f"unix:{self.socket},server=on,wait=off"],
            stdin=subprocess.DEVNULL, start_new_session=True)
        bench.cleanup.callback(self.close)
        until(self.socket.exists, "QEMU's monitor")

    def close(self):
        self.proc.kill()
        self.proc.wait()


class Libvirtd:
    """A private libvirtd (see private-libvirtd), its domains, its clients."""

    def __init__(self, bench):
        if os.geteuid():
            raise Missing("a private libvirtd needs root")
        if not Path("/usr/sbin/libvirtd").exists():
            raise Missing("libvirtd is not installed")
        self.bench, self.dir, self.made = bench, bench.directory("libvirt"), []
        self.run = bench.directory("libvirt", fast=True)
        self.proc = None
        bench.cleanup.callback(self.close)
        for path in ("/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt",
                     "/run/libvirt", "/etc/libvirt"):
            if not os.path.isdir(path):
                os.mkdir(path)
                self.made.append(path)
        self.start()

    @property
    def uri(self):
        return f"qemu:///system?socket={quote(str(self.run / 'libvirt-sock'))}"

    def start(self):
        """Start it and wait until it answers."""
        with open(self.dir / "out", "ab") as out:
            self.proc = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", HERE / "private-libvirtd",
                 self.dir, self.run, self.bench.helper("reaper")],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        until(lambda: self._answers() or self.proc.poll() is not None, "libvirtd answers")
        if self.proc.poll() is not None:
            raise Missing(f"libvirtd: {(self.dir / 'out').read_text().strip().splitlines()[-1:]}")

    def _answers(self):
        """Its socket is there before it is ready, so a client that waits is the answer."""
        if not (self.run / "libvirt-sock").exists():
            return False
        return not subprocess.run(self.virsh("uri"), check=False, timeout=60,
                                  stdin=subprocess.DEVNULL, capture_output=True).returncode

    def pids(self):
        return [int((self.dir / "pid").read_text())]

    def virsh(self, *words):
        return ["virsh", "-q", "-c", self.uri, *words]

    def call(self, *words):
        done = subprocess.run(self.virsh(*words), check=False, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=120)
        if done.returncode:
            raise Missing(f"virsh {words[0]}: {done.stderr.strip()}")

    def turns(self, kind, *words):
        return self.bench.turns("lv", kind, self.uri, *words)

    def events(self):
        return self.bench.turns("lv", "events", self.uri, cls=Watch)

    def spawned(self, *words):
        """Turns of a process of virsh."""
        return self.bench.turns("turn", "spawn", *self.virsh(*words))

    def xml(self, name, **parts):
        """The path of a document, of a domain that has next to nothing unless parts are given."""
        path = self.dir / f"{name.replace('%', '')}.xml"
        parts = {"namespace": "", "boot": "", "devices": "", "extra": "", **parts}
        path.write_text(DOMAIN.format(name=name, **parts))
        return path

    def guest_xml(self, name, monitors=()):
        """One that boots the guest; with monitors of its own for the paths that are given."""
        guest = self.bench.guest()
        words = [w for path in monitors
                 for w in ("-qmp", f"unix:{path},server=on,wait=off")]
        extra = {}
        if words:
            args = "".join(f"<qemu:arg value='{w}'/>" for w in words)
            extra = {"namespace": NAMESPACE, "extra": COMMANDLINE.format(args)}
        return self.xml(name, boot=BOOT.format(**guest),
                        devices=DEVICES.format(console=self.console(name)), **extra)

    def console(self, name):
        return self.run / f"{name}.console"

    def vmm(self, name):
        """The process id of a domain's QEMU."""
        return int((self.run / "qemu" / f"{name}.pid").read_text())

    def fill(self, first, last):
        """Define the domains of these numbers."""
        turns = self.turns("fill", self.xml("%s"), str(first))
        try:
            while first < last:
                some = min(500, last - first)
                turns.run(some)
                first += some
        finally:
            turns.close()

    def stop(self):
        if self.proc:
            self.proc.terminate()
            self.proc.wait()
        self.proc = None

    def close(self):
        self.stop()
        for path in self.made:
            with suppress(OSError):
                os.rmdir(path)
