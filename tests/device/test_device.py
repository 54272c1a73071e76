"""A run on the pretended accelerator is the run on the CPU: metrics, weights, evaluation, exports, rewards with a
model; and its loops wait for the device no more often than they may."""

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

from tests.tiny_scorers import save_clip

ROOT = Path(__file__).parents[2]
SMALL = ["train.iterations=1", "data.prompts=2", "data.group=4", "eval.every=1", "eval.prompts=2", "train.threads=1",
         "train.micro_batch=4"]  # fmt: skip
RUNS = {
    "image": ["configs/quickstart.yaml", "train.updates=1"],
    "masked": ["configs/quickstart_masked_lm.yaml"],
    "causal": ["configs/quickstart_causal_lm.yaml", "algorithm={use: ppo, length: 8}"],
}
BUDGETS = {
    "diffusion step, deterministic": 0,
    "diffusion step, recorded": 0,
    "masked step": 1,
    "causal token": 1,
    "causal token, prompts padded": 1,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended accelerator is built with g++"),
]


def start(arguments: list[str], given: object = None, **variables: str) -> str:
    """What `python -m tests.device` prints, in a process that has the device."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "tests.device", *arguments],
        input=json.dumps(given), cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def commands(run: str, device: str, out: Path) -> list[list[str]]:
    """Train, go on, evaluate, export."""
    train = ["train", *RUNS[run], *SMALL, f"model.device={device}", f"out={out}"]
    if run == "image":  # and a reward with a model on the device
        scorer = f"{{use: clipscore, weight: 0.1, device: {device}, options: {{path: {out.parents[1] / 'clip'}}}}}"
        train.append(f"rewards=[{{use: shapes}}, {scorer}]")
    return [
        train,
        [*train, "train.iterations=2", "--resume", "auto", "--allow-changed"],
        ["eval", str(out), "--suite", "rewards", "--limit", "2", "--samples", "1"],
        ["export", str(out), "--to", "merged", "--out", str(out / "exported")],
    ]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All commands of all runs on both devices, in one process: where they ran, and what the device saw."""
    out = tmp_path_factory.mktemp("device")
    save_clip(out / "clip")
    folders = {(run, device): out / run / device for run in RUNS for device in ("cpu", "fakegpu")}
    lines = [line for (run, device), folder in folders.items() for line in commands(run, device, folder)]
    start(["run", str(out / "report.json")], lines)
    found = json.loads((out / "report.json").read_text())
    assert [entry["code"] for entry in found] == [0] * len(lines)
    seen = {key: found[4 * i] for i, key in enumerate(folders)}
    return {"folders": folders, "seen": seen}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_on_the_device_is_the_run_on_the_cpu(played: dict[str, Any], run: str) -> None:
    host, device = (played["folders"][run, where] for where in ("cpu", "fakegpu"))
    saw = played["seen"][run, "fakegpu"]
    assert not played["seen"][run, "cpu"]["events"] and saw["events"]["h2d_async"] > 0 and saw["peak"] > 1e5
    assert untimed(device) == [pytest.approx(row, rel=1e-5, abs=1e-6) for row in untimed(host)]
    assert verdicts(device) == verdicts(host)
    mine, theirs = weights(device), weights(host)
    assert mine.keys() == theirs.keys()
    assert all(float((mine[key].double() - theirs[key].double()).abs().max()) < 1e-5 for key in mine)


def untimed(run: Path) -> list[dict[str, float]]:
    """The metrics that are not times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("time", "memory")) and "seconds" not in k} for row in rows
    ]


def verdicts(run: Path) -> Any:
    """What the evaluation found, without where and when."""
    return json.loads(next((run / "eval").rglob("results.json")).read_text())["suites"]


def weights(run: Path) -> dict[str, Any]:
    """All tensors of the last checkpoint and of the export, by file and name."""
    last = sorted((run / "checkpoints").glob("step_*"))[-1]
    files = [*sorted(last.rglob("*.safetensors")), *sorted((run / "exported").rglob("*.safetensors"))]
    assert len(files) >= 2
    return {f"{file.name}/{key}": value for file in files for key, value in load_file(file).items()}


def test_loops_wait_for_the_device_no_more_often_than_they_may() -> None:
    found = json.loads(start(["waits"]))
    for loop, count in found.items():
        if loop in BUDGETS:
            assert count["waits"] <= BUDGETS[loop], (loop, count)
            assert not count["blocking copies"], (loop, count)
        else:
            unit = loop.split(": ")[1]
            most = 1 if unit == "optimiser batch" else 0
            assert count["waits"] <= most and not count["blocking copies"], (loop, count)


def test_an_iteration_without_float64_and_with_replaced_parameters_is_that_on_the_cpu() -> None:
    """Apple's devices have no float64; where `.to` replaces parameters, those held from before would train nothing.
    One preset of each family; all of them: ``python -m tests.device sweep``."""
    found = start(["sweep", "flow_grpo", "ppo", "trajectory_pg"], FAKEGPU_FLOAT64="0", FAKEGPU_SWAP="0")
    assert "all equal" in found
