# SPDX-License-Identifier: Apache-2.0
"""What a guest is told at its first boot, and who else is not."""
import json
import re
import subprocess
from errno import EINVAL

import pytest

from lib.backends import real
from lib.guest import run, started
from lib.util import fails, until
from test_snapshots import take

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHf0000000000000000000000000000000000000000 me@host"
SECRET = "hunter2-correct-horse"
SEED = f"""cloud_init:
  user_data: |
    #!/bin/sh
    echo script-ran-{SECRET} > /dev/ttyS0
  ssh_keys: ["{KEY}"]
"""


def files(path):
    """Name to content of the files in an ISO image."""
    names = subprocess.check_output(["bsdtar", "-tf", path], text=True).split()
    return {n: subprocess.check_output(["bsdtar", "-xOf", path, n], text=True)
            for n in names if n != "."}


def seed_of(fs):
    return next(fs.state.glob("vms/*/data")) / "seed.iso"


# The document

def test_pending(vm):
    vm.do("start")
    vm.write("spec.yaml", f"backend: sim\n{SEED}")
    assert vm.read("pending") == "cloud_init\n"


def test_two_megabytes(fs, vm):
    path = fs.base / "big.yaml"
    path.write_text("backend: sim\ncloud_init:\n  user_data: |\n" + "    # padding\n" * 150000)
    assert path.stat().st_size > 2 << 20
    before = vm.spec
    done = fs.sh(f"cp {path} web1/spec.yaml", check=False)
    assert done.returncode != 0
    vm.error("EFBIG", "262144 bytes")
    assert vm.spec == before


def test_what_is_no_key(vm):
    for text in (f"-----BEGIN OPENSSH PRIVATE KEY----- {SECRET}", SECRET, f"ssh-rsa {SECRET}"):
        with fails(EINVAL):
            vm.write("spec.yaml", f"backend: sim\ncloud_init: {{ssh_keys: ['{text}']}}\n")
        assert SECRET not in vm.error("EINVAL", "line 2", "cloud_init.ssh_keys")[2]


# Waiting

def test_wait(vm):
    """Answers how it ended; of another boot it is another matter."""
    vm.write("spec.yaml", f"backend: sim\n{SEED}")
    waiting = vm.follow("wait/cloud-init")
    assert not waiting.has(".")
    vm.do("start")
    assert waiting.finish() == 0 and waiting.text == "done\n"
    vm.sim("agent down")
    waiting = vm.follow("wait/cloud-init")
    assert not waiting.has(".")
    vm.sim("agent up")
    vm.sim("cloud-init error")
    assert waiting.finish() == 0 and waiting.text == "error\n"
    vm.do("kill")
    assert vm.fs.sh("timeout 0.3 cat web1/wait/cloud-init", check=False).returncode == 124


# The seed

@real
def test_seed(fs, backend):
    """What is in it; the same instance over restarts, another one of a VM that is made anew."""
    vm = backend.vm("web-1", spec=backend.spec(extra=SEED + "  network_config: 'version: 2'\n"))
    vm.do("start")
    assert seed_of(fs).stat().st_mode & 0o777 == 0o600
    assert "LABEL=\"cidata\"" in fs.sh(f"blkid -p {seed_of(fs)}").stdout
    first = files(seed_of(fs))
    assert set(first) == {"user-data", "meta-data", "network-config"}
    assert first["user-data"] == f"#!/bin/sh\necho script-ran-{SECRET} > /dev/ttyS0\n"
    assert first["network-config"] == "version: 2"
    assert f'public-keys:\n- "{KEY}"\n' in first["meta-data"]
    assert 'local-hostname: "web-1"\n' in first["meta-data"]
    instance = re.search('instance-id: "(.+)"', first["meta-data"])[1]
    vm.do("kill")
    fs.kill9()
    fs.restart()
    vm.dir.rename(fs.mnt / "web-2")
    vm = fs.vm("web-2")
    vm.do("start")
    second = files(seed_of(fs))["meta-data"]
    assert f'instance-id: "{instance}"' in second and 'local-hostname: "web-2"' in second
    vm.do("kill")
    vm.dir.rmdir()
    until(lambda: not list(fs.state.glob("vms/*/data")), "it is gone")
    vm = backend.vm("web-1", spec=backend.spec(extra="cloud_init: {}\n"))
    vm.do("start")
    third = files(seed_of(fs))
    assert set(third) == {"user-data", "meta-data"}
    assert instance not in third["meta-data"]
    # Nobody's key, so the VM's own, if there is an ssh_config to use it.
    assert KEY not in third["meta-data"]
    assert third["meta-data"].count("ssh-ed25519") == (vm / "ssh_config").exists()
    vm.do("kill")
    vm.write("spec.yaml", backend.spec())
    vm.do("start")
    assert not seed_of(fs).exists()


