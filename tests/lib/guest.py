# SPDX-License-Identifier: Apache-2.0
"""The shell of the small guest, at its console."""


def started(vm):
    """The VM, with its guest's shell, and a follower of its console."""
    before = vm.read("console.log").count("GUEST-UP")  # former lives, of which the console tells
    vm.do("start")
    console = vm.follow("console")
    for _ in range(before + 1):
        console.expect("GUEST-UP", 60)
    # In any order; after both, the console prints only what it is asked for.
    console.expect(r"guest# [\s\S]*GUEST-NET.*\n|GUEST-NET[\s\S]*guest# ", 60)
    return console


def run(vm, console, command):
    """Type a command at the guest's shell; what it prints."""
    vm.write("console", f"{command}; echo st''atus=$?\n", 0)
    before = console.seen
    console.expect(r"^status=(\d+)\r?$", 60)
    text = console.text[before:console.seen].replace("\r", "")
    console.expect("guest# ")
    assert "status=0\n" in text + "\n", text
    return "\n".join(text.split("\n")[1:-1])
