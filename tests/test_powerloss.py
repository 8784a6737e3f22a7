# SPDX-License-Identifier: Apache-2.0
"""The power goes: of the state directory there is only what was synced, and what chance has kept."""
import copy
import os
import random
import shutil

import pytest

from lib.backends import Sim
from lib.daemon import Vmfs
from lib.disk import Disk, Recorder
from lib.faults import survived
from lib.util import until
from lib.vm import Vm

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


class Story:
    """One VM, from mkdir to rmdir: step after step, and what is true of it after each."""

    def __init__(self, fs, recorder, n):
        self.fs, self.recorder, self.n = fs, recorder, n
        self.truth, self.words = None, 0
        self.told = [(0, 0, False, None)]  # of (moment before, after, may come later, truth)

    @property
    def over(self):
        return self.truth is None and len(self.told) > 1

    @property
    def vm(self):
        return Vm(self.fs, self.truth["name"])

    def step(self, chance):
        if not self.truth:
            step = self.make
        else:
            asleep = self.truth["word"] is not None
            step = chance.choice([self.edit, self.chmod, self.move, self.snapshot, self.drop,
                                  *[self.wake if asleep else self.sleep] * 2,
                                  *([] if asleep or self.truth["snapshots"] else [self.remove])])
        before, truth = self.recorder.now(), copy.deepcopy(self.truth)
        lazy, after = step(chance, truth) or (False, truth)
        self.truth = after
        self.told.append((before, self.recorder.now(), lazy, copy.deepcopy(after)))

    def make(self, chance, truth):
        name = f"v{self.n}"
        os.mkdir(self.fs.mnt / name)
        # Within half a second, or with what is written next.
        return True, {"name": name, "spec": Vm(self.fs, name).spec, "word": None,
                      "mode": (self.fs.mnt / name).stat().st_mode, "snapshots": {}}

    def edit(self, chance, truth):
        truth["spec"] = (f"backend: sim\ncpus: {chance.randrange(1, 64)}\n"
                         f"# {'x' * chance.randrange(5000)}\n")
        self.vm.write("spec.yaml", truth["spec"])

    def chmod(self, chance, truth):
        os.chmod(self.vm.dir, chance.choice([0o700, 0o711, 0o750, 0o755]))
        truth["mode"] = self.vm.dir.stat().st_mode

    def move(self, chance, truth):
        truth["name"] = f"v{self.n}-{chance.randrange(1000000)}"
        os.rename(self.vm.dir, self.fs.mnt / truth["name"])

    def remember(self, vm):
        self.words += 1
        vm.sim(f"remember word{self.words}")
        return f"word{self.words}"

    def sleep(self, chance, truth):
        if "backend: sim" not in truth["spec"]:
            return self.edit(chance, truth)
        self.vm.do("start")
        truth["word"] = self.remember(self.vm)
        self.vm.do("sleep")

    def wake(self, chance, truth):
        truth["word"] = None
        self.vm.do("wake")
        self.vm.do("kill")

    def snapshot(self, chance, truth):
        if len(truth["snapshots"]) > 2 or truth["word"] or "backend: sim" not in truth["spec"]:
            return self.chmod(chance, truth)
        self.vm.do("start")
        name = f"s{chance.randrange(1000000)}"
        truth["snapshots"][name] = self.remember(self.vm)
        os.mkdir(self.vm / "snapshots" / name)
        until(lambda: (self.vm / "snapshots" / name / "state").read_text() == "ready\n", "it is taken")
        self.vm.do("kill")

    def drop(self, chance, truth):
        if not truth["snapshots"]:
            return self.edit(chance, truth)
        name = chance.choice(sorted(truth["snapshots"]))
        del truth["snapshots"][name]
        os.rmdir(self.vm / "snapshots" / name)
        return True, truth

    def remove(self, chance, truth):
        os.rmdir(self.vm.dir)
        return True, None

    def allowed(self, moment):
        """What may be true of it after a power cut."""
        last = max(n for n, (_, after, _, _) in enumerate(self.told) if after <= moment)
        first = last
        while self.told[first][2]:
            first -= 1
        later = [truth for before, after, _, truth in self.told if before < moment < after]
        return [truth for *_, truth in self.told[first:last + 1]] + later


def seen(vm, sim):
    """What is true of it now. Ends it."""
    state = vm.state
    assert state in ("stopped", "crashed", "asleep"), vm.read("status")
    truth = {"name": vm.name, "spec": vm.spec, "mode": vm.dir.stat().st_mode, "word": None,
             "snapshots": {}}
    if state == "asleep":
        vm.do("wake")
        truth["word"] = sim.recall(vm)
        vm.do("kill")
    for name in os.listdir(vm / "snapshots"):
        vm.do(f"restore {name}")
        truth["snapshots"][name] = sim.recall(vm)
        vm.do("kill")
    return truth


@pytest.mark.parametrize("steps, cuts", [(40, 25), pytest.param(120, 200, marks=pytest.mark.slow)])
def test_power_cuts(box, scratch, steps, cuts):
    """At moments of chance, among and in the midst of changes; nothing that was told is lost."""
    chance = random.Random(steps)
    recorder = Recorder(box.base, box.state)
    box.env = recorder.env
    box.start()
    stories = [Story(box, recorder, n) for n in range(4)]
    for _ in range(steps):
        story = chance.choice([s for s in stories if not s.over])
        story.step(chance)
        if story.over:
            stories.append(Story(box, recorder, len(stories)))
    box.stop()
    moments = [at for at, _, _ in recorder.records()]
    for cut in range(cuts):
        moment = chance.choice(moments)
        base = scratch / str(cut)
        (base / "s").mkdir(parents=True)
        Disk(recorder, moment).lose(chance, base / "s")
        after = Vmfs(base)
        after.state.joinpath("boot").unlink(missing_ok=True)
        try:
            after.start()
            check(after, stories, moment)
        finally:
            problems = after.close()
        assert not problems, problems
        shutil.rmtree(base)
    survived("power cuts, sim VMs", cuts=cuts, steps=steps, lost=0)


def check(fs, stories, moment):
    sim = Sim(fs)
    found = {name: seen(fs.vm(name), sim) for name in fs.names()}
    for story in stories:
        mine = [truth for name, truth in found.items() if name.split("-")[0] == f"v{story.n}"]
        assert len(mine) <= 1
        truth = mine[0] if mine else None
        assert truth in story.allowed(moment), f"at {moment}"
    until(lambda: not [p for p in fs.state.rglob("*") if p.suffix in (".tmp", ".new")],
          "what was cut off is cleared away")