@real
def test_change_waits_for_a_start(fs, backend):
    """The machine goes on with the seed that it was started with, also over a restart of vmfs."""
    vm = backend.vm(spec=backend.spec(extra=SEED))
    vm.do("start")
    assert vm.read("pending") == ""
    vm.write("spec.yaml", backend.spec(extra=SEED.replace(SECRET, "new")))
    assert vm.read("pending") == "cloud_init.user_data\n"
    fs.kill9()
    fs.restart()
    until(lambda: vm.state == "running", "it is found again")
    assert vm.read("pending") == "cloud_init.user_data\n"
    vm.do("sleep")
    assert vm.read("pending") == "cloud_init.user_data\n"
    vm.do("wake")
    assert vm.read("pending") == "cloud_init.user_data\n"
    assert "script-ran-new" not in files(seed_of(fs))["user-data"]
    vm.do("kill")
    assert vm.read("pending") == ""
    vm.do("start")
    assert vm.read("pending") == ""
    assert "script-ran-new" in files(seed_of(fs))["user-data"]
    vm.write("spec.yaml", backend.spec())
    assert vm.read("pending") == "cloud_init\n"


@pytest.mark.qemu
def test_own_meta_data(fs, qemu):
    odd = 'a "quoted" \\\\ back: [slash] # é'
    vm = qemu.vm(spec=qemu.spec(extra=f"cloud_init:\n  meta_data: {{instance-id: me, x: '{odd}'}}\n"))
    vm.do("start")
    meta = files(seed_of(fs))["meta-data"]
    values = dict(re.findall(r'^([\w-]+): (".*")$', meta, re.M))
    assert {k: json.loads(v) for k, v in values.items()} == {
        "instance-id": "me", "local-hostname": "web1", "x": odd}


@real
def test_guest_reads_it(fs, backend):
    """Host name, key and script, and nobody else is told of the secret in it."""
    vm = backend.vm("seeded", spec=backend.spec(extra=SEED))
    events = vm.events()
    console = started(vm, "seeded")
    assert run(vm, console, "hostname") == "seeded"
    assert KEY.rsplit(" ", 1)[0] in run(vm, console, "cat /root/.ssh/authorized_keys")
    until(lambda: f"script-ran-{SECRET}" in vm.read("console.log"), "the script runs")
    if backend.name == "qemu":
        assert "seed.iso" in vm.read("cmdline")
    for name in ("cmdline", "status", "error", "pending"):
        assert SECRET not in vm.read(name)
    for name in ("list", "metrics", "help"):
        assert SECRET not in fs.host(name)
    vm.do("kill")
    events.expect(" state stopped$")
    assert SECRET not in events.text and SECRET not in fs.log_text


@real
def test_seed_is_behind_the_disks(fs, backend):
    """Boot loaders and fstabs know /dev/vda."""
    vm = backend.vm(spec=backend.spec(extra="disks: {a: {size: 8MiB}, b: {size: 16MiB}}\n"
                                      "cloud_init: {}\n"))
    console = started(vm, vm.name)
    assert run(vm, console, "cat /sys/block/vd?/size").split() == ["16384", "32768", "1024"]


