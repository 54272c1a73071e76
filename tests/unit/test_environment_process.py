"""Environments in a process of their own: the same episodes, and what becomes of those that hang, end or raise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowrl.composition import build
from flowrl.environments import open_environment
from flowrl.environments import process as processes
from flowrl.environments.process import ProcessEnvironment, pack, unpack
from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.processes import is_running
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.train import iterate
from flowrl.types import Draw, Episodes, Prompt
from tests.contract.toy_environment import toy_policy
from tests.unit.test_control_iterations import session_of

HOSTILE = """
import ctypes, os, signal, sys, time
import numpy as np
from tests.contract.toy_environment import Plane


class Hostile(Plane):
    def reset(self, seeds, prompts):
        self.does = prompts[0].columns["does"]
        if self.does == "hangs at reset":
            time.sleep(3600)
        return super().reset(seeds, prompts)

    def step(self, actions, rows):
        observed, reward, ended, cut, known = super().step(actions, rows)
        match self.does:
            case "sleeps":
                time.sleep(3600)
            case "leaves":
                ctypes.CDLL(None)._exit(7)  # as a simulator does: Python's own os._exit is an exception there
            case "os._exit":
                os._exit(7)
            case "crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exits":
                sys.exit("enough")
            case "raises":
                raise RuntimeError("out of fuel")
            case "NaN":
                observed = observed * np.nan
            case "shape":
                reward = np.ones(7)
            case "no numbers":
                reward = [None] * len(rows)
        return observed, reward, ended, cut, known


def make(count):
    return Hostile(count)
"""
KINDS = {
    "sleeps": "step fails: it took longer than 2 s, and its process was killed",
    "hangs at reset": "reset fails: it took longer than 2 s",
    "leaves": "step fails: its process ended with code 7",
    "os._exit": r"step fails: ExitCalledError: it called os._exit\(7\)",
    "crashes": r"step fails: its process ended by signal 11 \(SIGSEGV\)",
    "exits": "step fails: SystemExit: enough",
    "raises": r"step fails: RuntimeError: out of fuel \(.*hostile.py:28 in step\)",
    "NaN": "step gives an observation or reward that is NaN or infinite, in row 0",
    "shape": r"an answer has the shape \[7\], and \[3\] is asked for",
    "no numbers": "step gives an observation or reward that is NaN",
}
QUICK = ("leaves",)


def hostile(folder: Path) -> str:
    (folder / "hostile.py").write_text(HOSTILE)
    return f"{folder / 'hostile.py'}:make"


def drawn(count: int, does: str = "") -> Draw:
    prompts = [Prompt("p", n, {"does": does}) for n in range(count)]
    return Draw.of(seeds(0, "episodes", count=count), torch.arange(count), 0, 0, prompts)


def episodes(sampler: EpisodeSampler, draw: Draw) -> Any:
    policy = toy_policy(critic=False)
    return sampler(policy, policy.condition(draw.prompts), draw)


def test_a_frame_holds_plain_values_and_arrays() -> None:
    arrays = [np.arange(6.0).reshape(2, 3), np.arange(2), np.zeros((0, 3)), np.array(np.nan), np.arange(8.0)[::2]]
    said, found = unpack(pack({"do": "a\nb"}, arrays))
    assert said == {"do": "a\nb"} and len(found) == len(arrays)
    for mine, other in zip(found, arrays, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape and np.array_equal(mine, other, equal_nan=True)
    with pytest.raises(TypeError):
        pack({"do": object()})


@pytest.mark.slow
def test_episodes_are_the_same_and_the_process_is_asked_again() -> None:
    here = EpisodeSampler(sampler=FlowSampler(steps=3), environment="tests.contract.toy_environment:make", decisions=3)
    there = replace(here, timeout_s=60.0)
    assert there.heldout(None, None, None).timeout_s == 60
    waiting = processes._processes._waiting.setdefault(here.environment, [])
    for count in (5, 2):
        mine, other = episodes(here, drawn(count)), episodes(there, drawn(count))
        torch.testing.assert_close(mine.feedback, other.feedback, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(mine.final, other.final) and torch.equal(mine.trace.observed, other.trace.observed)
        assert torch.equal(mine.trace.actions, other.trace.actions)
        assert len(waiting) == 1
    one, two = (ProcessEnvironment(here.environment, 1, 60.0) for _ in range(2))
    assert not waiting and one._child is not two._child  # each has its own, also in another thread
    kept = one._child
    one.close()
    assert waiting == [kept]
    assert two._child is not None
    two._child.close()
    two.close()
    three = ProcessEnvironment(here.environment, 1, 60.0)
    assert three._child is not None and not three._child.ended  # that one had ended
    three.close()


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_what_is_hostile_follows_the_declared_policy(kind: str, tmp_path: Path) -> None:
    sampler = EpisodeSampler(
        sampler=FlowSampler(steps=1), environment=hostile(tmp_path), decisions=2, timeout_s=2.0, on_error="raise"
    )
    start = time.monotonic()
    with pytest.raises(UserError, match=KINDS[kind]):
        episodes(sampler, drawn(3, kind))
    with nullcontext() if "NaN" in KINDS[kind] else pytest.warns(UserWarning, match=KINDS[kind]):
        rollout = episodes(replace(sampler, on_error="drop"), drawn(3, kind))
    assert isinstance(rollout.trace, Episodes) and not bool(rollout.trace.alive.any())
    assert rollout.feedback is not None and bool(rollout.feedback.isnan().all())
    good = episodes(sampler, drawn(3))  # of another process, where that one has ended
    assert bool(good.trace.alive.any()) and time.monotonic() - start < 120


def test_an_environment_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import os\n\ndef make(count):\n    os.abort() if count == 2 else 1 / 0\n")
    with pytest.raises(UserError, match=r"bad.py:make: make\(1\) fails: ZeroDivisionError"):
        open_environment(f"{tmp_path / 'bad.py'}:make", 1, timeout_s=5.0)
    with pytest.raises(UserError, match=r"bad.py:make: making it fails: its process ended by signal 6 \(SIGABRT\)"):
        open_environment(f"{tmp_path / 'bad.py'}:make", 2, timeout_s=5.0)
    with pytest.raises(UserError, match="a column is no plain value"):
        made = open_environment("tests.contract.toy_environment:make", 1, timeout_s=5.0)
        made.reset(torch.zeros(1, dtype=torch.int64), [Prompt("p", 0, {"set": {1}})])
    with pytest.raises(UserError, match=r"timeout_s=0.* leaves no time"):
        build({"use": "dppo", "sampler": {"timeout_s": 0.0}})


HANGING = """
import time
from tests.contract.toy_environment import Plane

