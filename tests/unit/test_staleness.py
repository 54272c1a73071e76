"""Samples of older weights: which weights make them, what corrects for them, and that a resumed run is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.rounds import ScoredRollout
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate, train
from tests.training import config_of

WEIGHTED: dict[str, Any] = {"use": "grpo", "length": 6, "token_advantage": ["truncated_importance"]}


def values_of(staleness: int, algorithm: str = "flow_grpo", **changes: Any) -> dict[str, Any]:
    base = "countdown" if algorithm in ("grpo", "ppo", "reinforce") else "shapes"
    sizes = {"optimizer__lr": 0.01, "train__updates": 1, "data__prompts": 2, "train__iterations": 4, "data__test": None}
    return config_of(algorithm, base, **{**sizes, "train__staleness": staleness, **changes})


def opened(values: dict[str, Any], tmp_path: Path) -> Session:
    return open_session(check_run(Config.of({**values, "out": str(tmp_path / "run")})))


def iterations(session: Session, count: int) -> list[tuple[dict[str, float], ScoredRollout]]:
    return [iterate(session, PhaseTimer())[:2] for _ in range(count)]


@pytest.mark.parametrize("staleness", [1, 2])
def test_samples_are_those_of_the_weights_so_many_iterations_ago(staleness: int, tmp_path: Path) -> None:
    session = opened(values_of(staleness), tmp_path)
    weights = []
    for number in range(4):
        weights.append({key: p.clone() for key, p in session.policy.weights.state().items() if key.startswith("live/")})
        metrics, batch, _ = iterate(session, PhaseTimer())
        version = max(number - staleness, 0)
        assert batch.rollout.version == version == metrics["sampling/version"]
        kept = [name for name in session.policy.weights.names() if name.startswith("version_")]
        assert kept == [f"version_{i}" for i in range(max(number + 1 - staleness, 0), number + 1)]
        # What a session with those weights as its live ones makes of the same seeds.
        other = opened(values_of(0), tmp_path)
        other.policy.weights.load(weights[version])
        other.progress.iteration = number
        remade = iterations(other, 1)[0][1].rollout
        assert torch.equal(remade.final, batch.rollout.final) and torch.equal(remade.seeds, batch.rollout.seeds)
        assert version == number or metrics["ratio/first_max_deviation"] > 1e-4
        other.rewards.close()
    session.rewards.close()


@pytest.mark.slow
def test_nothing_but_the_weights_changes_it(tmp_path: Path) -> None:
    """Where the weights stand still, samples of older ones are those of the present ones."""
    found = []
    for staleness in (0, 2):
        session = opened(values_of(staleness, optimizer__lr=1e-30), tmp_path)
        found.append([batch.rollout.final for _, batch in iterations(session, 3)])
        session.rewards.close()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_tokens_are_weighted_by_what_the_present_policy_says_of_them(tmp_path: Path) -> None:
    session = opened({**values_of(1, "grpo"), "algorithm": WEIGHTED}, tmp_path)
    first, second = (metrics for metrics, _ in iterations(session, 2))
    session.rewards.close()
    assert first["sampler/max_log_ratio"] < 1e-4 < second["sampler/max_log_ratio"]
    assert second["ratio/first_max_deviation"] < 1e-4, "the clip is around the policy at arrival"


@pytest.mark.slow
def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    def run(name: str, iterations: int, resume: str | None = None) -> Path:
        values = values_of(2, train__iterations=iterations)
        return train(Config.of({**values, "out": str(tmp_path / name)}), resume=resume)

    whole = run("whole", 5)
    run("parts", 3)
    parts = run("parts", 5, resume="auto")
    tensors = [load_file(path / "checkpoints/step_000005/state/state.safetensors") for path in (whole, parts)]
    assert tensors[0].keys() == tensors[1].keys() and any("/version_4/" in key for key in tensors[0])
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    lines = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (whole, parts)
    ]
    assert [line["sampling/version"] for line in lines[1]] == [0, 0, 0, 1, 2]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


@pytest.mark.parametrize("algorithm", ["diffusion_nft", "fpo", "trajectory_pg", "grpo", "ppo"])
def test_without_a_correction_it_is_refused(algorithm: str, tmp_path: Path) -> None:
    base = {"trajectory_pg": "sudoku", "grpo": "countdown", "ppo": "countdown"}.get(algorithm, "shapes")
    values = {**config_of(algorithm, base, train__staleness=1), "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"train\.staleness=1 samples with older weights.*set train\.staleness=0"):
        check_run(Config.of(values))
