# SPDX-License-Identifier: Apache-2.0
"""Many machines."""
import os

import pytest

from lib.util import until


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many(fs, count):
    vms = [fs.vm(f"web{n:04}", f"backend: sim\nsim: {{ip: 10.1.{n // 250}.{n % 250 + 1}}}\n")
           for n in range(count)]
    assert fs.names() == [vm.name for vm in vms]
    assert len({vm.read("id") for vm in vms}) == count
    for vm in vms:
        vm.do("start")
    for n, vm in enumerate(vms):
        assert vm.wait("ip") == f"10.1.{n // 250}.{n % 250 + 1}"
    states = fs.sh("cat */state | sort | uniq -c", timeout=300).stdout
    assert states.split() == [str(count), "running"]
    assert fs.sh("ls -l | wc -l").stdout.strip() in (str(count), str(count + 1))  # and its total
    fs.kill9()
    fs.restart()
    until(lambda: all(vm.state == "running" for vm in vms), "all are found again", 120)
    for vm in vms:
        vm.do("stop")
    assert {vm.state for vm in vms} == {"stopped"}
    for vm in vms:
        vm.dir.rmdir()
    assert fs.names() == []


def test_long_listing_is_whole(fs):
    """readdir over many calls, while machines come and go: each that stays is listed once."""
    names = {f"web{n}" for n in range(300)}
    for name in names:
        (fs.mnt / name).mkdir()
    seen = []
    with os.scandir(fs.mnt) as entries:
        for n, entry in enumerate(entries):
            seen.append(entry.name)
            if n % 10 == 0:
                (fs.mnt / f"extra{n}").mkdir()
            if n % 20 == 0:
                (fs.mnt / f"extra{n}").rmdir()
    stayed = [name for name in seen if name in names]
    assert sorted(stayed) == sorted(names)