class Hanging(Plane):
    def step(self, actions, rows):
        if (self._own[rows] > 1).any():
            time.sleep(3600)
        return super().step(actions, rows)

def make(count):
    return Hanging(count)
"""


@pytest.mark.slow
def test_an_iteration_goes_on_without_the_batches_that_hang(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    session = session_of(
        environment=f"{tmp_path / 'hanging.py'}:make", on_nan="drop_sample", on_error="drop", timeout_s=1.0
    )
    with pytest.warns(UserWarning, match="took longer than 1 s"):
        metrics, made, _ = iterate(session, PhaseTimer())
    assert 0 < int(made.scores.valid.sum()) < 12 and metrics["grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None])
def test_nothing_is_left_behind(how: signal.Signals | None, tmp_path: Path) -> None:
    """Whether the run ends by itself, by Ctrl-C or is killed, while the environment hangs."""
    script = f"""
    from flowrl.environments.process import ProcessEnvironment
    import numpy as np
    from flowrl.types import Prompt
    made = ProcessEnvironment({hostile(tmp_path)!r}, 1, 3600.0)
    made.reset([1], [Prompt("p", 0, {{"does": {"sleeps" if how else "nothing"!r}}})])
    print(made._child._process.pid, flush=True)
    made.step(np.zeros((1, 2)), np.zeros(1, np.int64))
    made.close()
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert run.stdout is not None
    child = int(run.stdout.readline())
    if how is not None:
        time.sleep(0.3)
        os.kill(run.pid, how)
    run.wait(30)
    run.stdout.close()
    until = time.monotonic() + 10
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(child)
