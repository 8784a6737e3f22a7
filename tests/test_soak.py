# SPDX-License-Identifier: Apache-2.0
"""The long mixed load (tests/soak), for a moment: that it runs, and finds nothing."""
import subprocess
import sys

import pytest

from lib.daemon import ROOT


@pytest.mark.slow
@pytest.mark.qemu
def test_soak():
    done = subprocess.run([sys.executable, ROOT / "tests/soak/run", "--minutes", "0.5"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
