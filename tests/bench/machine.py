# SPDX-License-Identifier: Apache-2.0
"""What a run needs: packages, a release build, the helpers, the guest; and what it leaves: none."""
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from measure import Lines, Missing, Turns

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ("gcc", "libc6-dev", "pkg-config", "libfuse3-dev", "libvirt-dev", "libvirt-daemon",
            "libvirt-daemon-driver-qemu", "libvirt-clients", "python3-pytest", "strace",
            "util-linux", "iproute2")
LIBRARIES = {"empty": ("fuse3",), "lv": ("libvirt",)}
SPEC = """backend: qemu
accel: tcg
memory: 256MiB
boot:
  kernel: {kernel}
  initrd: {initrd}
  cmdline: "{cmdline}"
nics:
  eth0: {{network: user}}
"""


def cache():
    """Where things are kept between runs, outside of the tree."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "vmfs" / "bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def install():
    """What is missing, without starting any service; what cannot be had becomes a row."""
    subprocess.run([ROOT / "contrib/install-deps", "run", "build"], check=True)
    status = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"],
                            check=True, capture_output=True, text=True).stdout
    have = {line.split()[0] for line in status.splitlines() if line.endswith(" installed")}
    missing = [p for p in PACKAGES if p not in have]
    if not missing:
        return
    if os.geteuid():
        say(f"some peers will be missing; as root: apt-get install {' '.join(missing)}")
        return
    say(f"installing {' '.join(missing)}")
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(["apt-get", "update", "-q"], stdout=sys.stderr, check=True)
        subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing],
                       stdout=sys.stderr, check=True, env=env)
    finally:
        if ours:
            policy.unlink()


def build():
    """A release build of the daemon, unless VMFS_BIN names one; its path."""
    if "VMFS_BIN" in os.environ:
        return Path(os.environ["VMFS_BIN"]).absolute()
    directory = cache() / "build"
    if not (directory / "build.ninja").exists():
        subprocess.run(["meson", "setup", directory, ROOT, "--buildtype=release"], check=True,
                       stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", directory], check=True, stdout=subprocess.DEVNULL)
    return directory / "vmfs"


def first_line(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True,
                              cwd=ROOT).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "none"


def facts(binary):
    """What the numbers depend on."""
    words = {
        "vmfs": first_line("git", "describe", "--always", "--dirty"),
        "binary": first_line(binary, "--version"),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": f"{os.getloadavg()[0]:.2f}",
        "qemu": first_line("qemu-system-x86_64", "--version"),
        "libvirt": first_line("virsh", "--version"),
        "fuse": first_line("pkg-config", "--modversion", "fuse3"),
    }
    return words


class Bench:
    """What the sections share."""

    def __init__(self, binary, quick):
        self.binary, self.quick = binary, quick
        self.base = Path(tempfile.mkdtemp(prefix="vmfs-bench-"))
        # Where /run is on a real machine, whatever it is here.
        self.fast = Path(tempfile.mkdtemp(prefix="vmfs-bench-", dir="/dev/shm"))
        self.cleanup, self.dirs, self._guest = ExitStack(), 0, None
        self.helpers = self.base / "bin"
        self.helpers.mkdir()

    def pick(self, full, quick):
        return quick if self.quick else full

    def directory(self, name, fast=False):
        """A new one, of a short path: sockets are made in it; fast: in memory."""
        self.dirs += 1
        path = (self.fast if fast else self.base) / f"{self.dirs}-{name}"
        path.mkdir()
        return path

    def helper(self, name):
        """The path of a C helper, compiled when it is needed first."""
        path = self.helpers / name
        if path.exists():
            return path
        flags = []
        if name in LIBRARIES:
            done = subprocess.run(["pkg-config", "--cflags", "--libs", *LIBRARIES[name]],
                                  capture_output=True, text=True, check=False)
            if done.returncode:
                raise Missing(f"{', '.join(LIBRARIES[name])}: no development files")
            flags = done.stdout.split()
        done = subprocess.run(["gcc", "-D_GNU_SOURCE", "-std=gnu11", "-O2", "-Wall", "-Wextra",
                               "-o", path, HERE / "c" / f"{name}.c", *flags],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"c/{name}.c does not compile: {done.stderr[-300:]}")
        return path

    def turns(self, helper, *words, cls=Turns):
        """A helper in the background, ended with the section."""
        return self.keep(cls(self.helper(helper), *words))

    def keep(self, process: Lines):
        self.cleanup.callback(process.close)
        return process

    def guest(self):
        """Kernel, initrd and command line of the test guest."""
        if not self._guest:
            done = subprocess.run([ROOT / "contrib/mkguest"], capture_output=True, text=True,
                                  check=False)
            if done.returncode:
                raise Missing(f"mkguest: {done.stderr[-300:].strip()}")
            self._guest = dict(text.split("=", 1) for text in done.stdout.splitlines())
        return self._guest

    def spec(self):
        return SPEC.format(**self.guest())

    def section(self):
        """A new one; closing it ends all that was started in it."""
        self.cleanup = ExitStack()
        return self.cleanup

    def close(self):
        shutil.rmtree(self.base)
        shutil.rmtree(self.fast)
