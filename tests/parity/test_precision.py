"""The ratio before the first update through a real transformer: 1 to rounding in float32, within a recorded bound in
bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowrl import composition
from flowrl.math.random import seeds
from flowrl.models.diffusion import load_policy
from flowrl.samplers.chunks import sample
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, Scores, prompts_of
from tests import pipelines
from tests.contract.toys import Recorder
from tests.parity.conftest import PROMPTS, move


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("guidance", [None, 1.0])
def test_first_ratio(folder: Callable[[str], Path], dtype: str, bound: float, guidance: float | None) -> None:
    """Sampled one row at a time, replayed in blocks of five: other batch sizes, so other matrix products."""
    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], dtype=dtype, parity="skip")
    move(policy)
    algorithm = composition.build({"use": "flow_grpo", "kl": 0.01, "steps": 4})
    algorithm = replace(algorithm, sampler=replace(algorithm.sampler, guidance=guidance))
    policy.update_ema("reference", 0.0)
    group = torch.arange(3).repeat_interleave(2)
    draw = Draw.of(seeds(0, "s", count=6), group, 0, 1)
    condition = policy.condition(prompts_of([PROMPTS[g] for g in group]))
    rollout = sample(algorithm.sampler, policy, condition, draw, rows=1)
    rewards = torch.arange(6).double()[:, None]
    scores = Scores(rewards, torch.ones(1).double(), ("r",), group, group, torch.ones(6).bool())
    advantage = algorithm.advantage(scores, {})
    recorder = Recorder(policy.parameters())
    metrics = improve(policy, recorder, algorithm, rollout, scores, advantage, UpdateSettings(micro_batch=5))
    assert metrics["ratio/first_max_deviation"] < bound
    assert metrics["kl/reference"] == pytest.approx(0, abs=1e-9)
    assert float(recorder.gradients[0].norm()) > 0
