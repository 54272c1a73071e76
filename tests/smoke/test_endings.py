"""How runs end that do not end by themselves: closed pipes and terminals, code that leaves, memory that runs out.
Whatever it is, finished work is saved and one sentence is said."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import flowrl
from flowrl.config import Config
from flowrl.errors import UserError, is_out_of_memory
from flowrl.runtime.streams import SurvivingStream, survive_closed_streams
from tests import forks
from tests.launching import PATHS

CONFIG = """
name: tiny
model: {path: shapes, lora: {rank: 2, alpha: 4}}
algorithm: {use: diffusion_nft, sampler: {steps: 2}}
rewards: ['mine.py:reward']
data: {prompts: 2, group: 2}
train: {iterations: 6, ema: 0.5, threads: 1}
eval: {every: 0}
checkpoint: {every: 0}
monitor: {samples: 0}
log: {samples: 0}
"""
REWARD = """
import os, sys, time

def reward(images, prompts):
    {body}
    return images.mean(dim=(1, 2, 3))
"""


def prepare(folder: Path, body: str = "pass", config: str = CONFIG) -> dict[str, str]:
    (folder / "tiny.yaml").write_text(config)
    (folder / "mine.py").write_text(REWARD.replace("{body}", body))
    return os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "flowrl", "train", "tiny.yaml", "out=run", *more]


def run(folder: Path, body: str = "pass", *more: str) -> subprocess.CompletedProcess[str]:
    return forks.flowrl(folder, *command(*more)[3:], environment=prepare(folder, body))


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run/checkpoints").glob("step_*"))


def assert_said(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.slow
def test_a_closed_pipe_does_not_end_a_run(tmp_path: Path) -> None:
    environment = prepare(tmp_path, "print('reward', flush=True)")
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + " ".join(command()) + " 2>&1 | head -n 1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    assert checkpoints(tmp_path) == ["step_000006"]


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_the_run(tmp_path: Path) -> None:
    environment = prepare(tmp_path, "time.sleep(0.3)")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command("train.iterations=1000"), cwd=tmp_path, env=environment, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    metrics = tmp_path / "run/metrics.jsonl"
    end = time.monotonic() + 120
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 2:
        assert process.poll() is None and time.monotonic() < end
        os.read(master, 1 << 16)  # what a terminal does
    os.close(master)  # now writing to it fails
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    done = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert checkpoints(tmp_path) == [f"step_{done:06d}"]


@pytest.mark.slow
def test_code_that_leaves_is_reported_and_finished_work_saved(tmp_path: Path) -> None:
    # In the third iteration: the first one asks twice, for its self-check.
    third = "reward.calls = getattr(reward, 'calls', 0) + 1\n    if reward.calls > 3: "
    left = run(tmp_path, third + "os._exit(7)")
    assert_said(left, "reward 'reward' raised ExitCalledError", "os._exit(7)", "mine.py")
    assert checkpoints(tmp_path) == ["step_000002"]
    other = tmp_path / "exit"
    other.mkdir()
    assert_said(run(other, third + "sys.exit('enough')"), "reward 'reward' raised SystemExit: enough")
    assert checkpoints(other) == ["step_000002"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "words"),
    [("os._exit(7)", "with code 7"), ("os.kill(os.getpid(), 11)", "by signal 11 (SIGSEGV)")],
)
def test_a_process_of_a_reward_that_ends_is_reported(tmp_path: Path, body: str, words: str) -> None:
    done = run(tmp_path, body, "rewards=[{use: 'mine.py:reward', process: true}]")
    assert_said(done, "reward 'reward': its process ended", words)


@pytest.mark.slow
def test_a_crash_in_the_trainer_shows_its_line_and_is_remembered(tmp_path: Path) -> None:
    done = run(tmp_path, "import ctypes; ctypes.string_at(0)")
    assert done.returncode == -signal.SIGSEGV and "mine.py" in done.stderr and "Segmentation fault" in done.stderr
    again = run(tmp_path, "pass", "train.iterations=1", "--resume", "auto")
    assert again.returncode == 0 and "ended without a word" in again.stderr, again.stderr
    assert "ended without a word" not in run(tmp_path, "pass", "train.iterations=2", "--resume", "auto").stderr


@pytest.mark.slow
def test_a_reward_may_change_the_working_directory(tmp_path: Path) -> None:
    body = "os.makedirs('elsewhere', exist_ok=True); os.chdir('elsewhere')"
    done = run(tmp_path, body, "train.iterations=2", "checkpoint.every=1")
    assert done.returncode == 0 and done.stdout.startswith("run "), done.stderr
    assert checkpoints(tmp_path) == ["step_000001", "step_000002"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "elsewhere", "mine.py", "tiny.yaml", "__pycache__"} - (
        set() if (tmp_path / "__pycache__").exists() else {"__pycache__"}
    )


@pytest.mark.slow
def test_markup_and_escape_codes_are_text(tmp_path: Path) -> None:
    name = "[/red][bold]x\x1b[31m"
    rewards = json.dumps([{"use": "mine.py:reward", "name": name}])
    (tmp_path / "prompts.txt").write_text("[/b] a \x1b]0;title\x07 circle\n[red]square\n")
    more = ("train.iterations=2", f"rewards={rewards}", "data.train=prompts.txt", "data.test=null", "log.samples=2")
    done = run(tmp_path, "pass", *more)
    assert done.returncode == 0, done.stderr
    reported = subprocess.run(
        [sys.executable, "-m", "flowrl", "report", "run"], cwd=tmp_path, env=prepare(tmp_path), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert reported.returncode == 0, reported.stderr
    page = (tmp_path / "run/report.html").read_text()
    assert "[/red][bold]x" in page and "\x1b" not in page
    assert not any("\x1b" in text for text in (done.stdout, done.stderr, reported.stdout, reported.stderr))


@pytest.mark.parametrize(
    "method", [pytest.param("sample", marks=pytest.mark.slow), pytest.param("decode", marks=pytest.mark.slow), "update"]
)
def test_memory_that_runs_out_names_the_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The allocator's own errors, from where each phase computes, at the third iteration; two are saved."""
    from flowrl import train as training
    from flowrl.models.diffusion.policy import DiffusionPolicy

    prepare(tmp_path)
    config = Config.load(tmp_path / "tiny.yaml", [f"out={tmp_path}/run", f"rewards=['{tmp_path}/mine.py:reward']"])
    owner, name = {
        "sample": (DiffusionPolicy, "initial"),
        "decode": (DiffusionPolicy, "decode"),
        "update": (sys.modules["flowrl.train"], "improve"),
    }[method]
    real, calls = getattr(owner, name), []

    def limited(*args: object, **kwargs: object) -> object:
        calls.append(0)
        if len(calls) > (4 if method == "decode" else 2):  # one when it is loaded, one of the first self-check
            torch.empty(1 << 60)  # more than there is
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, limited)
    words = {
        "sample": "sampling.*train.sample_batch=256",
        "decode": "decoding",
        "update": "updat.*train.micro_batch=64",
    }
    with pytest.raises(UserError, match=f"out of memory while {words[method]}"):
        training(config)
    assert checkpoints(tmp_path) == ["step_000002"]


