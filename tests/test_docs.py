# SPDX-License-Identifier: Apache-2.0
"""README.md, help and the manual page say what the tables of the daemon say."""
import os
import re
import subprocess

from lib.daemon import BINARY, ROOT

README = ROOT / "README.md"


def sections(text):
    """{name: text} of what stands between `<!-- name -->` marks."""
    parts = re.split(r"^<!-- (\w+) -->\n", text, flags=re.M)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2]) if name != "end"}


def test_readme():
    """After a wanted change, run with VMFS_REGEN=1 and read the diff."""
    made = sections(subprocess.check_output([BINARY, "--markdown"], text=True))
    text = README.read_text()
    assert set(made) == {"tree", "verbs", "keys", "networks"}
    for name, body in made.items():
        new, n = re.subn(rf"(<!-- {name} -->\n)[\s\S]*?(<!-- end -->)",
                         lambda m: f"{m[1]}{body}\n{m[2]}", text)
        assert n == 1, f"README.md has no section {name}"
        if os.environ.get("VMFS_REGEN"):
            README.write_text(text := new)
        assert new == text, f"README.md's section {name} is old"


def test_help_is_the_manual(fs):
    page = subprocess.check_output([BINARY, "--man", os.devnull], text=True)
    for line in fs.host("help").splitlines():
        if line.startswith("/"):
            doc = line.split(None, 2)[2]
            assert doc in page.replace("\\", ""), line


def test_help_tells_of_every_option():
    text = subprocess.check_output([BINARY, "--help"], text=True)
    manual = (ROOT / "contrib/man/vmfs.8.scd").read_text().replace("\\", "")
    for option in re.findall(r"(--[a-z-]+|[a-z]+_[a-z]+=)", text):
        assert option.rstrip("=") in manual, option
