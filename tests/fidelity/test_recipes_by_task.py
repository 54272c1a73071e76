"""What a task changes in the recipes for SD3.5, against the released configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowrl import composition
from flowrl.config import Config
from flowrl.parts.ema import Ramp
from tests.fidelity import cell

CONFIGS = Path(__file__).parents[2] / "configs"
TASKS = ("geneval", "ocr", "pickscore")


def recipe(name: str) -> tuple[Config, Any]:
    config = Config.load(CONFIGS / f"{name}.yaml")
    return config, composition.build(config.algorithm)


def shared(config: Config, groups: int, guidance: float) -> None:
    """What the three repositories have in common for SD3.5-M."""
    assert (config.data.prompts, config.data.group) == (groups, 24)
    assert config.model.call == {
        "guidance_scale": guidance, "height": 512, "width": 512, "max_sequence_length": 128,
    }  # fmt: skip
    lora = config.model.lora
    assert (lora.rank, lora.alpha, lora.targets, config.model.full) == (32, 64, None, False)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.eps) == (3e-4, (0.9, 0.999), 1e-4, 1e-8)
    assert (optimizer.max_grad_norm, optimizer.schedule, config.model.dtype) == (1.0, "constant", "float16")
    assert config.eval.sampling_steps == 40 and config.train.epochs == 1


@cell(
    "flow_grpo",
    "defaults",
    "option",
    "by task in configs/sd35: KL 0.04 for GenEval and OCR, 0.01 for PickScore; float16 with a scaled loss, as released",
)
def test_flow_grpo_by_task() -> None:
    for task, kl in zip(TASKS, (0.04, 0.04, 0.01), strict=True):
        config, made = recipe(f"sd35/flow_grpo_{task}")
        shared(config, 48, 4.5)
        assert config.train.updates == 2 and config.eval.guidance == 4.5
        assert [(term.to, term.weight) for term in made.regularizers] == [("reference", kl)]
        assert (made.sampler.steps, made.sampler.dynamics.noise_level, made.objective.clip_range) == (
            10,
            0.7,
            (1e-4, 1e-4),
        )
        assert made.estimator.cfg_grad == "both"


@cell(
    "diffusion_nft",
    "defaults",
    "option",
    "by task in configs/sd35: OCR b 0.1, decay_type 2 and two updates; GenEval and PickScore b 1, decay_type 1 and "
    "one; several rewards 25 steps and b 0.1",
)
def test_nft_by_task() -> None:
    slow = Ramp(slope=0.0075, most=0.999, start=75)
    fast = Ramp(slope=0.001, most=0.5)
    for task, strength, ramp, updates, steps in (
        ("geneval", 1.0, fast, 1, 10),
        ("pickscore", 1.0, fast, 1, 10),
        ("ocr", 0.1, slow, 2, 10),
        ("multi_reward", 0.1, fast, 1, 25),
    ):
        config, made = recipe(f"sd35/nft_{task}")
        shared(config, 48, 1.0)
        assert (made.estimator.strength, made.objective.strength, config.train.updates) == (strength, strength, updates)
        assert [(average.name, average.decay) for average in made.ema_weights] == [("old", ramp)]
        assert made.sampler.steps == steps and made.estimator.draws == int(steps * 0.99)
        assert (made.sampler.solver, made.sampler.guidance) == ("dpmpp_2m", 1.0)
        assert [(term.to, term.weight) for term in made.regularizers] == [("reference", 1e-4)]
    decays = [slow(step) for step in (0, 74, 75, 76, 208, 209)]  # return_decay(step, 2): 0, then 0.0075 a step to 0.999
    assert decays == pytest.approx([0, 0, 0, 0.0075, 0.9975, 0.999])


@cell(
    "awm",
    "defaults",
    "option",
    "by task in configs/sd35: penalty to the reference 0.001 GenEval, 0.003 OCR, 0.0001 PickScore; PickScore from pure "
    "noise on and with 24 groups, the others 72",
)
def test_awm_by_task() -> None:
    for task, weight, skip, groups in (("geneval", 1e-3, 1, 72), ("ocr", 3e-3, 1, 72), ("pickscore", 1e-4, 0, 24)):
        config, made = recipe(f"sd35/awm_{task}")
        shared(config, groups, 1.0)
        held = [(term.to, term.weight) for term in made.regularizers]
        assert held == [("reference", weight), ("ema_policy", 1.0)]
        assert (made.estimator.times.skip, made.estimator.draws, made.sampler.steps) == (skip, 6, 14)
        assert config.train.updates == 1 and config.train.ema == 0.99
