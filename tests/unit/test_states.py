"""Predictions at the states that a sampler visited, and DiffusionOPD's forms of one loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flowrl import composition
from flowrl.estimators.states import VisitedStates
from flowrl.parts.distillation import Distil
from flowrl.types import IncompatibleError, Likelihood
from tests.contract.toys import disturb, gradients, roll, small, start


def measured(of: str) -> tuple[Likelihood, Any, Any]:
    algorithm = small("diffusion_opd", of=of)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    disturb(policy, 0.1)
    return algorithm.estimator(policy, rows, it.rollout.condition, ("teacher",)), rows, (policy, it)


def test_forms_differ_by_known_factors() -> None:
    """MSE(x') = dt^2 MSE(v) and MSE(x0) = t^2 MSE(v), at the same states; each against its own difference."""
    found = {of: measured(of) for of in ("velocity", "next", "clean")}
    live, rows, (policy, it) = found["velocity"]
    speed = live.extra["prediction/teacher"].detach().double()
    assert torch.allclose(
        found["next"][0].extra["prediction/teacher"].detach().double(), (rows.t_next - rows.t) ** 2 * speed
    )
    assert torch.allclose(found["clean"][0].extra["prediction/teacher"].detach().double(), rows.t**2 * speed)
    count = rows.t.shape[1]
    x, t = rows.x.flatten(0, 1), rows.t.flatten()
    wide = it.rollout.condition.take(torch.arange(len(rows.t)).repeat_interleave(count))
    own = policy.velocity(x, t, wide)
    with policy.using("teacher") as teacher:
        other = teacher.velocity(x, t, wide)
    clean = (x - t[:, None] * own) - (x - t[:, None] * other)
    assert torch.allclose(
        clean.square().mean(dim=1).view(-1, count).double(),
        found["clean"][0].extra["prediction/teacher"].double(),
        rtol=1e-4,
    )
    assert float(speed.min()) > 0 and count == it.rollout.trace.t.shape[1] - 1


def test_the_replay_is_checked() -> None:
    """0 for the policy that sampled, less for another one."""
    algorithm = small("diffusion_opd")
    policy = start(algorithm)
    it = roll(algorithm, policy)
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    same = algorithm.estimator(policy, rows, it.rollout.condition).logp.detach()
    disturb(policy, 0.2)
    moved = algorithm.estimator(policy, rows, it.rollout.condition).logp.detach()
    assert float(same.abs().max()) < 1e-10 and float(moved.mean()) < -1e-6


def test_the_teacher_itself_has_nothing_to_learn() -> None:
    for form in ("ode", "sde"):
        algorithm = small("diffusion_opd", form=form)
        policy = start(algorithm)
        policy.update_ema("teacher", 0.0)
        assert float(gradients(algorithm, roll(algorithm, policy))[0].norm()) < 1e-9


def test_a_reference_as_teacher_is_the_exact_kl() -> None:
    """Flow-GRPO's penalty alone, of the kernels' own KL, is the SDE form with the reference in the teacher's place."""
    algorithm = small("diffusion_opd", form="sde")
    policy = start(algorithm)
    policy.update_ema("teacher", 0.0)
    policy.update_ema("reference", 0.0)
    it = roll(algorithm, policy)
    disturb(policy, 0.1)
    found = gradients(algorithm, it)[0]
    penalty = composition.build({"use": "flow_grpo", "kl": 1.0, "estimator": {"kl": "exact"}})
    alone = replace(it, advantage=torch.zeros_like(it.advantage))
    every = replace(penalty, sampler=algorithm.sampler, selection=algorithm.selection)
    assert torch.allclose(found, gradients(every, alone)[0], atol=1e-6 * float(found.norm()))


def test_what_it_needs() -> None:
    with pytest.raises(IncompatibleError, match="leaves none"):
        VisitedStates(drop=3).decisions(3)
    with pytest.raises(ValueError, match="drop=-1"):
        VisitedStates(drop=-1)
    made = composition.build("diffusion_opd")
    assert made.objective == Distil(of="prediction", scale=0.5) and made.sampler.recorded == 10
