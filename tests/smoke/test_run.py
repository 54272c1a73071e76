"""A run through the command line: stopped or killed and resumed it ends with the same bytes; then used."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
name: tiny
model: {path: shapes, lora: {rank: 2, alpha: 4}}
algorithm: diffusion_nft
rewards: [{use: reward.py:watched}]
data: {prompts: 2, group: 2}
train: {iterations: 3, ema: 0.5, threads: 1}
eval: {every: 2, prompts: 2}
checkpoint: {every: 1}
"""
REWARD = """
import os, signal
calls = 0
def watched(images, prompts):
    global calls
    calls += 1
    if str(calls) == os.environ.get("STOP_AT"):
        os.kill(os.getpid(), getattr(signal, os.environ["STOP_BY"]))
    return images.mean(dim=(1, 2, 3))
"""
STATE = "checkpoints/step_000003/state"


def flowrl(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "flowrl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    path = tmp_path_factory.mktemp("runs")
    (path / "tiny.yaml").write_text(CONFIG)
    (path / "reward.py").write_text(REWARD)
    done = flowrl(path, "train", "tiny.yaml", "out=whole")
    assert done.returncode == 0, done.stderr
    return path


def _state(run: Path) -> tuple[bytes, dict]:
    values = json.loads((run / STATE / "values.json").read_text())
    values["progress"].pop("seconds")
    return (run / STATE / "state.safetensors").read_bytes(), values


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 0), ("SIGKILL", -signal.SIGKILL)])
def test_a_stopped_run_resumes_to_the_same_bytes(folder: Path, how: str, code: int) -> None:
    command = ("train", "tiny.yaml", f"out={how}", "--resume", "auto")
    stopped = flowrl(folder, *command, STOP_AT="3", STOP_BY=how)  # evaluation, iteration 1, iteration 2
    assert stopped.returncode == code, stopped.stderr
    assert not (folder / how / STATE).exists()
    resumed = flowrl(folder, *command)
    assert resumed.returncode == 0, resumed.stderr
    assert _state(folder / how) == _state(folder / "whole")
    lines = [[json.loads(x) for x in (folder / r / "metrics.jsonl").read_text().splitlines()] for r in (how, "whole")]
    for ours, theirs in zip(*lines, strict=True):
        assert {k: v for k, v in ours.items() if "time" not in k} == {
            k: v for k, v in theirs.items() if "time" not in k
        }


@pytest.mark.slow
def test_a_finished_run_is_sampled_exported_and_reported(folder: Path) -> None:
    sampled = flowrl(folder, "sample", "whole", "--prompt", "a red circle", "--out", "img", "--count", "2")
    assert sampled.returncode == 0 and len(list((folder / "img").glob("*.png"))) == 2, sampled.stderr
    exported = flowrl(folder, "export", "whole", "--to", "peft", "--out", "lora", "--weights", "live")
    assert exported.returncode == 0 and (folder / "lora/adapter_config.json").is_file(), exported.stderr
    again = flowrl(folder, "export", "whole", "--to", "peft", "--out", "lora")
    assert again.returncode == 2 and "not empty" in again.stderr
    reported = flowrl(folder, "report", "whole")
    assert reported.returncode == 0 and (folder / "whole/report.html").stat().st_size > 10_000, reported.stderr


@pytest.mark.slow
def test_two_configs_are_compared_over_seeds(folder: Path) -> None:
    (folder / "other.yaml").write_text(CONFIG.replace("tiny", "other").replace("diffusion_nft", "awm"))
    command = ("compare", "tiny.yaml", "other.yaml", "train.iterations=2", "--seeds", "2", "--out", "c")
    done = flowrl(folder, *command)
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stdout and "other" in done.stdout and "±" in done.stdout
    assert len(list((folder / "c").glob("*/seed*/metrics.jsonl"))) == 4
