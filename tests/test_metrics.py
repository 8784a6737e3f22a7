# SPDX-License-Identifier: Apache-2.0
"""`.vmfs/metrics` is what Prometheus takes."""
import shutil
import subprocess

import pytest

parser = pytest.importorskip("prometheus_client.parser")


def families(fs):
    return {f.name: f for f in parser.text_string_to_metric_families(fs.host("metrics"))}


def test_values(fs):
    up = fs.vm("up", "backend: sim\n")
    fs.vm("down", "backend: sim\n")
    up.do("start")
    found = families(fs)
    states = {(s.labels["vm"], s.labels["state"]): s.value for s in found["vmfs_vm_state"].samples}
    assert states["up", "running"] == 1 and states["up", "stopped"] == 0
    assert states["down", "stopped"] == 1
    counts = {s.labels["state"]: s.value for s in found["vmfs_vms"].samples}
    assert counts["running"] == 1 and counts["stopped"] == 1
    assert found["vmfs_build_info"].samples[0].labels["version"] == fs.host("version").strip()


def test_failed(fs):
    vm = fs.vm("web1", "backend: sim\n")
    assert [s.value for s in families(fs)["vmfs_vm_failed"].samples] == [0]
    with pytest.raises(OSError):
        vm.do("frobnicate")
    assert [s.value for s in families(fs)["vmfs_vm_failed"].samples] == [1]


def test_form(fs):
    """Each family has HELP and TYPE once, before its samples, and no sample stands twice."""
    fs.vm("web1", "backend: sim\n")
    text = fs.host("metrics")
    assert text.endswith("\n")
    seen, lines, family = set(), set(), None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in seen and line.endswith(".")
            seen.add(family)
        elif line.startswith("# TYPE "):
            assert line.split()[2:] == [family, "gauge"]
        else:
            assert line.split("{")[0] == family and line not in lines
            lines.add(line)


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool (Debian: prometheus)")
def test_promtool(fs):
    fs.vm("web1", "backend: sim\n").do("start")
    done = subprocess.run(["promtool", "check", "metrics"], input=fs.host("metrics"), text=True,
                          capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
