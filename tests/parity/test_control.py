"""A ControlNet beside the denoiser: the pipeline's own predictions, adapters of the denoiser alone, their exports."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.models import export_formats, export_policy, load_adapter
from flowrl.models.deviation import deviation
from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.control import Controlled
from flowrl.models.lora import LoRAOptions
from flowrl.types import prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS, move, points

CALL = pipelines.CALLS["control_net"]
LORA = LoRAOptions(rank=4, alpha=16)


@pytest.fixture(scope="module")
def policy(folder):
    made = load_policy(folder("control_net"), call=CALL, lora=LORA)
    move(made, 0.2)
    return made


def test_predictions_are_those_of_the_pipeline_that_calls_both_itself(folder):
    plain = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder("control_net"))
    policy = load_policy(folder("control_net"), call=CALL, parity="skip")
    seen: list[tuple[Tensor, Tensor, float]] = []
    real = plain.scheduler.step

    def step(output, timestep, sample, *args, **kwargs):
        seen.append((sample.clone(), output.clone(), float(timestep)))
        return real(output, timestep, sample, *args, **kwargs)

    plain.scheduler.step = step
    noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(7))
    plain(list(PROMPTS[:2]), num_inference_steps=4, latents=noise, output_type="latent", **CALL)
    times, condition = policy.times(4)[:-1], policy.condition(prompts_of(PROMPTS[:2]))
    for t, (sample, prediction, timestep) in zip(times, seen, strict=True):
        assert float(policy.spec.coordinates.network_time(t)) == pytest.approx(timestep, abs=1e-3)
        x = policy.spec.coordinates.from_network(sample, t.expand(2))
        with torch.no_grad():
            assert deviation(policy.native(x, t.expand(2), condition, None, "cond"), prediction) < 1e-5
    other = load_policy(folder("control_net"), call={**CALL, "controlnet_conditioning_scale": 0.0}, parity="skip")
    x, t = points(policy)
    with torch.no_grad():
        pair = [each.velocity(x, t, each.condition(prompts_of(PROMPTS))) for each in (policy, other)]
    assert deviation(*pair) > 1e-3, "the ControlNet does nothing"


def test_the_denoiser_alone_is_trained(policy):
    assert isinstance(policy.network, Controlled)
    assert all(name.startswith("unet.") for name in policy.adaptation.parameters)
    x, t = points(policy)
    policy.velocity(x, t, policy.condition(prompts_of(PROMPTS))).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.parameters())
    assert not any(p.requires_grad for p in policy.network.controlnet.parameters())
    for parameter in policy.parameters():
        parameter.grad = None


@pytest.mark.slow
@pytest.mark.parametrize("to", ["diffusers", "peft", "merged"])
def test_exports_are_read_again(to, policy, folder, tmp_path):
    assert export_formats(policy) == ("diffusers", "peft", "merged")
    bound = 1e-4 if to == "merged" else 1e-6
    assert export_policy(policy, tmp_path / "out", to) < bound
    if to == "merged":
        again = load_policy(tmp_path / "out", call=CALL)
    else:
        again = load_policy(folder("control_net"), call=CALL, lora=LORA, parity="skip")
        load_adapter(again, tmp_path / "out")
    x, t = points(policy)
    theirs, ours = (each.velocity(x, t, each.condition(prompts_of(PROMPTS))) for each in (again, policy))
    assert deviation(theirs, ours) < bound


@pytest.mark.slow
def test_what_cannot_be_replayed_is_said(folder):
    with pytest.raises(UserError, match="guess_mode=true gives the ControlNet half of the batch"):
        load_policy(folder("control_net"), call={**CALL, "guess_mode": True})
    plain = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder("control_net"))
    two = diffusers.StableDiffusionControlNetPipeline(
        **{**plain.components, "controlnet": [plain.controlnet, plain.controlnet]}, requires_safety_checker=False
    )
    with pytest.raises(UserError, match="several ControlNets; load it with one"):
        load_policy(two, call=CALL)
    with pytest.raises(UserError, match=r"conditioning_scale of .* is not an affine function"):
        load_policy(folder("control_net"), call={**CALL, "control_guidance_end": 0.5})
