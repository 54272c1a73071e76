"""Iterations that follow the gradient of rewards: on several processes, on the shapes world, and what a run refuses."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl import load_policy
from flowrl.composition import build
from flowrl.config import Config
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.models.lora import LoRAOptions
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import load_rewards
from flowrl.score.gradients import judge
from flowrl.session import Session
from flowrl.startup.preflight import check_run
from flowrl.step import UpdateSettings, improve
from flowrl.train import iterate
from flowrl.types import Draw, Samples
from tests.training import Work, config_of, train
from tests.unit.test_ranks_iterations import compare
from tests.unit.test_rounds import SET, session_of

REWARD = '''
class bright:
    """How bright a picture is, and for long prompts more so."""

    def __call__(self, images, prompts, **columns):
        return self.gradient(images, prompts).double()

    def gradient(self, images, prompts, **columns):
        return images.flatten(1).mean(dim=1) * images.new_tensor([len(text) for text in prompts])
'''
SPECS: dict[str, dict[str, Any]] = {
    "draft": {"last": 2},
    "draft_lv": {},
    "refl": {"scale": 1.0},
    "align_prop": {"spread": 0.3},
    "drtune": {"trained": 2, "stop": 2},
    "srpo": {},
    "rocm": {},
    "adjoint_matching": {"scale": 5.0},
}


def toy(name: str, where: Path) -> Session:
    (where / "bright.py").write_text(REWARD)
    algorithm = {"use": name, "steps": 4, **SPECS[name]}
    return session_of(
        ["open"] * SET, where, "diffusion", algorithm=algorithm, rewards=[f"{where / 'bright.py'}:bright"]
    )


@pytest.mark.parametrize("name", ["draft", "rocm", "srpo"])
def test_iterations_are_those_of_one_process(name: str, tmp_path: Path) -> None:
    compare(3, lambda: toy(name, tmp_path), iterations=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_iterations_of_all_are_those_of_one_process(name: str, tmp_path: Path) -> None:
    compare(2, lambda: toy(name, tmp_path), iterations=2)


def test_an_iteration_climbs_and_its_replay_arrives(tmp_path: Path) -> None:
    session, before = toy("draft", tmp_path), 0.0
    for iteration in range(8):
        metrics, made, _ = iterate(session, PhaseTimer())
        assert metrics["ratio/first_max_deviation"] < 1e-9
        assert made.rollout.judge is not None and made.rollout.judge.names == ("bright",)
        before = before or metrics["reward/mean"]
        assert iteration < 7 or metrics["reward/mean"] > before


def on_shapes(name: str, **changes: Any) -> dict[str, Any]:
    rewards = [{"use": "shapes_soft"}, {"use": "shapes", "train": False}]
    return config_of(name, "shapes", **{"rewards": rewards, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_two_iterations_on_the_shapes_world(name: str) -> None:
    guidance = {"algorithm__guidance": 1.0} if name == "align_prop" else {}
    found = train(on_shapes(name, algorithm__steps=4, **guidance), Work(2))
    assert all(float(gradient.norm()) > 0 for gradient in found.gradients)
    assert all(bool(torch.isfinite(weights).all()) for weights in found.weights)
    for metrics in found.metrics:
        assert metrics["ratio/first_max_deviation"] < 1e-4


@pytest.mark.slow
def test_draft_raises_the_score_of_the_same_prompts_and_noise() -> None:
    """The samples of sixteen prompts, always from the same noise, through all steps and the world's autoencoder."""
    policy: Any = load_policy("shapes", lora=LoRAOptions(rank=8, alpha=16), call={"guidance_scale": 1.0})
    rewards, group = load_rewards(["shapes_soft"]), torch.arange(16)
    prompts = load_prompts("shapes:train").prompts[::13][:16]
    draw, condition = Draw.of(seeds(0, "d", count=16), group, 0, 0, prompts), policy.condition(prompts)
    algorithm = build({"use": "draft", "last": None, "steps": 5, "checkpoint": False, "guidance": 1.0})
    optimizer, totals = torch.optim.Adam(policy.parameters(), lr=3e-3), []
    for _ in range(9):
        made = algorithm.sampler(policy, condition, draw)
        scores = rewards(Samples(prompts, policy.decode(made.final)), group)
        totals.append(float(scores.total.mean()))
        told = judge(rewards, scores, prompts, group, partial(policy.decode, graph=True))
        arguments = (replace(made, judge=told), scores, torch.ones(16).double(), UpdateSettings(micro_batch=16))
        improve(policy, optimizer, algorithm, *arguments)
    assert totals[-1] > totals[0] + 0.04, totals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": ["shapes"]}, "shapes has none; of the rewards that come with flowrl"),
        ({"rewards": [{"use": "shapes_soft", "process": True}]}, "shapes_soft is scored in a process"),
        ({"model__offload": "encoders"}, "model.offload=encoders sends the decoder away"),
        ({"model__shard": "fsdp"}, "model.shard=fsdp"),
        ({"train__staleness": 1}, "nothing in this algorithm corrects"),
    ],
)
def test_a_run_is_refused_before_its_model_is_loaded(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_run(Config.of(on_shapes("draft", **changes)))