@pytest.mark.parametrize(
    ("failing", "kept"), [pytest.param(5, ["step_000002"], marks=pytest.mark.slow), (6, [])], ids=["first", "second"]
)
def test_an_iteration_that_fails_is_saved_before_it_has_changed_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, kept: list[str]
) -> None:
    """In the first of an iteration's two updates, or in the second: then the checkpoint would be of neither."""
    from flowrl import step
    from flowrl import train as training

    prepare(tmp_path)
    overrides = [f"out={tmp_path}/run", f"rewards=['{tmp_path}/mine.py:reward']", "train.updates=2"]
    config = Config.load(tmp_path / "tiny.yaml", overrides)
    real, calls = step._apply, []

    def limited(*args: Any) -> Any:
        calls.append(0)
        if len(calls) == failing:
            raise UserError("enough")
        return real(*args)

    monkeypatch.setattr(step, "_apply", limited)
    with pytest.raises(UserError, match="enough"):
        training(config)
    assert checkpoints(tmp_path) == kept


def test_what_counts_as_memory_that_ran_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert (
        is_out_of_memory(caught.value)
        and is_out_of_memory(MemoryError())
        and is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    )
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(OSError(2, "no such file"))


def test_streams_fall_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    pipe = os.fdopen(write, "w")
    os.close(read)
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setattr(sys, "stderr", None)
    with survive_closed_streams():
        print("x" * 100_000, flush=True)
        print("gone", file=sys.stderr)
        assert isinstance(sys.stdout, SurvivingStream)
    pipe.close()  # what was buffered leads nowhere now
    with open("/dev/full", "w") as full, pytest.raises(UserError, match="No space left"):
        monkeypatch.setattr(sys, "stdout", full)
        with survive_closed_streams():
            print("x" * 100_000, flush=True)
    assert flowrl.__version__
