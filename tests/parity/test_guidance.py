"""Classifier-free guidance: which branches run, which carry gradient, and how they are mixed."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch

from flowrl.errors import UserError
from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.guidance import GUIDANCE_CORRECTIONS, Guidance, check_guider, probe_outputs, recover
from flowrl.types import prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS, points


def gradient(policy, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters(), materialize_grads=True)])


def test_cond_is_the_detached_gradient_and_both_is_not(policies):
    policy = policies("sd3")
    (x, t), condition = points(policy), policy.condition(prompts_of(PROMPTS))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    before = policy.network_calls
    cond = gradient(policy, (policy.velocity(x, t, condition) * weight).sum())
    assert policy.network_calls - before == 6

    branches = [policy.velocity(x, t, condition, guidance=1.0)]
    pair = policy._evaluate([0, 1], x, policy.spec.coordinates.network_time(t), condition)
    detached = pair[0].detach() + 4.5 * (branches[0] - pair[0].detach())
    torch.testing.assert_close(cond, gradient(policy, (detached * weight).sum()), atol=1e-6, rtol=1e-5)

    both = gradient(policy, (policy.velocity(x, t, condition, cfg_grad="both") * weight).sum())
    attached = pair[0] + 4.5 * (pair[1] - pair[0])
    torch.testing.assert_close(both, gradient(policy, (attached * weight).sum()), atol=1e-6, rtol=1e-5)
    assert float(torch.cosine_similarity(cond, both, dim=0)) < 0.99


def test_cond_keeps_no_graph_of_the_unconditional_branch(policies):
    policy = policies("sd3")
    (x, t), condition = points(policy), policy.condition(prompts_of(PROMPTS))
    kept = {}
    for mode in ("cond", "both"):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda v, s=saved: (s.append(v.numel()), v)[1], lambda v: v):
            policy.velocity(x, t, condition, cfg_grad=mode)
        kept[mode] = sum(saved)
    assert kept["cond"] < 0.75 * kept["both"]


def test_values_agree_whatever_carries_gradient(policies):
    policy = policies("sd3")
    (x, t), condition = points(policy), policy.condition(prompts_of(PROMPTS))
    with torch.no_grad():
        sampled = policy.velocity(x, t, condition)
    for mode in ("cond", "both"):
        torch.testing.assert_close(policy.velocity(x, t, condition, cfg_grad=mode), sampled, atol=1e-5, rtol=1e-5)


def test_scales(policies):
    policy = policies("sd3")
    (x, t), condition = points(policy), policy.condition(prompts_of(PROMPTS))
    with torch.no_grad():
        own, off, two = (policy.velocity(x, t, condition, guidance=g) for g in (None, 1.0, 2.0))
        again = policy.velocity(x, t, condition, guidance=4.5)
        before = policy.network_calls
        policy.velocity(x, t, condition, guidance=1.0)
    assert policy.network_calls - before == 3
    torch.testing.assert_close(own, again)
    torch.testing.assert_close(own, off + 3.5 * (two - off), atol=1e-4, rtol=1e-4)  # both lie on one line


def test_without_an_unconditional_branch_other_scales_are_refused(folder):
    policy = load_policy(folder("sd3"), call={**pipelines.CALLS["sd3"], "guidance_scale": 1.0}, parity="skip")
    (x, t), condition = points(policy), policy.condition(prompts_of(PROMPTS))
    policy.velocity(x, t, condition, guidance=1.0)
    with pytest.raises(UserError, match="unconditional branch"):
        policy.velocity(x, t, condition, guidance=4.5)


@pytest.mark.parametrize("correction", GUIDANCE_CORRECTIONS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("sign", "conditional"), [(1.0, 0), (1.0, 1), (-1.0, 0), (-1.0, 1)])
def test_recovered_guidance_is_the_true_one(correction, sign, conditional):
    truth = Guidance(sign, 3.5, conditional, 1 - conditional, correction)
    draw, steps = probe_outputs(), []
    for _ in range(3):
        branches = [draw(torch.empty(2, 4, 8, 8)) for _ in range(2)]
        steps.append((branches, truth.mix(branches[conditional], branches[1 - conditional], 3.5)))
    assert recover(steps, 0.0, "Test") == truth


def test_rescaled_guidance_is_recovered():
    truth = Guidance(1.0, 5.0, 1, 0, rescale=0.7)
    draw = probe_outputs()
    branches = [draw(torch.empty(2, 4, 8, 8)) for _ in range(2)]
    found = recover([(branches, truth.mix(branches[1], branches[0], 5.0))], 0.7, "Test")
    assert (found.rescale, found.conditional, round(found.scale, 2)) == (0.7, 1, 5.0)


def test_an_unknown_mix_is_refused():
    branches = [torch.randn(2, 4, 8, 8) for _ in range(2)]
    with pytest.raises(UserError, match="does not know"):
        recover([(branches, branches[0] * branches[1])], 0.0, "Test")


@pytest.mark.parametrize(
    ("guider", "taken"),
    [
        (diffusers.ClassifierFreeGuidance(4.0), True),
        (diffusers.ClassifierFreeGuidance(4.0, stop=0.5), False),
        (diffusers.AdaptiveProjectedMixGuidance(), False),
    ],
)
def test_a_guider_object_is_taken_where_it_mixes_alike_at_every_step(guider, taken):
    pipeline = SimpleNamespace(components={"guider": guider, "vae": torch.nn.Identity(), "tokenizer": None})
    if taken:
        return check_guider(pipeline)
    with pytest.raises(UserError, match="may change during a run"):
        check_guider(pipeline)
