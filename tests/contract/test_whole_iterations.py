"""Iterations of a run with what the nouns carry: an environment's feedback reaches rewards and advantages, and the
values of coefficients survive an end of the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowrl.composition import build
from flowrl.config import Config
from flowrl.data import PromptSet
from flowrl.models.tiny_text import TinyText
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import load_rewards
from flowrl.session import Session
from flowrl.train import iterate
from flowrl.types import Prompt
from tests.contract.toy_worlds import Growing, PerTurn, TwoTurns
from tests.launching import settled

REWARD = """
def said(completions, prompts, feedback, **columns):
    return [sum(turns) for turns in feedback]
"""


def session_of(where: Path, **parts: Any) -> Session:
    """A run of a language model on a table; parts of its algorithm are put in place of grpo's."""
    (where / "mine.py").write_text(REWARD)
    config = Config.of({
        "name": "toy",
        "model": {"path": "countdown"},
        "algorithm": {"use": "grpo", "kl": 0.04, "length": 3},
        "data": {"prompts": 2, "group": 4, "test": None},
        "rewards": [f"{where / 'mine.py'}:said"],
        "train": {"iterations": 9, "sample_batch": 3},
        "eval": {"every": 0, "weights": "live"},
        "monitor": {"samples": 0},
    })  # fmt: skip
    names = [f"p{i}" for i in range(5)]
    prompts = PromptSet(tuple(Prompt(name, i) for i, name in enumerate(names)))
    policy: Any = TinyText(3, 3, names, causal=True, end=-1, scale=0.5)
    algorithm = replace(build(config.algorithm), sampler=TwoTurns(), advantage=PerTurn(), **parts)
    for name in algorithm.weight_sets:
        policy.update_ema(name, 0.0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05, weight_decay=0.0)
    return Session(config, policy, algorithm, prompts, None, load_rewards(config.rewards), optimizer)


def test_what_an_environment_says_reaches_rewards_and_advantages(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    before = session.policy.table.detach().clone()
    metrics, made, advantage = iterate(session, PhaseTimer())
    feedback = made.rollout.feedback
    assert feedback is not None and feedback.shape == (8, 2) and made.scores.feedback is not None
    assert torch.equal(made.scores.total, feedback.sum(dim=1)) and torch.equal(made.scores.feedback, feedback)
    assert made.scores.source is not None and made.scores.source.tolist() == [0] * 8
    assert torch.equal(advantage, PerTurn()(made.scores, {}).mean(dim=1))  # one number a sample, to be shown
    assert metrics["reward/mean"] == float(feedback.sum(dim=1).mean())
    moved = (session.policy.table.detach() - before).abs().amax(dim=(0, 1, 3))
    assert moved[0] > 0 and moved[2] > 0 and moved[1] == 0  # nothing is learned of what the environment says


def test_coefficients_go_on_where_a_run_ended(tmp_path: Path) -> None:
    parts = {"coefficients": (Growing("regularizers.0.weight", 1.5), Growing("objective.high", 0.5))}

    def lines(session: Session, count: int) -> list[dict[str, float]]:
        return [settled(iterate(session, PhaseTimer())[0]) for _ in range(count)]

    whole = lines(session_of(tmp_path, **parts), 3)
    assert [line["coefficient/regularizers.0.weight"] for line in whole] == [0.04, 0.06, 0.09]
    first = session_of(tmp_path, **parts)
    begun = lines(first, 2)
    tensors, values = first.state()
    again = session_of(tmp_path, **parts)
    again.restore(tensors, json.loads(json.dumps(values)))
    assert begun + lines(again, 1) == whole
    constant = [replace(part, factor=1.0) for part in parts["coefficients"]]
    assert lines(session_of(tmp_path, coefficients=tuple(constant)), 3)[2]["loss"] != whole[2]["loss"]
    plain = lines(session_of(tmp_path), 3)
    fixed = lines(session_of(tmp_path, coefficients=tuple(constant)), 3)
    names = {f"coefficient/{part.sets}" for part in constant}
    assert [{key: value for key, value in line.items() if key not in names} for line in fixed] == plain
