# SPDX-License-Identifier: Apache-2.0
"""One VM as a user sees it, and a reader that follows a stream."""
import itertools
import os
import re
import select
import signal
import subprocess
import tempfile
import time

from lib.util import ERROR, PATIENCE, get, put


class Follower:
    """`cat FILE` (or another command) in the background, and what it has printed."""

    def __init__(self, *argv):
        self.proc = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                     stdin=subprocess.DEVNULL, start_new_session=True)
        self.text, self.seen, self.ended = "", 0, False

    def _more(self, timeout):
        fd = self.proc.stdout.fileno()
        if not self.ended and select.select([fd], [], [], max(timeout, 0))[0]:
            data = os.read(fd, 65536)
            self.ended = not data
            self.text += data.decode(errors="replace")

    def expect(self, pattern, timeout=PATIENCE):
        """Wait for a match after the last one."""
        end = time.monotonic() + timeout
        while not (found := re.compile(pattern, re.M).search(self.text, self.seen)):
            assert not self.ended and time.monotonic() < end, (
                f"{pattern!r} was not printed by {self.proc.args}, but {self.text[self.seen:]!r}")
            self._more(end - time.monotonic())
        self.seen = found.end()
        return found

    def has(self, pattern):
        """Whether it is in what was printed up to now."""
        self._more(0)
        return bool(re.search(pattern, self.text, re.M))

    def finish(self, timeout=PATIENCE):
        """Wait for its end; the exit status."""
        end = time.monotonic() + timeout
        while not self.ended:
            assert time.monotonic() < end, f"{self.proc.args} does not end; printed {self.text!r}"
            self._more(end - time.monotonic())
        return self.proc.wait(timeout)

    def interrupt(self, timeout=5):
        """Ctrl-C; the exit status."""
        os.killpg(self.proc.pid, signal.SIGINT)
        return self.finish(timeout)

    def close(self):
        if self.proc.poll() is None:
            os.killpg(self.proc.pid, signal.SIGKILL)
        self.proc.wait(PATIENCE)
        self.proc.stdout.close()


class Job:
    """A directory of exec/. As a context it is removed in the end."""

    def __init__(self, vm, name):
        self.vm, self.name, self.dir = vm, name, vm / "exec" / name

    def __truediv__(self, name):
        return self.dir / name

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if not any(failure):
            self.dir.rmdir()

    def write(self, name, data):
        put(self / name, data)

    def run(self, command):
        self.write("cmd", command + "\n")

    def out(self):
        """All of its output, which ends when it does."""
        return get(self / "stdout")

    def err(self):
        return get(self / "stderr")

    def file(self, data):
        """A file outside of the mount that has this in it."""
        path = self.vm.fs.base / f"{self.name}.data"
        path.write_bytes(data)
        return path

    @property
    def status(self):
        return get(self / "status").decode().removesuffix("\n")


class Vm:
    """The directory of a VM. `vm / name` is a path in it."""

    def __init__(self, fs, name):
        self.fs, self.name = fs, name

    @property
    def dir(self):
        return self.fs.mnt / self.name

    def __truediv__(self, name):
        return self.dir / name

    def read(self, name):
        return get(self / name).decode()

    def write(self, name, data, flags=os.O_TRUNC):
        put(self / name, data, flags)

    def do(self, verb):
        """`echo VERB > state`"""
        self.write("state", verb + "\n")

    def sim(self, order):
        self.write("sim", order + "\n")

    def wait(self, what, timeout=PATIENCE):
        return get(self / "wait" / what, timeout).decode().strip()

    def follow(self, name):
        return self.fs.spawn("cat", self / name)

    def events(self):
        """A follower of `events` that has been given the present values."""
        follower = self.follow("events")
        follower.expect(rf" {re.escape(self.name)} state \w+$")
        return follower

    @property
    def state(self):
        return self.read("state").removesuffix("\n")

    @property
    def spec(self):
        return self.read("spec.yaml")

    @property
    def pid(self):
        return int(self.read("pid"))

    @property
    def status(self):
        return dict(line.split(" ", 1) for line in self.read("status").splitlines())

    def error(self, errno=None, *words):
        """The last failure (verb, errno, sentence), which must be of this errno with these words"""
        text = self.read("error")
        found = ERROR.fullmatch(text)
        assert found, f"not an error line: {text!r}"
        assert errno in (None, found["errno"]), text
        for word in words:
            assert word in found["sentence"], text
        assert " " in found["sentence"], f"not a sentence: {text!r}"
        return found["verb"], found["errno"], found["sentence"]

    def to(self, state):
        """Bring a stopped sim VM to this state."""
        steps = {"stopped": [], "running": ["start"], "paused": ["start", "pause"],
                 "crashed": ["start"]}
        for verb in steps[state]:
            self.do(verb)
        if state == "crashed":
            self.sim("panic")
            self.wait("crashed")
        assert self.state == state
        return self

    def job(self, command=None):
        """A new job, and its command started."""
        job = Job(self, os.path.basename(tempfile.mkdtemp(prefix="j", dir=self / "exec")))
        if command is not None:
            job.run(command)
        return job

    def files(self):
        """Path to stat of all that can be found below, streams excepted."""
        return {p.relative_to(self.dir): p.lstat() for p in self.dir.rglob("*")}


class Shell:
    """The guest's shell on its console: as soon as it has booted, if a backend is given to tell."""

    numbers = itertools.count(1)  # of commands: a later shell sees what was printed for an earlier one

    def __init__(self, vm, backend=None):
        if backend:
            backend.booted(vm)
        self.vm = vm
        self.console = vm.follow("console")

    def __call__(self, command, answer, timeout=30):
        """Run it until it prints that."""
        n = next(self.numbers)
        self.vm.write("console", f"until [ \"$({command})\" = '{answer}' ]; do sleep 0.1; done; "
                                 f"echo d'on'e-{n}\n", 0)
        self.console.expect(rf"^done-{n}\r?$", timeout)
