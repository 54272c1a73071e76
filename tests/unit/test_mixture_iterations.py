"""Preferences, labels and mixtures on a real (if small) language model: whole iterations, alone and as two processes,
and what demonstrations and reinforcement learning do together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.worlds.countdown.prompts import prompts
from flowrl.worlds.countdown.solver import solve
from tests.training import Processes, Work, apart, config_of, train

COMPARED = (
    "copg",
    "dno",
    "f_dpg",
    "gvpo",
    "inpo",
    "ipo_md",
    "nash_md",
    "nash_mp",
    "nft",
    "online_ipo",
    "p3o",
    "pacs",
    "real",
    "rebel",
    "xpo",
)
DEMONSTRATED = ("chord", "dypo", "hpt", "luffy")
RECORDED = ("otr", "psft")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of three numbers with an expression that solves each."""
    path = tmp_path_factory.mktemp("data") / "solved.jsonl"
    easy = [row for row in prompts("train") if row["tag"] == "3"][:200]
    lines = [json.dumps({**row, "completion": solve(row["numbers"], row["target"])[0]}) for row in easy]
    path.write_text("\n".join(lines))
    return path


def values_of(name: str, path: Path, **changes: Any) -> dict[str, Any]:
    data = {} if name in COMPARED or name == "egspo" else {"data__train": str(path), "data__test": "countdown:test"}
    values = config_of(name, "countdown", train__updates=2, **{**data, **changes})
    if name in RECORDED:
        del values["data"]["group"]
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMPARED, *DEMONSTRATED, *RECORDED, "egspo"])
def test_two_iterations(name: str, demonstrations: Path) -> None:
    found = train(values_of(name, demonstrations), Work(2))
    assert len(found.weights) == 2 and all(bool(w.isfinite().all()) for w in found.weights)
    assert all(abs(metrics["ratio/first_max_deviation"]) < 1e-4 for metrics in found.metrics)
    assert any(float(gradient.norm()) > 0 for gradient in found.gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nash_md", "chord", "dypo"])
def test_two_processes_are_as_one(name: str, demonstrations: Path) -> None:
    """Samplers of other weight sets and of records, objectives by source and over pairs."""
    values = values_of(name, demonstrations, data__prompts=4)
    wanted = train(values, Work(2))
    with Processes(2) as processes:
        found = processes.train(2, values, Work(2))
    for each in found:
        assert apart(each.gradients[0], wanted.gradients[0]) < 1e-4
        assert torch.equal(each.weights[-1], found[0].weights[-1])
