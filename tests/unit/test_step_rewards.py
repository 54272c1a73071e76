"""Rewards of steps: previews, their scores, and the advantages that read them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flowrl import composition
from flowrl.config import Config
from flowrl.math.flow import CPS, FlowSDE
from flowrl.parts.step_advantages import Gain, TurningPoints
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.chunks import sample
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.previews import PreviewSampler
from flowrl.samplers.windows import EveryStep, RandomWindow
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import Draw, IncompatibleError, Scores
from tests.fidelity.bench import GuidedFlow
from tests.training import config_of
from tests.unit.test_trees import draw_of


def made_by(sampler: FlowSampler, rows: int = 1000) -> Any:
    policy, draw = GuidedFlow(), draw_of(4)
    return sample(sampler, policy, policy.condition(draw.prompts), draw, rows)


def scores_of(steps: list[list[float]], total: list[float] | None = None) -> Scores:
    values = torch.tensor(steps, dtype=torch.float64)
    end = values[:, -1] if total is None else torch.tensor(total, dtype=torch.float64)
    none, every = torch.zeros(len(values), dtype=torch.int64), torch.ones(len(values), dtype=torch.bool)
    return Scores(end[:, None], torch.ones(1).double(), ("r",), none, none, every, steps=values)


def test_previews_are_the_deterministic_ends_of_the_recorded_states() -> None:
    options = {"steps": 6, "dynamics": FlowSDE(0.7), "window": EveryStep(drop=1)}
    plain, made = made_by(FlowSampler(**options)), made_by(PreviewSampler(**options))
    assert torch.equal(plain.final, made.final) and torch.equal(plain.trace.states, made.trace.states)
    previews = made.trace.previews
    assert previews.shape == made.trace.states.shape == (8, 6, 16)
    ode = made_by(FlowSampler(steps=6))
    assert torch.allclose(previews[:, 0], ode.final, atol=1e-6)  # of the state before any noise
    policy, draw = GuidedFlow(), draw_of(4)
    condition, times, x = policy.condition(draw.prompts), policy.times(6), made.trace.states[:, 3]
    for k in range(3, 6):
        x = x + (times[k + 1] - times[k]).float() * policy.velocity(x, times[k].expand(8), condition)
    assert torch.allclose(previews[:, 3], x, atol=1e-6)
    assert made.forwards == 8 * (6 + 6 + 5 + 4 + 3 + 2 + 1) == 8 * PreviewSampler(**options).forwards
    pieces = made_by(PreviewSampler(**options), rows=3)
    assert torch.allclose(pieces.trace.previews, previews, atol=1e-6)


def test_the_last_preview_is_the_sample_where_nothing_noisy_follows() -> None:
    made = made_by(PreviewSampler(steps=6, dynamics=CPS(0.7), window=EveryStep(drop=1)))  # CPS ends without noise
    assert torch.allclose(made.trace.previews[:, -1], made.final, atol=1e-6)
    inside = PreviewSampler(steps=8, dynamics=FlowSDE(0.7), window=RandomWindow(size=2))
    made = made_by(inside)
    assert torch.allclose(made.trace.previews[:, -1], made.final, atol=1e-6)
    assert inside.recorded == 2 and made.forwards <= 8 * inside.forwards


def test_clean_previews_are_the_predictions_at_the_states() -> None:
    sampler = PreviewSampler(steps=6, dynamics=FlowSDE(0.7), window=EveryStep(drop=1), preview="clean")
    made, policy = made_by(sampler), GuidedFlow()
    t, condition = made.trace.t[:, 2], policy.condition(draw_of(4).prompts)
    x = made.trace.states[:, 2]
    clean = x - t[:, None].float() * policy.velocity(x, t, condition)
    assert torch.allclose(made.trace.previews[:, 2], clean, atol=1e-6)
    assert made.forwards == 8 * (6 + 6) == 8 * sampler.forwards


def test_gains_telescope_and_are_normalised_for_each_step() -> None:
    scores = scores_of([[0.1, 0.4, 0.2, 0.9], [0.3, 0.3, 0.5, 0.1], [0.2, 0.6, 0.6, 0.4]])
    plain = Gain(scale="none", clip=None)
    values = plain.values(scores)
    assert scores.steps is not None
    assert torch.allclose(values.sum(dim=1), scores.steps[:, -1] - scores.steps[:, 0])
    assert torch.allclose(plain(scores, {}), values - values.mean(dim=0))
    scaled = Gain(scale="group", ddof=0, eps=1e-4)(scores, {})
    assert torch.allclose(scaled, (values - values.mean(dim=0)) / (values.std(dim=0, correction=0) + 1e-4))
    assert torch.allclose(Gain(scale="none")(scores_of([[0.0, 1.0]] * 3), {}), torch.zeros(3, 1).double())


def test_turning_points_by_hand() -> None:
    # whole gain .8: gains .3 -.2 .7, so the third turns; the first goes its way
    scores = scores_of([[0.1, 0.4, 0.2, 0.9], [0.5, 0.7, 0.6, 0.2]])
    found = TurningPoints().values(scores)
    assert found[0].tolist() == pytest.approx([0.8 + 0.3, 0.8, 0.8 + 0.7])
    assert found[1].tolist() == pytest.approx([-0.3, -0.3 - 0.1, -0.3])  # down in the end: the second turns
    assert TurningPoints(first=False).values(scores)[0].tolist() == pytest.approx([0.8, 0.8, 1.5])
    text = TurningPoints(base="gain", first=False).values(scores)
    assert text[0].tolist() == pytest.approx([0.3, -0.2, 0.9 - 0.2])
    assert text[1].tolist() == pytest.approx([0.2, 0.2 - 0.7, -0.4])


def test_without_rewards_of_steps_the_remedy_is_told() -> None:
    scores = replace(scores_of([[0.0, 1.0]]), steps=None)
    with pytest.raises(IncompatibleError, match="PreviewSampler"):
        Gain()(scores, {})


def test_samples_that_could_not_be_scored_leave_the_others_alone() -> None:
    scores = scores_of([[0.1, 0.4], [0.3, float("nan")], [0.2, 0.6]], [0.4, 0.0, 0.6])
    scores = replace(scores, valid=torch.tensor([True, False, True]))
    found = Gain(scale="none")(scores, {})
    assert found[:, 0].tolist() == pytest.approx([-0.05, 0.0, 0.05])


REWARDS = """
SEEN = []

