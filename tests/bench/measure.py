# SPDX-License-Identifier: Apache-2.0
"""Timed turns, interleaved between those that are compared, and where they run."""
import os
import re
import select
import signal
import statistics
import subprocess
import time
from collections import Counter
from contextlib import suppress

PATIENCE = 120  # seconds that a helper has for an answer
ROUND = 0.02    # seconds that a round of one subject lasts, about


class Missing(Exception):
    """What cannot be measured here, and why. Whatever is asked of it raises it again."""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def refuse(*_args, **_kwargs):
            raise self
        return refuse


def attempt(make, *args, **kwargs):
    """What make() returns, or the Missing that says why not."""
    try:
        return make(*args, **kwargs)
    except Missing as why:
        return why
    except (OSError, subprocess.SubprocessError) as why:
        return Missing(str(why))


class Series(list):
    """Samples of one thing, as a rule in seconds."""

    @property
    def median(self):
        return statistics.median(self)

    def summary(self):
        return {"median": self.median, "min": min(self), "max": max(self), "n": len(self)}


class Lines:
    """A process that is read line by line."""

    def __init__(self, *argv, **kwargs):
        self.argv = [str(a) for a in argv]
        self.text = b""
        self.proc = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, start_new_session=True, **kwargs)

    def line(self, timeout=PATIENCE):
        """The next line, None after the time."""
        end = time.monotonic() + timeout
        while b"\n" not in self.text:
            left = max(end - time.monotonic(), 0)
            if not select.select([self.proc.stdout], [], [], left)[0]:
                return None
            data = os.read(self.proc.stdout.fileno(), 65536)
            if not data:
                said = self.proc.stderr.read().decode(errors="replace").strip()
                raise Missing(f"{' '.join(self.argv[:3])} ended: {said[-200:]}")
            self.text += data
        line, self.text = self.text.split(b"\n", 1)
        return line.decode()

    def close(self):
        with suppress(OSError):
            self.proc.stdin.close()
        with suppress(ProcessLookupError):
            os.killpg(self.proc.pid, signal.SIGKILL)
        self.proc.wait()
        self.proc.stdout.close()
        self.proc.stderr.close()


class Turns(Lines):
    """A helper that does timed turns when it is told to (see c/bench.h)."""

    def __init__(self, *argv, **kwargs):
        super().__init__(*argv, **kwargs)
        try:
            if self.line() != "ready":
                raise Missing(f"{self.argv[0]} is not ready")
        except BaseException:
            self.close()
            raise

    def run(self, n=1):
        """Do n turns; when they began and how long they took, in nanoseconds."""
        self.proc.stdin.write(b"%d\n" % n)
        self.proc.stdin.flush()
        answer = self.line()
        if answer is None:
            raise Missing(f"{' '.join(self.argv[:3])}: no answer within {PATIENCE} s")
        start, elapsed = map(int, answer.split())
        return start, elapsed

    def seconds(self, n=1):
        """Do n turns; the mean of one."""
        return self.run(n)[1] / n / 1e9


class Watch(Turns):
    """A helper that tells when something happens: "NANOSECONDS WORD" lines."""

    def after(self, start, word="", timeout=2):
        """Seconds from that time to the first such line."""
        end = time.monotonic() + timeout
        while (line := self.line(max(end - time.monotonic(), 0))) is not None:
            at, _, what = line.partition(" ")
            if int(at) >= start and what.startswith(word):
                return (int(at) - start) / 1e9
        raise Missing(f"no {word or 'event'} within {timeout} s")


BASH = """echo ready
while read -r n; do
	start=$EPOCHREALTIME
	for ((i = 0; i < n; i++)); do %s; done
	end=$EPOCHREALTIME
	echo 0 $(((${end/.} - ${start/.}) * 1000))
done
"""


def bash_turns(command, **kwargs):
    """Turns of a command of bash, in one bash."""
    return Turns("bash", "-c", BASH % command, **kwargs)


def _calibrate(turns):
    one = min(turns.seconds(1) for _ in range(2))
    return max(1, min(10000, int(ROUND / max(one, 1e-9))))


def interleave(subjects, rounds):
    """Rounds of turns of each in turn: {name: Series of seconds a turn, or Missing}."""
    results, counts = {}, {}
    for name, turns in subjects.items():
        results[name] = Series()
        counts[name] = attempt(_calibrate, turns)
    for _ in range(rounds):
        for name, turns in subjects.items():
            if isinstance(counts[name], Missing):
                continue
            took = attempt(turns.seconds, counts[name])
            if isinstance(took, Missing):
                counts[name] = took
            else:
                results[name].append(took)
    return {name: counts[name] if isinstance(counts[name], Missing) else series
            for name, series in results.items()}


def helpers(subjects):
    """Their process ids."""
    return [s.proc.pid for s in subjects.values() if not isinstance(s, Missing)]


def traced(bench, pids, calls, turns):
    """How often processes make these system calls in a turn, as text."""
    for needed in (pids, turns):
        if isinstance(needed, Missing):
            raise needed
    trace = bench.directory("trace") / "trace"
    strace = Lines("strace", "-f", "-o", trace, "-e", f"trace={calls}",
                   *(word for pid in pids for word in ("-p", pid)))
    try:
        for _ in pids:
            if b"attached" not in strace.proc.stderr.readline():
                raise Missing("strace cannot attach")
        turns.run()
        time.sleep(0.5)  # for what is done afterwards
        strace.proc.send_signal(signal.SIGINT)
        strace.proc.wait(10)
    finally:
        strace.close()
    found = Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.M))
    return ", ".join(f"{n} {name}" for name, n in sorted(found.items())) or "none"


class Placement:
    """Which CPUs those that ask and those that answer run on."""

    def __init__(self, name, clients, servers):
        self.name, self.clients, self.servers = name, clients, servers

    def apply(self, clients=(), servers=()):
        for pids, cpus in ((clients, self.clients), (servers, self.servers)):
            for pid in pids:
                pin(pid, cpus)


def pin(pid, cpus):
    """All threads that a process has and will have."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task), cpus)


def everywhere():
    cpus = os.sched_getaffinity(0)
    return Placement("any CPU", cpus, cpus)


def placements():
    """On one CPU, and client and server each on its own; on as many as there are."""
    cpus = sorted(os.sched_getaffinity(0))
    places = [Placement("1 CPU", {cpus[0]}, {cpus[0]})]
    if len(cpus) > 1:
        places.append(Placement("2 CPUs", {cpus[0]}, {cpus[1]}))
    return places
