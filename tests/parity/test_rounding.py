"""How many decisions lie outside the clip before the first update, and what a run says of it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from flowrl import composition
from flowrl.config import Config
from flowrl.estimators.transitions import Transitions
from flowrl.parts.diagnostics import StepMetrics
from flowrl.parts.objectives import Clipped, ClippedMean, ScoreFunction
from flowrl.ratio_check import RatioCheck
from flowrl.runtime.display import Display
from flowrl.train import train
from flowrl.types import Batch, Likelihood, Rows
from tests import pipelines
from tests.parity.conftest import PROMPTS


def tallied(objective: Any, log_ratio: torch.Tensor, counted: torch.Tensor, blocks: int = 1) -> dict[str, float]:
    step_metrics = StepMetrics()
    algorithm = replace(composition.build("flow_grpo"), objective=objective, regularizers=())
    for live, mask in zip(log_ratio.chunk(blocks), counted.chunk(blocks), strict=True):
        old = Likelihood(torch.zeros_like(live))
        batch = Batch(torch.zeros_like(live), old, mask.double(), torch.arange(len(live)), Rows())
        step_metrics.add_block(algorithm, Likelihood(live), batch, torch.zeros(()))
    step_metrics.close_batch()
    after = Batch(torch.ones(1, 1), Likelihood(torch.zeros(1, 1)), torch.ones(1, 1), torch.arange(1), Rows())
    step_metrics.add_block(
        algorithm, Likelihood(torch.ones(1, 1)), after, torch.zeros(())
    )  # a later batch: not of this measure
    step_metrics.close_batch()
    return step_metrics.metrics()


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_share_by_hand(blocks: int) -> None:
    """Eight counted decisions, one above 1.1, two below .8; advantages are 0 and do not matter."""
    ratio = torch.tensor([[1.0, 1.05, 1.2, 9.0], [0.95, 0.79, 1.0, 1.0], [0.81, 0.5, 1.0, 1.0]]).double()
    ratio = torch.cat([ratio, torch.full((1, 4), 7.0).double()])
    counted = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    metrics = tallied(Clipped(0.2, 0.1), ratio.log(), counted, blocks)
    assert metrics["ratio/first_outside_clip"] == pytest.approx(3 / 8)
    # sorted deviations: 0 0 .05 .05 .19 .2 .21 .5; place int(.99 * 7) = 6
    assert metrics["ratio/first_deviation_p99"] == pytest.approx(0.21)


def test_a_clip_on_the_mean_counts_samples() -> None:
    """Two of three samples have tokens outside, of one the mean is: 1/3."""
    log_ratio = torch.tensor([[0.3, -0.3], [0.3, 0.1], [0.0, 0.0]]).double()
    metrics = tallied(ClippedMean(0.1, 0.1), log_ratio, torch.ones(3, 2).bool())
    assert metrics["ratio/first_outside_clip"] == pytest.approx(1 / 3)


def test_no_clip_no_share() -> None:
    assert "ratio/first_outside_clip" not in tallied(ScoreFunction(), torch.ones(2, 2), torch.ones(2, 2).bool())


def session(dtype: str) -> Any:
    config = SimpleNamespace(model=SimpleNamespace(dtype=dtype))
    return SimpleNamespace(config=config, algorithm=composition.build("flow_grpo"), workers=None)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [("bfloat16", "model.dtype=float16.*or float32, or widen"), ("float16", "use model.dtype=float32, or widen")],
)
def test_the_sentence(dtype: str, advice: str) -> None:
    watch = RatioCheck()
    metrics = {"ratio/first_outside_clip": 0.09, "ratio/first_deviation_p99": 7e-4}
    assert watch.notes(session(dtype), {"ratio/first_outside_clip": 0.0099}) == []
    (sentence,) = watch.notes(session(dtype), metrics)
    assert sentence.startswith("9.0% of decisions lie outside the clip of 0.0001 before any update")
    assert "within 0.0007" in sentence
    assert re.search(advice, sentence)
    assert watch.notes(session(dtype), metrics) == []  # once


@pytest.mark.parametrize(("dtype", "says"), [("bfloat16", True), ("float32", False)])
def test_a_run(
    dtype: str, says: bool, folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU answers alike in every batch, so the rounding of a GPU's bfloat16 is put in: 4e-5 in the log-ratio."""
    known = Transitions.recorded_logp

    def rounded(self: Transitions, rollout: Any, rows: Any) -> Likelihood:
        logp = known(self, rollout, rows).logp
        return Likelihood(logp + 4e-5 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(0)))

    if dtype == "bfloat16":
        monkeypatch.setattr(Transitions, "recorded_logp", rounded)
    (tmp_path / "mine.py").write_text("def bright(images, prompts, **c):\n    return images.flatten(1).mean(dim=1)\n")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    config = Config.of(
        {
            "name": "rounding",
            "out": str(tmp_path / "run"),
            "model": {"path": str(folder("sd3")), "call": pipelines.CALLS["sd3"], "dtype": dtype, "device": "cpu"},
            "algorithm": {"use": "flow_grpo", "steps": 4, "clip": 1e-5},
            "data": {"train": str(tmp_path / "prompts.txt"), "test": None, "prompts": 2, "group": 5},
            "rewards": [f"{tmp_path / 'mine.py'}:bright"],
            "train": {"iterations": 1, "sample_batch": 5, "micro_batch": 16},
            "eval": {"every": 0},
            "monitor": {"samples": 0},
        }
    )
    shown = io.StringIO()
    run = train(config, display=Display("rounding", 1, console=Console(file=shown, width=400)))
    (line,) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    # P(|N(0, 4e-5)| > 1e-5) = .80
    assert line["ratio/first_outside_clip"] == pytest.approx(0.8 if says else 0, abs=0.15)
    assert ("outside the clip of 1e-05 before any update" in shown.getvalue()) == says
