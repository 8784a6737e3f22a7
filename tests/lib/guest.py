# SPDX-License-Identifier: Apache-2.0
"""The shell of the small guest, at its console."""


def started(vm, host="guest"):
    """Start it; a follower of its console, where the shell of a guest of that name is ready."""
    before = vm.read("console.log").count("GUEST-UP")  # former lives, of which the console tells
    vm.do("start")
    console = vm.follow("console")
    for _ in range(before + 1):
        console.expect("GUEST-UP", 60)
    # In any order; after both, the console prints only what it is asked for.
    console.prompt = f"{host}# "
    console.expect(rf"{host}# [\s\S]*GUEST-NET.*\n|GUEST-NET[\s\S]*{host}# ", 60)
    return console


def run(vm, console, command):
    """Type a command at the guest's shell; what it prints."""
    vm.write("console", f"{command}; echo st''atus=$?\n", 0)
    before = console.seen
    console.expect(r"^status=(\d+)\r?$", 60)
    text = console.text[before:console.seen].replace("\r", "")
    console.expect(console.prompt)
    assert "status=0\n" in text + "\n", text
    return "\n".join(text.split("\n")[1:-1])