def redness(images, prompts, **columns):
    SEEN.append(len(prompts))
    return images[:, 0].mean(dim=(1, 2)).double().tolist()
"""


def test_rounds_score_the_previews_and_let_them_go(tmp_path: Any) -> None:
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS)
    values = config_of("dense_grpo", "shapes", algorithm__steps=4, algorithm__sampler={})
    values |= {"rewards": [f"{path}:redness"], "out": str(tmp_path / "run")}
    session = open_session(check_run(Config.of(values)))
    try:
        metrics, batch, advantage = iterate(session, PhaseTimer())
    finally:
        session.rewards.close()
    steps, trace = batch.scores.steps, batch.rollout.trace
    assert steps is not None and steps.shape == (10, 4) and trace.previews is None
    assert advantage.shape == (10,) and metrics["loss"] == metrics["loss"]
    # what is scored is the picture of the completion: of the state before any noise, that of a deterministic sampler
    draw = Draw.of(batch.seeds, batch.scores.group, 0, 0, batch.prompts)
    with session.policy.using("reference") as asked:
        plain = FlowSampler(steps=4)(asked, asked.condition(batch.prompts), draw)
        pictures = asked.decode(plain.final)
    assert torch.allclose(steps[:, 0], pictures[:, 0].mean(dim=(1, 2)).double(), atol=1e-5)
    assert bool(steps.isfinite().all()) and float(steps.std(dim=0).min()) > 0


def test_presets_preview_what_they_train() -> None:
    for name, spec in (("dense_grpo", {}), ("turning_point", {"base": "gain"})):
        made = composition.build({"use": name, **spec})
        assert made.sampler.forwards == 10 + 10 + 9 + 8 + 7 + 6 + 5 + 4 + 3 + 2 + 1 and made.sampler.recorded == 9