@real
def test_wait_by_the_agent(backend):
    """The file that cloud-init writes at its end, asked for only while somebody waits."""
    vm = backend.vm(spec=backend.spec(extra="cloud_init: {}\n"))
    console = started(vm, vm.name)
    assert vm.wait("agent", 60) == "agent"
    gone = vm.follow("wait/cloud-init")
    gone.interrupt()
    waiting = vm.follow("wait/cloud-init")
    run(vm, console, "mkdir -p /run/cloud-init; echo '{\"v1\": {' > /run/cloud-init/result.json")
    assert not waiting.has(".")
    run(vm, console, "echo '{\"v1\": {\"datasource\": null, \"errors\": []}}' > "
                     "/run/cloud-init/result.json")
    assert waiting.finish(60) == 0 and waiting.text == "done\n"
    assert vm.wait("cloud-init") == "done"
    vm.do("kill")
    console = started(vm, vm.name)
    run(vm, console, "mkdir -p /run/cloud-init; echo '{\"v1\": {\"errors\": [\"x\"]}}' > "
                     "/run/cloud-init/result.json")
    assert vm.wait("cloud-init", 60) == "error"


@pytest.mark.qemu
def test_wait_without_an_agent(qemu):
    vm = qemu.vm(spec=qemu.spec("vmfs.noagent"))
    vm.do("start")
    waiting = vm.follow("wait/cloud-init")
    qemu.booted(vm)
    assert not waiting.has(".")
    vm.do("kill")
    assert waiting.interrupt() != 0


# A real one

@pytest.fixture(scope="session")
def debian():
    from lib.daemon import ROOT
    out = subprocess.run([ROOT / "contrib/mkguest", "debian"], stdout=subprocess.PIPE, text=True,
                         timeout=1800, check=True).stdout
    return dict(line.split("=", 1) for line in out.splitlines())


def leases(vm):
    vm.wait("agent", 60)
    with vm.job("journalctl -b -u systemd-networkd") as job:
        return re.findall(r"DHCPv4 address ([0-9.]+)", job.out().decode())


@pytest.mark.qemu
@pytest.mark.slow
def test_debian(fs, debian, scratch):
    """Debian with systemd and cloud-init: user_data, key, host name; once, not at each boot."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", scratch / "key"],
                   check=True)
    (fs.mnt / ".vmfs/images/debian").symlink_to(debian["disk"])
    vm = fs.vm("deb1", f"""backend: qemu
accel: tcg
cpus: 2
memory: 1GiB
boot:
  kernel: {debian["kernel"]}
  initrd: {debian["initrd"]}
  cmdline: {debian["cmdline"]}
disks:
  root: {{image: debian, size: 3GiB}}
nics:
  eth0: {{ports: ["127.0.0.1:0:22"]}}
cloud_init:
  ssh_keys: ["{(scratch / "key.pub").read_text().strip()}"]
  user_data: |
    #cloud-config
    write_files:
    - {{path: /etc/marker, content: "told by cloud-init"}}
    runcmd:
    - echo ran >> /var/ran
""")

    def ssh(command, vm=vm):
        port = vm.status["port.eth0.22"].rpartition(":")[2]
        return fs.sh(f"ssh -p {port} -i {scratch}/key -o StrictHostKeyChecking=no -o BatchMode=yes "
                     f"-o UserKnownHostsFile=/dev/null debian@127.0.0.1 '{command}'").stdout.strip()

    vm.do("start")
    assert vm.wait("cloud-init", 600) == "done"
    assert ssh("hostname") == "deb1"
    assert ssh("cat /etc/marker") == "told by cloud-init"
    assert ssh("cat /var/ran") == "ran"
    assert int(ssh("df --output=size / | tail -n1")) > 2.5 * (1 << 20)  # it has grown
    assert vm.wait("ip", 60)
    vm.do("stop 120")
    vm.do("start")
    assert vm.wait("cloud-init", 600) == "done"
    assert ssh("cat /var/ran") == "ran"
    before = leases(vm)
    take(vm, "golden")
    clone = fs.vm("deb2", "from: deb1/snapshots/golden\n")
    clone.do("start")
    # Its networkd asks for an address as soon as it has another MAC.
    until(lambda: len(leases(clone)) > len(before), "a lease of its own", 120)
    assert before[-1] == leases(clone)[-1] == "10.0.2.15"
    assert clone.wait("ssh", 120) == clone.status["port.eth0.22"]
    assert ssh("hostname", clone) == "deb2"
    clone.do("kill")
    vm.do("stop 120")
    assert vm.status.get("reason") == "guest-shutdown"
