"""Whole iterations of the presets whose samples share steps or have rewards of steps, on one process and on two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models.causal.policy import CausalPolicy
from flowrl.rounds import sample_and_score
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.types import TokenTrace
from tests.training import Processes, Work, config_of, drift, train

BUDGETS = {"length": 14, "budgets": [4, 8], "answers": 2, "think_end": "", "cut": "", "bridge": ""}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "branch_grpo": ("shapes", {"algorithm__sampler": {"steps": 4, "forks": [0, 1]}, "data__group": 4}),
    "tree_grpo": ("shapes", {"algorithm__sampler": {"steps": 4, "forks": [0, 1], "width": 2}, "data__group": 4}),
    "tempflow_grpo": ("shapes", {"algorithm__sampler": {"steps": 4, "siblings": 2}, "data__group": 6}),
    "flash_grpo": ("shapes", {"algorithm__guidance": None, "data__group": 3}),
    "g2rpo": ("shapes", {"algorithm__sampler": {"steps": 4, "siblings": 2}, "data__group": 4}),
    "e_grpo": (
        "shapes",
        {"algorithm__sampler": {"steps": 4, "siblings": 2, "candidates": [0, 2], "merge": [1, 2]}, "data__group": 4},
    ),
    "dense_grpo": ("shapes", {}),
    "turning_point": ("shapes", {"algorithm__guidance": None}),
    "d_treerpo": ("sudoku", {"algorithm__branches": 2}),
    "brpo": ("countdown", {f"algorithm__{key}": value for key, value in BUDGETS.items()} | {"data__group": 8}),
}
WHOLE = {"train__sample_batch": 100, "train__iterations": 2}
"""No tree is cut, whoever makes it."""


def values_of(name: str) -> dict[str, Any]:
    base, changes = RUNS[name]
    return config_of(name, base, **changes, **WHOLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_iterations_and_an_evaluation(name: str) -> None:
    made = train(values_of(name), Work(2, evaluate=True))
    assert len(made.gradients) == 4 and all(bool(each.isfinite().all()) for each in made.gradients)
    assert any(float(each.norm()) > 0 for each in made.gradients)
    assert all(metrics["ratio/first_max_deviation"] < 1e-3 for metrics in made.metrics)
    saved = [metrics.get("sampling/forwards_saved") for metrics in made.metrics]
    shared = name not in ("flash_grpo", "dense_grpo", "turning_point")
    assert all((value or 0) > 0 for value in saved) if shared else not any(saved)
    assert made.heldout


@pytest.mark.slow
def test_thoughts_of_a_real_network_are_scored_as_they_were_drawn(tmp_path: Path) -> None:
    values = values_of("brpo") | {"out": str(tmp_path / "run")}
    values["algorithm"] |= {"cut": "+", "bridge": "1", "length": 16}
    session = open_session(check_run(Config.of(values)))
    try:
        made = sample_and_score(session, PhaseTimer())
    finally:
        session.rewards.close()
    trace, condition = made.rollout.trace, made.rollout.condition
    assert isinstance(trace, TokenTrace) and trace.logp is not None and isinstance(session.policy, CausalPolicy)
    found = session.policy.score(condition, trace.tokens, trace.mask, trace.tokens).logp.detach()
    assert float((torch.where(trace.mask, trace.logp, 0.0) - found).abs().max()) < 1e-4
    assert made.samples.completions is not None
    assert trace.event is not None
    cut = [text for text, event in zip(made.samples.completions, trace.event[:, 6], strict=True) if event == 1]
    assert cut and all("+1" in text for text in cut)  # of a thought that did not end within four tokens
    assert made.metrics["sampling/forwards_saved"] > made.metrics["sampling/forwards"]


@pytest.fixture(scope="module")
def team() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["branch_grpo", "tempflow_grpo", "dense_grpo", "d_treerpo", "brpo"])
def test_two_processes_do_what_one_does(name: str, team: Processes) -> None:
    one = team.train(1, values_of(name), Work(2))[0]
    both = team.train(2, values_of(name), Work(2))
    assert all(bool((a == b).all()) for a, b in zip(both[0].weights, both[1].weights, strict=True))
    first, worst, weights = drift(both[0], one)
    assert first < 2e-5 and worst < 1e-4 and weights < 1e-5  # rounding: a part of the samples gives 1e-3 and more
    for mine, wanted in zip(both[0].metrics, one.metrics, strict=True):
        assert mine["reward/mean"] == pytest.approx(wanted["reward/mean"], rel=1e-6)
        for key in ("sampling/forwards", "sampling/forwards_saved"):
            assert mine.get(key) == wanted.get(key)


def test_a_group_that_is_no_whole_tree_is_told_before_a_model_is_loaded() -> None:
    for name, words in (("branch_grpo", "multiple of 16"), ("brpo", "multiple of 16"), ("tree_grpo", "multiple of 27")):
        values = config_of(name, "countdown" if name == "brpo" else "shapes", data__group=12)
        values["algorithm"] = {"use": name}
        with pytest.raises(UserError, match=words):
            check_run(Config.of(values))
