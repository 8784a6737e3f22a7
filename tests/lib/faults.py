# SPDX-License-Identifier: Apache-2.0
"""Faults to order, QEMUs that misbehave, and the table of what was survived."""
import mmap
import os
import struct
import subprocess
from pathlib import Path

SHIM = Path(__file__).resolve().parents[1] / "data/faults.c"
table = []  # of (what, counts) for the summary


def survived(what, **counts):
    """A row of the table: what was done, how often, and what was checked after it."""
    table.append((what, counts))


class Faults:
    """The shared file by which the preloaded faults.c is told what is to fail."""

    FIELDS = {"error": 0, "countdown": 4, "once": 8, "calls": 12, "clone": 16}
    CLOCK = 24

    def __init__(self, base):
        self.path, self.library = base / "faults", base / "faults.so"
        self.path.write_bytes(bytes(32))
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", self.library, SHIM, "-ldl"],
                       check=True)
        with open(self.path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 32)

    @property
    def env(self):
        return {"LD_PRELOAD": str(self.library), "VMFS_FAULTS": str(self.path),
                "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}

    def set(self, **values):
        for name, value in values.items():
            struct.pack_into("i", self.map, self.FIELDS[name], value)

    def get(self, name):
        return struct.unpack_from("i", self.map, self.FIELDS[name])[0]

    def clock(self, seconds):
        struct.pack_into("q", self.map, self.CLOCK, seconds)

    def store(self, errno, after=0, once=True):
        """The store's system calls fail, after so many good ones."""
        self.set(error=0)
        self.set(countdown=after, once=once)
        self.set(error=errno)

    def none(self):
        self.set(error=0, clone=0)


# A VMM that greets as QEMU does, on the listening socket that it is given as descriptor 3, answers
# qmp_capabilities, and then does as its mode says.
VMM = r'''
import json, os, socket, sys, time
mode, pid_file = sys.argv[1], sys.argv[2]
open(pid_file, "w").write(f"{os.getpid()}\n")
server = socket.socket(fileno=3)
def serve():
    peer, _ = server.accept()
    def say(text):
        peer.sendall(text.encode() + b"\n")
    if mode == "nothing":
        time.sleep(1000)
    if mode == "garbage":
        peer.sendall(os.urandom(100000) + b"\n")
        time.sleep(1000)
    if mode == "no-greeting":
        peer.sendall(b'{"return": {}}\n' * 10)
        time.sleep(1000)
    say('{"QMP": {"version": {}, "capabilities": []}}')
    for line in peer.makefile():
        order = json.loads(line)
        if mode == "dies" and order["execute"] == "stop":  # as a process that is killed does
            server.close()
            peer.shutdown(socket.SHUT_RDWR)
            time.sleep(0.05)
            os.kill(os.getpid(), 9)
        if mode == "partial" and order["execute"] != "qmp_capabilities":
            peer.sendall(b'{"return": {"status": "run')
            time.sleep(1000)
        if mode == "huge" and order["execute"] != "qmp_capabilities":
            peer.sendall(b'{"return": "' + b"x" * (10 << 20) + b'"}\n')
            time.sleep(1000)
        if mode == "deep" and order["execute"] != "qmp_capabilities":
            peer.sendall(b"[" * 100000 + b"\n")
            time.sleep(1000)
        if mode == "events" and order["execute"] == "cont":
            while True:
                peer.sendall(b'{"event": "STOP"}\n{"event": "RESUME"}\n' * 1000)
        if mode == "wrong-types":
            answer = {"return": [[], 7, None]}
        else:
            answer = {"return": {}}
        if "id" in order:
            answer["id"] = order["id"]
        if mode == "error" and order["execute"] != "qmp_capabilities":
            answer = {"error": {"class": "GenericError", "desc": "no \x1b[2J\n such luck"},
                      "id": order.get("id")}
        say(json.dumps(answer))
        if mode == "hangs-up" and order["execute"] == "cont":
            return
while True:
    try:
        serve()
    except OSError:
        pass
'''
