# SPDX-License-Identifier: Apache-2.0
"""Who starts vmfs, as systemd does: is told how far it is, and holds descriptors for it."""
import fcntl
import os
import socket
import subprocess
import threading


class Supervisor:
    """The socket of sd_notify(3), read at all times, and a store of descriptors, if it has one."""

    def __init__(self, path):
        self.path, self.told, self.holds, self.held = path, [], False, {}
        self.ready = threading.Event()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while True:
            message, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
            if message == b"end":
                return
            words = dict(line.split("=", 1) for line in message.decode().splitlines())
            if "FDSTORE" in words and self.holds and words["FDNAME"] not in self.held:
                self.held[words["FDNAME"]] = fcntl.fcntl(fds[0], fcntl.F_DUPFD_CLOEXEC, 100)
            if "FDSTOREREMOVE" in words and words["FDNAME"] in self.held:
                os.close(self.held.pop(words["FDNAME"]))
            self.told.append(words)
            if "READY" in words:
                self.ready.set()
            # The last, for that is what a barrier (sd_notify_barrier(3)) waits for.
            for fd in fds:
                os.close(fd)

    def popen(self, command, env, **kwargs):
        """Start it, and give it what is held: from 3 on, for it alone (sd_listen_fds(3))."""
        self.ready.clear()
        env = {**env, "NOTIFY_SOCKET": str(self.path)}
        if self.held:
            fds = " ".join(f"{n}<&{fd} {fd}<&-" for n, fd in enumerate(self.held.values(), 3))
            command = ["bash", "-c", f'export LISTEN_PID=$$; exec "$@" {fds}', "-", *command]
            env.update(LISTEN_FDS=str(len(self.held)), LISTEN_FDNAMES=":".join(self.held))
        return subprocess.Popen(command, env=env, pass_fds=tuple(self.held.values()), **kwargs)

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"end", str(self.path))
        self.reader.join()
        self.socket.close()
        for fd in self.held.values():
            os.close(fd)
        self.path.unlink()
