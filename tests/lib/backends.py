# SPDX-License-Identifier: Apache-2.0
"""What differs between backends: how to have a VM, and how to make its guest do things."""
import os
import signal
import subprocess

import pytest

from lib.util import until


class Sim:
    name = "sim"
    ip = "192.0.2.7"
    after_crash = "signal-9"
    text = "backend: sim\ncpus: 1\nsim: {ip: 192.0.2.7, boot: 50ms}\n"
    snapshot_files = {"manifest", "memory", "spec.yaml"}
    booked = False  # snapshots are in the hypervisor's own books

    def __init__(self, fs):
        self.fs = fs

    def vm(self, name="web1", spec=None):
        return self.fs.vm(name, spec or self.text)

    def savable_vm(self, name="web1"):
        """A VM of which snapshots can be taken."""
        return self.vm(name)

    def stubborn_vm(self):
        """A VM, started, whose guest ignores the request to stop."""
        vm = self.vm()
        vm.do("start")
        vm.sim("ignore stop")
        return vm

    def booted(self, vm):
        vm.wait("agent")

    def up(self, vm):
        """Have it run, with a guest that has booted."""
        vm.do("start")
        self.booted(vm)

    def watch(self, vm):
        """Look on from here; then rebooted() waits for the next boot."""
        return vm.events()

    def rebooted(self, watch):
        watch.expect(" agent down$")
        watch.expect(" agent up$")

    def type(self):
        """What to type, and what the guest then prints."""
        return "hello from the keyboard\n", "hello from the keyboard"

    def remember(self, vm, word):
        """Have the guest keep a word in its memory."""
        vm.sim(f"remember {word}")

    def recall(self, vm):
        """The word that it has; '' for none."""
        console = vm.follow("console")
        self.asked = getattr(self, "asked", 0) + 1
        vm.sim(f"print tell-{self.asked}-")
        vm.sim("recall")
        console.expect(f"^tell-{self.asked}-$")
        word = console.expect(r"^memory: (.*)$")[1]
        console.close()
        return word

    def settled(self, vm):
        """What a daemon that died had begun is over; the VM's state."""
        until(lambda: vm.state in ("running", "asleep"), "it is found again")
        return vm.state

    def crash(self, vm):
        vm.sim("die")

    def poweroff(self, vm):
        vm.sim("poweroff")


class Qemu:
    name = "qemu"
    ip = "10.0.2.15"
    after_crash = "signal-9"
    snapshot_files, booked = Sim.snapshot_files, Sim.booked
    CMDLINE = "console=ttyS0 quiet init_on_free=1"  # memory that is zeros is not saved

    def __init__(self, fs, guest, golden=None):
        self.fs, self.guest, self.golden = fs, guest, golden

    def spec(self, cmdline="", cpus=1, extra="", accel="tcg", nic="{network: user}"):
        return (f"backend: qemu\naccel: {accel}\ncpus: {cpus}\nmemory: 256MiB\n"
                f"boot:\n  kernel: {self.guest.kernel}\n  initrd: {self.guest.initrd}\n"
                f"  cmdline: \"{self.CMDLINE} {cmdline}\"\n"
                f"nics:\n  eth0: {nic}\n{extra}")

    @property
    def text(self):
        return self.spec()

    def vm(self, name="web1", spec=None):
        return self.fs.vm(name, spec or self.spec())

    savable_vm = Sim.savable_vm

    def stubborn_vm(self):
        vm = self.vm(spec=self.spec("vmfs.noacpi vmfs.noagent"))
        self.up(vm)
        return vm

    def booted(self, vm):
        """Wait until the guest's shell is there (also when it was there before)."""
        console = vm.follow("console")
        console.expect("GUEST-UP")
        console.expect("guest# ")
        console.close()

    def up(self, vm):
        """The like of it has booted once, and it goes on from there."""
        if self.golden and self.golden.has(vm):
            self.golden.restore(vm)
            return
        self._boot(vm)
        if self.golden:
            self.golden.keep(vm)

    def _boot(self, vm):
        if vm.state == "stopped":
            vm.do("start")
        self.booted(vm)
        if "vmfs.noagent" not in vm.spec:
            vm.wait("agent", 60)

    def watch(self, vm):
        console = vm.follow("console")
        for _ in range(vm.read("console.log").count("GUEST-UP")):  # a guest that was restored has none
            self.rebooted(console)
        return console

    def rebooted(self, watch):
        watch.expect("GUEST-UP", 60)
        watch.expect("guest# ")

    def type(self):
        return "echo typed-$((40 + 2))\n", "typed-42"

    @staticmethod
    def _typed(vm, text):
        """False: it is not connected yet, after a restore."""
        try:
            vm.write("console", text, 0)
        except BlockingIOError:
            return False
        return True

    def _shell(self, vm, line, pattern):
        console = vm.follow("console")
        self.asked = getattr(self, "asked", 0) + 1
        until(lambda: self._typed(vm, f"{line}; echo done-$(({self.asked}+0))\n"),
              "the console takes it")
        found = console.expect(pattern.replace("DONE", f"done-{self.asked}"), 60)
        console.close()
        return found

    def remember(self, vm, word):
        self._shell(vm, f"word={word}", "^DONE")

    def recall(self, vm):
        # After a restore it also tells, at any moment, what address it has.
        return self._shell(vm, "echo word:$word:",
                           r"^word:([^$]*):\s+(?:GUEST-NET.*\s+)?DONE")[1]

    settled = Sim.settled

    def vmm(self, vm):
        """The process id of its QEMU."""
        return vm.pid

    def crash(self, vm):
        os.kill(self.vmm(vm), signal.SIGKILL)

    def poweroff(self, vm):
        vm.write("console", "poweroff\n", 0)


class Libvirt(Qemu):
    name = "libvirt"
    after_crash = "vmm-died"
    snapshot_files, booked = {"spec.yaml", "snapshot.xml"}, True
    STATES = {"running": "running", "paused": "paused", "shut off": "asleep"}

    def __init__(self, fs, guest, libvirtd):
        super().__init__(fs, guest, libvirtd.golden)
        self.libvirtd = libvirtd

    def up(self, vm):
        vm.do("start")
        if self.golden and self.golden.has(vm):
            vm.do("kill")  # it has its domain now
            self.golden.restore(vm)
        else:
            self._boot(vm)
            self.golden.keep(vm)

    def spec(self, *args, **kwargs):
        return super().spec(*args, **kwargs).replace("backend: qemu", "backend: libvirt")

    def savable_vm(self, name="web1"):
        """Its snapshots are in its disk."""
        disk = self.fs.base / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
        return self.vm(name, self.spec(extra=f"disks:\n  data: {{file: {disk}}}\n"))

    def settled(self, vm):
        """libvirtd goes on by itself, up to where it would have been told to let the guest run."""
        self.libvirtd.at_rest(vm.name)
        state = self.STATES[self.libvirtd.virsh("domstate", vm.name).stdout.strip()]
        until(lambda: vm.state == state, f"it is {state}")
        if state == "paused":
            vm.do("resume")
        return vm.state

    def vmm(self, vm):
        return self.libvirtd.vmm(vm.name)


BACKENDS = {cls.name: cls for cls in (Sim, Qemu, Libvirt)}

# For tests of those that have real guests, with the fixture `backend`.
on_qemu, on_libvirt = (pytest.param("qemu", marks=pytest.mark.qemu),
                       pytest.param("libvirt", marks=[pytest.mark.qemu, pytest.mark.libvirt]))
real = pytest.mark.parametrize("backend", [on_qemu, on_libvirt], indirect=True)
