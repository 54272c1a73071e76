"""Several processes, as `torchrun` starts them: what their tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests import forks

ROOT = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(ROOT / "tests" / "lean"), str(ROOT)])
"""PYTHONPATH of the processes that tests start."""
CONFIG = """
name: tiny
model: {path: shapes, device: cpu, lora: {rank: 2, alpha: 4}}
algorithm: {use: flow_grpo, sampler: {steps: 4}}
rewards: ['mine.py:reward']
data: {prompts: 3, group: 4}
train: {iterations: 6, ema: 0.5, threads: 1, updates: 2, rank_timeout: 8}
optimizer: {schedule: constant}
eval: {every: 2, prompts: 4}
checkpoint: {every: 1}
monitor: {samples: 12}
log: {samples: 3, samples_every: 2}
"""
REWARD = """
import os, signal, time, torch
calls = [0]

def reward(images, prompts):
    calls[0] += 1
    rank = os.environ.get("RANK")
    {body}
    return images.mean(dim=(1, 2, 3))
"""
OF_THE_MACHINE = ("time", "reward/seconds", "memory")
"""Beginnings of metrics that say nothing of the run."""


def prepare(folder: Path, body: str = "pass", config: str = CONFIG) -> None:
    """A config and its reward, which does ``body`` first."""
    (folder / "tiny.yaml").write_text(config)
    (folder / "mine.py").write_text(REWARD.replace("{body}", body))


def environment() -> dict[str, str]:
    """Of a process of ours, without what a launcher around the tests says."""
    said = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {key: value for key, value in os.environ.items() if key not in said} | {
        "PYTHONPATH": PATHS,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10",
    }


def command(size: int, *more: str, flowrl: Sequence[str] = ("train", "tiny.yaml", "out=run")) -> list[str]:
    """`flowrl` in ``size`` processes; without a launcher in one."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
    return [sys.executable, *launcher, "-m", "flowrl", *flowrl, *more]


def run(folder: Path, size: int, *more: str, **options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(size, *more, **options), cwd=folder, env=environment(), capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip


def forked(folder: Path, size: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Train to the end in processes that no launcher starts (`tests.forks`): where it is the run that matters."""
    return forks.flowrl(folder, "train", "tiny.yaml", "out=run", *more, environment=environment(), size=size)


def start(folder: Path, size: int, *more: str) -> subprocess.Popen[str]:
    """Start it; standard error goes to ``errors.txt``."""
    with (folder / "errors.txt").open("w") as errors:
        return subprocess.Popen(
            command(size, *more), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=errors, text=True
        )


def ranks_of(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Process number by rank."""
    found = {}
    for task in Path(f"/proc/{launcher.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(OSError):  # it has ended
                said = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found |= {int(entry[5:]): int(child) for entry in said if entry.startswith(b"RANK=")}
    return found


def wait_for(condition: Callable[[], bool], launcher: subprocess.Popen[str], seconds: float = 240) -> None:
    """Until something has happened, while the launcher runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert launcher.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def lines(folder: Path) -> list[dict[str, float]]:
    """Of ``metrics.jsonl``, without what is of the machine."""
    found = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [settled(line) for line in found]


def settled(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the config alone decides, whatever the machine: no times, no memory."""
    return {key: value for key, value in metrics.items() if not key.startswith(OF_THE_MACHINE)}


def iterations(folder: Path) -> int:
    """How many lines the run has logged."""
    path = folder / "run/metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints there are."""
    return sorted(path.name for path in (folder / "run/checkpoints").glob("step_*"))


def state(folder: Path, step: int = 6) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    return load_file(folder / f"run/checkpoints/step_{step:06d}/state/state.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    """The same metrics and the same state, bit for bit."""
    assert lines(first) == lines(second)
    ours, theirs = state(first), state(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def errors_said(text: str) -> list[str]:
    """Our sentences among what a launcher prints."""
    return [line for line in text.splitlines() if line.startswith("error: ")]
