"""float16 trains as float32 does, where gradients are as small as those of a large model: by a scaled loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.amp.grad_scaler import GradScaler

from flowrl import algorithms
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.models.text.load import load_causal, load_masked
from flowrl.models.diffusion import load_policy
from flowrl.samplers.chunks import sample
from flowrl.step import UNSCALED, Pass, improve
from flowrl.train import train
from flowrl.types import Draw, Scores
from tests import components_text, pipelines
from tests.contract.toys import Recorder
from tests.parity.conftest import PROMPTS, move

SMALL = 1e-7
"""A loss so small that its gradient is what SD3.5's is: a mean over 65,536 latent elements of 5,760 decisions."""
PRESETS = {
    "flow_grpo": {"steps": 4},
    "diffusion_nft": {"sampler": {"steps": 4}},
    "awm": {"sampler": {"steps": 4}},
    "fpo": {"sampler": {"steps": 4}},  # coupled: a loss over all draws of a sample
    "grpo": {"length": 8},
    "gspo": {"length": 8},  # coupled
    "diffu_grpo": {"length": 8, "steps": 4, "block": 8},
    "gdpo_dllm": {"length": 8, "steps": 4, "block": 8},  # coupled
}


def open_policy(name: str, folder: Callable[[str], Path], dtype: str) -> Any:
    family = algorithms.build(name).family
    if family == "diffusion":
        policy: Any = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], dtype=dtype, parity="skip")
    else:
        load = load_causal if family == "causal" else load_masked
        policy = load(components_text.folder("llama" if family == "causal" else "bert"), dtype=dtype)
    move(policy)
    return policy


def gradient(
    name: str, policy: Any, rollout: Any, scaler: GradScaler = UNSCALED, small: float = SMALL, **settings: int
) -> tuple[torch.Tensor, dict[str, float]]:
    algorithm = algorithms.build({"use": name, **PRESETS[name]})
    algorithm = replace(algorithm, regularizers=())  # their gradient is not scaled by the credit
    count = len(rollout.group)
    rewards = torch.arange(count).double()[:, None]
    scores = Scores(rewards, torch.ones(1).double(), ("r",), rollout.group, rollout.group, torch.ones(count).bool())
    advantage = algorithm.advantage(scores, {}) * small
    recorder = Recorder(policy.parameters())
    options = Pass(micro_batch=settings.pop("micro_batch", 64), max_grad_norm=1e9, **settings)
    drawn = seeds(0, "s", count=count)
    metrics = improve(policy, recorder, algorithm, rollout, scores, advantage, drawn, options, scaler)
    return recorder.gradients[0] if recorder.gradients else torch.zeros(()), metrics


def rolled(name: str, policy: Any) -> Any:
    algorithm = algorithms.build({"use": name, **PRESETS[name]})
    for held in algorithm.weight_sets:
        policy.follow(held, 0.0)
    group = torch.arange(3).repeat_interleave(2)
    draw = Draw.of(seeds(0, "s", count=6), group, 0, 1)
    return sample(algorithm.sampler, policy, policy.condition([PROMPTS[g] for g in group]), draw, rows=6)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("name", PRESETS)
def test_the_gradient_of_a_small_loss(name: str, folder: Callable[[str], Path]) -> None:
    """Without scaling float16 loses it; with scaling it is float32's, for one micro-batch or several."""
    exact, half = open_policy(name, folder, "float32"), open_policy(name, folder, "float16")
    rollout = rolled(name, exact)
    for held in algorithms.build(name).weight_sets:
        half.follow(held, 0.0)
    wanted, _ = gradient(name, exact, rollout)
    plain, _ = gradient(name, half, rollout)
    assert wanted.norm() > 0
    print(name, float(wanted.norm()), "zeros", float((plain == 0).double().mean()), cosine(plain, wanted))
    for micro_batch in (64, 1):
        scaler = GradScaler("cpu", init_scale=2.0**20)
        scaled, metrics = gradient(name, half, rollout, scaler, micro_batch=micro_batch)
        print(cosine(scaled, wanted), float(scaled.norm() / wanted.norm()))
        assert metrics["scaler/skipped_steps"] == 0 and metrics["optimizer_steps"] == 1
        assert scaled.dtype == torch.float32
