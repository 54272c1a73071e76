"""Times and noises that the samples of a group share, what compares a policy with another one's errors, and the methods
that live on them."""

from __future__ import annotations

import pytest
import torch

from flowrl.estimators.matching import ContrastedMatching, Matching, group_seeds
from flowrl.estimators.times import LogitNormalTimes
from flowrl.math.random import seeds
from flowrl.models.tiny_flow import TinyFlow
from flowrl.types import prompts_of
from tests.contract.toys import MODES, PROMPTS, disturb, rollout_of

POINTS = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
GROUPS = torch.tensor([4, 4, 9, 4, 9, 9])


def moved_flow() -> TinyFlow:
    """A policy that has left its reference."""
    policy = TinyFlow(MODES, prompts=PROMPTS)
    disturb(policy, 0.2)
    policy.update_ema("reference", 0.0)
    disturb(policy, 0.2)
    return policy


@pytest.mark.parametrize("kind", [Matching, ContrastedMatching])
def test_the_samples_of_a_group_share_times_and_noises(kind) -> None:
    policy = moved_flow()
    grid = policy.times(6)
    made = rollout_of(None, POINTS, group=GROUPS, seeds=seeds(0, "s", count=6), times=grid)
    rows = kind(draws=3, share="group", times=LogitNormalTimes()).probe(made, policy, made.seeds)
    for value in (rows.t, rows.noise):
        for key in GROUPS.unique():
            mine = value[key == GROUPS]
            assert torch.equal(mine, mine[:1].expand_as(mine))
        assert not torch.equal(value[0], value[2])
    assert not torch.equal(rows.noise[0, 0], rows.noise[0, 1])
    own = kind(draws=3, times=LogitNormalTimes()).probe(made, policy, made.seeds)
    assert len(own.t.unique()) == 18 and len(own.noise.flatten(0, 1).unique(dim=0)) == 18


def test_shared_draws_follow_from_the_draw_alone() -> None:
    """Whatever the order of the rows, and whichever of other groups are on this process."""
    own = seeds(0, "s", count=6)
    shared = group_seeds(own, GROUPS)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    assert torch.equal(group_seeds(own[order], GROUPS[order]), shared[order])
    part = GROUPS == 9
    assert torch.equal(group_seeds(own[part], GROUPS[part]), shared[part])
    policy, grid = moved_flow(), torch.linspace(1, 0, 7).double()
    estimator = Matching(draws=2, share="group")
    whole = estimator.probe(rollout_of(None, POINTS, group=GROUPS, seeds=own, times=grid), policy, own)
    made = rollout_of(None, POINTS[part], group=GROUPS[part], seeds=own[part], times=grid)
    here = estimator.probe(made, policy, own[part])
    assert torch.equal(here.t, whole.t[part]) and torch.equal(here.noise, whole.noise[part])
    assert torch.equal(whole.block(torch.tensor([4]), slice(1, 2)).noise, whole.noise[4:5, 1:])


@pytest.mark.parametrize("weight", ["uniform", "t", "noise", "ghuber", "adaptive"])
def test_a_weight_set_is_asked_for_its_own_likelihood(weight) -> None:
    """``log_ratio/S`` is what two measurements would give, without gradient; ``norm_growth/S`` compares lengths."""
    policy = moved_flow()
    prompt = policy.condition(toy_prompts(6))
    made = rollout_of(prompt, POINTS, group=GROUPS, seeds=seeds(0, "s", count=6), times=policy.times(6))
    estimator = Matching(draws=3, weight=weight, share="group")
    rows = estimator.probe(made, policy, made.seeds)
    live = estimator(policy, rows, prompt, ("reference",))
    with policy.using("reference"):
        other = estimator(policy, rows, prompt)
    found = live.extra["log_ratio/reference"]
    torch.testing.assert_close(found, (live.logp - other.logp).detach())
    assert not found.requires_grad and live.extra["norm_growth/reference"].requires_grad
    assert float(found.abs().max()) > 1e-3  # at t = 1 the predicted noise has no error
    x = (1 - rows.t[..., None]) * rows.clean + rows.t[..., None] * rows.noise
    index = prompt.take(torch.arange(6).repeat_interleave(3))
    flat = (x.float().flatten(0, 1), rows.t.flatten(), index)
    v = policy.velocity(*flat)
    with policy.using("reference"):
        before = policy.velocity(*flat)
    growth = (v.norm(dim=1) / before.norm(dim=1) - 1).reshape(6, 3)
    torch.testing.assert_close(live.extra["norm_growth/reference"].float(), growth, rtol=1e-4, atol=1e-6)
    if weight == "adaptive":  # the error of the predicted clean latent over its mean size
        residual = rows.t[..., None] * (v.reshape(6, 3, 2) - (rows.noise - rows.clean))
        wanted = -(residual**2).mean(dim=2) / residual.abs().mean(dim=2)
        torch.testing.assert_close(live.logp, wanted, rtol=1e-5, atol=1e-7)


def toy_prompts(count: int):
    """Prompts of the toy flow."""
    return prompts_of([PROMPTS[i % 2] for i in range(count)])
