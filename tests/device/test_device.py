"""A run on the pretended accelerator is the run on the CPU: metrics, weights, evaluation, exports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SMALL = ["train.iterations=2", "data.prompts=4", "data.group=4", "eval.every=2", "eval.prompts=4", "train.threads=1"]
RUNS = {
    "image": ["configs/quickstart.yaml"],
    "image_steps": ["configs/quickstart.yaml", "algorithm={use: flow_grpo}", "train.updates=2"],
    "masked": ["configs/quickstart_masked_lm.yaml"],
    "causal": ["configs/quickstart_causal_lm.yaml"],
    "critic": ["configs/quickstart_causal_lm.yaml", "algorithm={use: ppo, length: 16}"],
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended accelerator is built with g++"),
]


def commands(run: str, device: str, out: Path) -> list[list[str]]:
    """Train, go on, evaluate, export."""
    train = ["train", *RUNS[run], *SMALL, f"model.device={device}", f"out={out}"]
    return [
        train,
        [*train, "train.iterations=3", "--resume", "auto", "--allow-changed"],
        ["eval", str(out), "--suite", "rewards", "--limit", "4", "--samples", "1"],
        ["export", str(out), "--to", "peft", "--out", str(out / "exported")],
    ]


def play(lines: list[list[str]], report: Path) -> list[dict[str, Any]]:
    """Run the commands in a process that has the device."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.device", "run", str(report)],
        input=json.dumps(lines), cwd=ROOT, env=env, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(report.read_text())
    assert [entry["code"] for entry in found] == [0] * len(lines), done.stdout[-2000:] + done.stderr[-4000:]
    return found


def untimed(run: Path) -> list[dict[str, float]]:
    """The metrics that are not times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time") and "seconds" not in k} for row in rows]


@pytest.mark.parametrize("run", RUNS)
def test_a_run_on_the_device_is_the_run_on_the_cpu(run: str, tmp_path: Path) -> None:
    found = {
        device: play(commands(run, device, tmp_path / device), tmp_path / f"{device}.json")
        for device in ("cpu", "fakegpu")
    }
    assert not found["cpu"][0]["events"] and found["fakegpu"][0]["events"]["h2d"] > 0
    assert untimed(tmp_path / "fakegpu") == untimed(tmp_path / "cpu")
    assert verdicts(tmp_path / "fakegpu") == verdicts(tmp_path / "cpu")
    mine, theirs = (weights(tmp_path / device) for device in found)
    assert mine.keys() == theirs.keys() and all(bool((mine[key] == theirs[key]).all()) for key in mine)


def verdicts(run: Path) -> Any:
    """What the evaluation found, without where and when."""
    return json.loads(next((run / "eval").rglob("results.json")).read_text())["suites"]


def weights(run: Path) -> dict[str, Any]:
    """All tensors of the last checkpoint and of the export, by file and name."""
    last = sorted((run / "checkpoints").glob("step_*"))[-1]
    files = [*sorted(last.rglob("*.safetensors")), *sorted((run / "exported").rglob("*.safetensors"))]
    assert len(files) >= 2
    return {f"{file.name}/{key}": value for file in files for key, value in load_file(file).items()}
