# SPDX-License-Identifier: Apache-2.0
"""The scripts that people are to copy work as they stand."""
import json
import os
import shutil
import subprocess

import pytest

from lib.daemon import ROOT
from lib.util import until

EXAMPLES = ROOT / "contrib/examples"
SPEC = "backend: sim\nsim: {ip: 192.0.2.%d, boot: 20ms}\n"


def test_restart_on_crash(fs):
    vm = fs.vm("web1", "backend: sim\n")
    vm.do("start")
    script = fs.spawn(EXAMPLES / "restart-on-crash", vm.dir)
    for _ in range(3):
        vm.sim("die")
        script.expect("signal-9; starting it again")
        vm.wait("running")
    vm.do("stop")
    vm.sim("ok start")  # an order that changes nothing: the script leaves a stopped machine alone
    assert vm.state == "stopped"


def test_start_all(fs):
    vms = [fs.vm(f"web-{n}", SPEC % n) for n in range(1, 21)]
    done = fs.sh(f"{EXAMPLES}/start-all web-*")
    assert sorted(done.stdout.split("\n")[:-1]) == sorted(
        f"web-{n} 192.0.2.{n}" for n in range(1, 21))
    assert {vm.state for vm in vms} == {"running"}


def test_start_all_tells_of_a_failure(fs):
    fs.vm("web-1", SPEC % 1).sim("fail start ENOSPC")
    done = fs.sh(f"{EXAMPLES}/start-all web-*", check=False)
    assert done.returncode != 0


def test_start_crashed(fs):
    vms = [fs.vm(f"web-{n}", SPEC % n) for n in range(4)]
    for vm in vms[1:]:
        vm.do("start")
    for vm in vms[2:]:
        vm.sim("panic")
    done = fs.sh(f"{EXAMPLES}/start-crashed .")
    assert done.stdout == "web-2: guest-panic\nweb-3: guest-panic\n"
    assert [vm.state for vm in vms] == ["stopped", "running", "running", "running"]


def test_ansible_inventory(fs):
    fs.vm("web-1", SPEC % 1)
    up = fs.vm("web-2", SPEC % 2)
    up.do("start")
    out = subprocess.check_output([EXAMPLES / "ansible-inventory", "--list"],
                                  env={**os.environ, "VMFS": str(fs.mnt)})
    found = json.loads(out)
    assert found["running"]["hosts"] == ["web-2"] and found["stopped"]["hosts"] == ["web-1"]
    args = found["_meta"]["hostvars"]["web-2"]["ansible_ssh_common_args"]
    assert args == f"-F {fs.mnt}/web-2/ssh_config"


def test_textfile_collector(fs, tmp_path):
    vm = fs.vm("web1", "backend: sim\n")
    fs.spawn(EXAMPLES / "textfile-collector", tmp_path, fs.mnt)
    file = tmp_path / "vmfs.prom"
    until(file.exists, "the metrics")
    vm.do("start")
    until(lambda: 'vmfs_vms{state="running"} 1' in file.read_text(), "the change")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd")
def test_units(tmp_path):
    for unit in ("vmfs-restart@.path", "vmfs-restart@.service"):
        text = (EXAMPLES / unit).read_text()
        (tmp_path / unit.replace("@", "@web1")).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", *map(str, tmp_path.glob("*web1.*"))],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
