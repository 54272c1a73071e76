"""Three predictions mixed by the pipeline's own scales: all in one batch, with the gradient that is asked for."""

from __future__ import annotations

import diffusers
import pytest
import torch

from flowrl.errors import UserError
from flowrl.models import check_parity, export_policy
from flowrl.models.deviation import deviation
from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.guidance import recover
from flowrl.models.lora import LoRAOptions
from flowrl.types import prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS, move, points

CALL = pipelines.CALLS["sd15_pag"]


@pytest.fixture(scope="module")
def policy(folder):
    made = load_policy(folder("sd15_pag"), call=CALL, lora=LoRAOptions(rank=4, alpha=8))
    move(made, 0.1)
    return made


def test_factors_are_recovered_from_known_numbers():
    branches = [torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    seen = branches[0] + 5 * (branches[1] - branches[0]) + 2 * (branches[1] - branches[2])
    found = recover([(branches, seen)], 0.0, "it")
    assert found.weights == (-4.0, 7.0, -2.0) and found.conditional == 1
    with pytest.raises(UserError, match="mixes the 3 predictions"):
        recover([(branches, seen), (branches, seen + branches[0])], 0.0, "it")


def test_predictions_are_the_plain_pipelines_with_and_without_a_gradient(folder):
    plain = diffusers.StableDiffusionPAGPipeline.from_pretrained(folder("sd15_pag"), safety_checker=None)
    plain.scheduler = diffusers.DDIMScheduler.from_config(plain.scheduler.config, clip_sample=False)
    policy = load_policy(folder("sd15_pag"), call=CALL, parity="skip")
    assert policy.spec.guidance.weights == (-4.0, 7.0, -2.0)
    seen, real = [], plain.scheduler.step

    def step(output, timestep, sample, *args, **kwargs):
        seen.append((sample.clone(), output.clone()))
        return real(output, timestep, sample, *args, **kwargs)

    plain.scheduler.step = step
    noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(7))
    plain(list(PROMPTS[:2]), num_inference_steps=4, latents=noise, output_type="latent", **CALL)
    condition = policy.condition(prompts_of(PROMPTS[:2]))
    for t, (sample, prediction) in zip(policy.times(4)[:-1], seen, strict=True):
        x = policy.spec.coordinates.from_network(sample, t.expand(2))
        for cfg_grad in ("cond", "both"):
            assert deviation(policy.native(x, t.expand(2), condition, None, cfg_grad).detach(), prediction) < 1e-5


def test_a_row_does_not_depend_on_its_batch(policy):
    x, t = points(policy)
    condition = policy.condition(prompts_of(PROMPTS))
    together = policy.velocity(x, t, condition)
    for row in range(3):
        one = torch.tensor([row])
        assert deviation(policy.velocity(x[one], t[one], condition.take(one)), together[one]) < 1e-5


def test_the_gradient_is_the_conditional_branchs_or_that_of_all(policy):
    x, t = points(policy)
    condition = policy.condition(prompts_of(PROMPTS))
    parameter = max(policy.parameters(), key=lambda p: p.numel())

    def value() -> torch.Tensor:
        return policy.native(x, t, condition, None, "both").square().mean()

    (whole,) = torch.autograd.grad(value(), parameter)
    (part,) = torch.autograd.grad(policy.native(x, t, condition, None, "cond").square().mean(), parameter)
    direction, step = whole / whole.norm(), 1e-2
    with torch.no_grad():
        sides = []
        for sign in (1, -1):
            parameter.add_(sign * step * direction)
            sides.append(float(value()))
            parameter.sub_(sign * step * direction)
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(whole.norm()), rel=0.02)
    assert deviation(part, whole) > 0.01


def test_a_scale_that_would_replace_one_of_several_is_refused(policy):
    x, t = points(policy)
    with pytest.raises(UserError, match="mixes 3 predictions; leave it out"):
        policy.velocity(x, t, policy.condition(prompts_of(PROMPTS)), guidance=2.0)
    with pytest.raises(UserError, match="mixes 3 predictions"):
        policy.check_guidance(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["diffusers", "merged"])
def test_exports_are_compared_with_perturbed_attention(to, policy, tmp_path):
    assert export_policy(policy, tmp_path / "out", to) < 1e-4
    if to == "merged":
        again = load_policy(tmp_path / "out", call=CALL)
        x, t = points(policy)
        theirs, ours = (each.velocity(x, t, each.condition(prompts_of(PROMPTS))) for each in (again, policy))
        assert deviation(theirs, ours) < 1e-4


@pytest.mark.slow
def test_perturbed_attention_alone_and_switched_off(folder):
    alone = load_policy(folder("sd15_pag"), call={**CALL, "guidance_scale": 1.0})
    assert alone.spec.guidance.weights == (3.0, -2.0) and check_parity(alone) < 1e-4
    off = load_policy(folder("sd15_pag"), call={**CALL, "pag_scale": 0.0})
    assert not off.spec.guidance.weights and off.spec.guidance.scale == 5
    with pytest.raises(UserError, match="mixes the 3 predictions"):
        load_policy(folder("sd15_pag"), call={**CALL, "pag_adaptive_scale": 0.001})
