# SPDX-License-Identifier: Apache-2.0
"""vmfs under test, keeper and daemon: started, ended, killed and cleaned up after."""
import os
import re
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from lib.supervisor import Supervisor
from lib.util import PATIENCE, alive, deadline, get, mounts, processes, until
from lib.vm import Follower, Vm

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("VMFS_BIN", ROOT / "build/vmfs")).absolute()
COMPLAINT = re.compile(r"^.*(ERROR: AddressSanitizer|runtime error:|LeakSanitizer|[Aa]ssert"
                       r"|CRITICAL \*\*|WARNING: ThreadSanitizer).*$", re.M)


class Vmfs:
    """A state directory, a run-time directory, a mount point, and at most one vmfs on them."""

    def __init__(self, base):
        self.base = base
        self.state, self.run, self.mnt, self.log = (base / n for n in ("s", "r", "m", "log"))
        self.mnt.mkdir()
        self.reports = base / "reports"  # of the sanitizers
        self.reports.mkdir()
        self.reports.chmod(0o1777)
        self.proc, self.args, self.env = None, (), {}  # the keeper
        self.supervisor = Supervisor(base / "notify")
        self.followers, self.problems = [], []

    # The daemon

    def command(self, *args):
        # The machine's own domains and hosts are none of a test's business.
        return [BINARY, "-f", f"--state-dir={self.state}", f"--runtime-dir={self.run}",
                "-ohost=local=,hosts=/dev/null", *args, self.mnt]

    def environ(self, **env):
        # To files, for the helper processes have no stderr.
        sanitizers = {f"{name}_OPTIONS": f"{os.environ.get(f'{name}_OPTIONS', '')}:"
                                         f"log_path={self.reports / name.lower()}"
                      for name in ("ASAN", "UBSAN", "TSAN")}
        return {**os.environ, **sanitizers, **self.env, **env}

    def launch(self, *args):
        """Start it as a supervisor would, and do not wait."""
        self.args = args
        with open(self.log, "ab") as log:
            self.proc = self.supervisor.popen(self.command(*args), self.environ(),
                                              stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self, *args):
        """Start it and wait until it says READY=1."""
        self.launch(*args)
        ready = self.supervisor.ready.is_set
        until(lambda: ready() or self.proc.poll() is not None, "vmfs is ready")
        assert ready(), f"the daemon did not start: {self.log_text}"
        return self

    def end(self, sig):
        """Send a signal and wait; the exit status."""
        proc, self.proc = self.proc, None
        proc.send_signal(sig)
        return proc.wait(PATIENCE)

    def stop(self):
        """SIGTERM: the mount must go, the VMs stay."""
        assert self.end(signal.SIGTERM) == 0
        assert str(self.mnt) not in mounts()

    @property
    def pid(self):
        """Of the daemon, which the keeper replaces when it dies."""
        return int((self.run / "daemon.pid").read_text())

    def crash(self, sig=signal.SIGKILL):
        """Kill the daemon; its pid. The keeper starts another."""
        pid = self.pid
        os.kill(pid, sig)
        return pid

    def kill9(self):
        """Kill both at once: the mount is dead."""
        with suppress(OSError, ValueError):
            gone = os.pidfd_open(self.pid)
            signal.pidfd_send_signal(gone, signal.SIGSTOP)
            self.proc.kill()
            signal.pidfd_send_signal(gone, signal.SIGKILL)
            can, _, _ = select.select([gone], [], [], PATIENCE)
            os.close(gone)
            assert can, "the daemon does not die"
        self.end(signal.SIGKILL)

    def restart(self):
        return self.start(*self.args)

    def wait_exit(self):
        """It ends by itself; the exit status."""
        proc, self.proc = self.proc, None
        return proc.wait(PATIENCE)

    def give_up(self, why):
        self.problems.append(why)
        if self.proc:
            self.kill9()

    @property
    def log_text(self):
        """What the daemon said, and what the sanitizers say of it and of its helper processes."""
        logs = [self.log, *sorted(self.reports.iterdir())]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    # The user

    def vm(self, name, spec=None):
        """The VM of this name, made if it is not there."""
        vm = Vm(self, name)
        if not vm.dir.exists():
            vm.dir.mkdir()
        if spec is not None:
            vm.write("spec.yaml", spec)
        return vm

    def names(self):
        return sorted(n for n in os.listdir(self.mnt) if not n.startswith("."))

    def host(self, path):
        return get(self.mnt / ".vmfs" / path).decode()

    def stored(self):
        """The paths of all that is kept on disk for VMs."""
        return {*self.state.rglob("*"), *self.run.rglob("*")}

    def spawn(self, *argv):
        """A command in the background."""
        follower = Follower(*argv)
        self.followers.append(follower)
        return follower

    def sh(self, script, shell="bash", cwd=None, check=True, timeout=60, user=None, env=None):
        """Run a shell script to its end, by default in the mount."""
        who = {} if user is None else dict(user=user, group=user, extra_groups=[])
        proc = subprocess.Popen([shell, "-c", script], cwd=cwd or self.mnt, text=True,
                                errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, start_new_session=True,
                                env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}, **who)
        try:
            out, err = proc.communicate(timeout=timeout)
        except BaseException:
            os.killpg(proc.pid, signal.SIGKILL)
            raise
        done = subprocess.CompletedProcess(script, proc.returncode, out, err)
        assert not check or done.returncode == 0, f"{script!r}: {done.returncode}: {out}{err}"
        return done

    # The end

    def close(self):
        """Leave nothing behind; a list of what was wrong."""
        vmms = processes(str(self.base)) - ({self.proc.pid} if self.proc else set())
        if self.proc and self.proc.poll() is not None:
            self.problems.append(f"the daemon ended by itself: {self.proc.returncode}")
            self.proc = None
        for follower in self.followers:
            follower.close()
            vmms.discard(follower.proc.pid)
        if self.proc:
            vmms = self._vmm_pids()
            try:
                self.stop()
            except (AssertionError, subprocess.TimeoutExpired) as e:
                self.problems.append(f"SIGTERM: {e}")
        for pid in vmms & processes(str(self.base)):
            os.kill(pid, signal.SIGKILL)
            until(lambda: not alive(pid), f"process {pid} is gone")
        for mount in mounts():
            if mount.startswith(f"{self.base}/"):
                self.problems.append(f"left over: mount {mount}")
                subprocess.run(["fusermount3", "-uz", mount], check=False)
        for pid in processes(str(self.base)):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            self.problems.append(f"left over: process {pid}: {' '.join(words)}")
            os.kill(pid, signal.SIGKILL)
        self.supervisor.close()
        self.problems += [f"daemon's log: {m[0]}" for m in COMPLAINT.finditer(self.log_text)]
        return self.problems

    def _vmm_pids(self):
        pids = set()
        with suppress(OSError, AssertionError), deadline():
            for name in self.names():
                with suppress(OSError, ValueError):
                    pids.add(Vm(self, name).pid)
        return pids
