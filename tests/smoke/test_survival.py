"""Runs that are killed, starved or fed nonsense: nothing is lost, and the continuation is the run that was not
disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import forks

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.prompts=3",
    "data.group=4",
    "train.updates=2",
    "train.iterations=4",
    "eval.every=2",
    "eval.prompts=4",
    "eval.samples=1",
    "checkpoint.every=1",
    "optimizer.schedule=constant",  # one test lengthens a run, which would change a decaying rate
    "log.samples=2",
]


def command(out: Path, *more: str) -> list[str]:
    return ["train", str(ROOT / "configs/quickstart.yaml"), f"out={out}", *SMALL, *more]


def train(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """To its end, forked; those that are to be disturbed `start` as a user's do."""
    return forks.flowrl(ROOT, *command(out, *more))


def final_state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step_000004" / "state" / "state.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    ours, theirs = final_state(first), final_state(second)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    stories = []
    for run in (first, second):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        stories.append(
            [{k: v for k, v in line.items() if not k.startswith(("time", "reward/seconds"))} for line in lines]
        )
    assert stories[0] == stories[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = train(out)
    assert done.returncode == 0, done.stderr
    return out


def start(out: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sink = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-m", "flowrl", *command(out)], cwd=ROOT, env=environment, stdout=sink, stderr=sink
    )


def wait_for(condition, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < end
        time.sleep(0.0005)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_step(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    metrics = out / "metrics.jsonl"
    ends = []
    for lines in (2, 3):  # of the start, and of iterations 1 and 2
        wait_for(lambda count=lines: metrics.exists() and metrics.read_text().count("\n") >= count, process)
        ends.append(time.monotonic())
    time.sleep((ends[1] - ends[0]) / 4)  # iteration 3 is under way, or the checkpoint before it is being written
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "checkpoints" / "step_000004").exists()
    done = train(out, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert_same_run(undisturbed, out)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_save(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    checkpoints = out / "checkpoints"
    wait_for(lambda: any(checkpoints.glob(".tmp-000002*")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(checkpoints.glob(".tmp-*")) and not (checkpoints / "step_000002").exists()
    done = train(out, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert_same_run(undisturbed, out)


@pytest.mark.slow
def test_asked_to_stop(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    metrics = out / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert len(list((out / "checkpoints").glob("step_*"))) >= 1
    assert train(out, "--resume", "auto").returncode == 0
    assert_same_run(undisturbed, out)


@pytest.mark.slow
def test_a_truncated_checkpoint_falls_back_to_the_one_before(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(out, "train.iterations=3").returncode == 0
    newest = sorted((out / "checkpoints").glob("step_*"))[-1] / "state" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    explicit = train(out, "--resume", str(newest.parents[1]))
    assert explicit.returncode == 2 and "state/state.safetensors has 1000 of" in explicit.stderr.replace("\n", "")
    done = train(out, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert_same_run(undisturbed, out)


@pytest.mark.slow
def test_a_run_is_not_overwritten(undisturbed: Path) -> None:
    again = train(undisturbed)
    assert again.returncode == 2 and "already holds a run" in again.stderr and "Traceback" not in again.stderr


REWARDS = """
import torch
seen = {"calls": 0}

def _later(value):
    seen["calls"] += 1
    return seen["calls"] > 3 and value

def nan_reward(images, prompts, **columns):
    out = images.mean(dim=(1, 2, 3)).clone()
    if _later(True):
        out[0] = float("nan")
    return out

def raising(images, prompts, **columns):
    if _later(True):
        raise RuntimeError("the scorer fell over")
    return images.mean(dim=(1, 2, 3))

def short(images, prompts, **columns):
    return images.mean(dim=(1, 2, 3))[:-1]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "message", "kept"),
    [("nan_reward", "could not", True), ("raising", "the scorer fell over", True), ("short", "short", False)],
)
def test_a_reward_that_fails(tmp_path: Path, function: str, message: str, kept: bool) -> None:
    """One clear sentence, exit 2, and a checkpoint of what was finished."""
    (tmp_path / "mine.py").write_text(REWARDS)
    out = tmp_path / "run"
    rewards = f"rewards=[{{use: '{tmp_path}/mine.py:{function}'}}]"
    done = train(out, rewards, "checkpoint.every=0", "eval.every=0")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and message in done.stderr.replace("\n", " ")
    assert bool(list((out / "checkpoints").glob("step_*"))) == kept


@pytest.mark.slow
def test_a_nan_reward_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARDS)
    rewards = f"rewards=[{{use: '{tmp_path}/mine.py:nan_reward'}}]"
    done = train(tmp_path / "run", rewards, "on_nan=drop_group", "eval.every=0")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["reward/invalid_fraction"] == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.iteratons=3", "did you mean"),
        ("train.updates=100", "train.updates=100"),
        ("data.group=1", "data.group=1"),
        ("model.path=/no/such/folder", "/no/such/folder"),
        ("algorithm.use=difusion_nft", "diffusion_nft"),
        ("data.train=/no/prompts.txt", "/no/prompts.txt"),
        ("rewards=[/no/reward.py:f]", "/no/reward.py"),
    ],
)
@pytest.mark.slow
def test_bad_input_is_one_sentence(tmp_path: Path, override: str, message: str) -> None:
    done = train(tmp_path / "run", override)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and message in done.stderr.replace("\n", "")
    assert not (tmp_path / "run" / "config.yaml").exists()


DEADLY = """
import os
import signal
from pathlib import Path
from flowrl.worlds.avoid import make as avoid

ARMED, KILLS = Path(__file__).with_name("armed"), {kills}
resets = [0]


class Deadly:
    observation_size, action_size = 8, 2

    def __init__(self, count):
        self._world = avoid(count)

    def reset(self, seeds, prompts):
        resets[0] += 1
        self._steps = 0
        return self._world.reset(seeds, prompts)

    def step(self, actions, rows):
        self._steps += 1
        if ARMED.exists() and resets[0] == 5 and self._steps == 30:  # after two evaluations and two iterations
            os.kill(KILLS(), signal.SIGKILL)
        return self._world.step(actions, rows)


def make(count):
    return Deadly(count)
"""


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_killed_in_the_middle_of_an_episode(apart: bool, tmp_path: Path) -> None:
    """By `kill -9`, with the environment in the run's process or in one of its own, which ends as well."""
    kills = "os.getppid" if apart else "os.getpid"
    (tmp_path / "deadly.py").write_text(DEADLY.replace("{kills}", kills))
    armed = tmp_path / "armed"

    def words(out: Path) -> list[str]:
        sizes = [word for word in SMALL if "updates" not in word]
        own = [f"algorithm.environment={tmp_path / 'deadly.py'}:make", "train.updates=2", "train.epochs=2"]
        own += ["algorithm.sampler.timeout_s=60"] if apart else []
        return ["train", str(ROOT / "configs/quickstart_control.yaml"), f"out={out}", *sizes, *own]

    run, whole = tmp_path / "run", tmp_path / "whole"
    armed.touch()
    done = subprocess.run([sys.executable, "-m", "flowrl", *words(run)], cwd=ROOT, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (run / "checkpoints" / "step_000002").exists() and not (run / "checkpoints" / "step_000003").exists()
    armed.unlink()
    for out, more in ((run, ["--resume", "auto"]), (whole, [])):
        again = forks.flowrl(ROOT, *words(out), *more)
        assert again.returncode == 0, again.stderr
    assert_same_run(whole, run)
