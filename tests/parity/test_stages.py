"""Two denoisers that share a run's steps: the pipeline's own videos, a gradient for each, and an export of both."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.models import export_formats, export_policy, load_adapter
from flowrl.models.deviation import deviation
from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.stages import Stages
from flowrl.models.lora import LoRAOptions
from flowrl.types import prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS, move, points

CALL = pipelines.CALLS["wan22"]
LORA = LoRAOptions(rank=4, alpha=16)


@pytest.fixture(scope="module")
def policy(folder):
    made = load_policy(folder("wan22"), call=CALL, lora=LORA)
    move(made, 0.2)
    return made


def euler(pipeline, noise: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The samples and predictions that the pipeline itself hands to its scheduler in 4 steps, each an Euler step."""
    seen, real = [], pipeline.scheduler.step

    def step(output, timestep, sample, **_):
        seen.append((sample.clone(), output.clone()))
        sigmas = pipeline.scheduler.sigmas
        return (sample + float(sigmas[len(seen)] - sigmas[len(seen) - 1]) * output,)

    pipeline.scheduler.step = step
    try:
        pipeline(list(PROMPTS[:2]), num_inference_steps=4, latents=noise.clone(), output_type="latent", **CALL)
    finally:
        pipeline.scheduler.step = real
    return seen


def test_predictions_are_bit_for_bit_those_of_the_pipelines_own_two_denoisers(folder):
    """The plain pipeline, which no `Stages` has touched; the second denoiser has a guidance of its own."""
    plain = diffusers.WanPipeline.from_pretrained(folder("wan22"))
    policy = load_policy(folder("wan22"), call=CALL, parity="skip")
    noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(7))
    times, condition = policy.times(4)[:-1], policy.condition(prompts_of(PROMPTS[:2]))
    assert [float(policy.spec.coordinates.network_time(t)) >= 875 for t in times] == [True, True, False, False]
    for t, (sample, prediction) in zip(times, euler(plain, noise), strict=True):
        with torch.no_grad():
            assert torch.equal(policy.velocity(sample, t.expand(2), condition), prediction)


def test_rows_of_both_stages_in_one_forward_are_those_of_each_alone(policy):
    x, t = points(policy, 4)
    x, t = x[[2, 0, 3, 1]], t[[2, 0, 3, 1]]  # late, early, late, early
    condition = policy.condition(prompts_of([*PROMPTS, PROMPTS[0]]))
    together = policy.velocity(x, t, condition)
    for row in range(4):
        one = torch.tensor([row])
        assert deviation(policy.velocity(x[one], t[one], condition.take(one)), together[one]) < 1e-5


@pytest.mark.parametrize(("rows", "reached"), [([0, 1], {"transformer"}), ([2, 3], {"transformer_2"}),
                                               ([0, 3], {"transformer", "transformer_2"})])  # fmt: skip
def test_a_gradient_reaches_every_layer_of_the_denoiser_that_was_asked_and_no_other(policy, rows, reached):
    x, t = points(policy, 4)
    policy.velocity(x[rows], t[rows], policy.condition(prompts_of(PROMPTS[:2]))).square().sum().backward()
    found = {name.split(".")[0] for name, p in policy.adaptation.parameters.items() if p.grad is not None}
    whole = {n.split(".")[0] for n, p in policy.adaptation.parameters.items() if p.grad is None or not p.grad.any()}
    for parameter in policy.parameters():
        parameter.grad = None
    assert found == reached and not whole & reached


def test_guidance_of_each_stage_is_the_calls_and_a_given_one_replaces_both(policy):
    x, t = points(policy, 4)
    condition = policy.condition(prompts_of([*PROMPTS, PROMPTS[0]]))
    with torch.no_grad():
        own, four, three = (policy.velocity(x, t, condition, guidance=g) for g in (None, 4.0, 3.0))
    assert deviation(own[:2], four[:2]) < 1e-6 and deviation(own[2:], three[2:]) < 1e-6
    assert deviation(own[2:], four[2:]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("to", ["diffusers", "peft", "merged"])
def test_exports_have_a_folder_of_each_component_and_are_read_again(to, policy, folder, tmp_path):
    assert export_formats(policy) == ("diffusers", "peft", "merged")
    assert export_policy(policy, tmp_path / "out", to) < (1e-4 if to == "merged" else 1e-6)
    assert {"transformer", "transformer_2"} <= {path.name for path in (tmp_path / "out").iterdir()}
    x, t = points(policy, 4)
    condition = prompts_of([*PROMPTS, PROMPTS[0]])
    if to == "merged":
        again = load_policy(tmp_path / "out", call=CALL)
    else:
        again = load_policy(folder("wan22"), call=CALL, lora=LORA, parity="skip")
        load_adapter(again, tmp_path / "out")
    theirs, ours = (one.velocity(x, t, one.condition(condition)) for one in (again, policy))
    assert deviation(theirs, ours) < (1e-4 if to == "merged" else 1e-6)


def test_diffusers_itself_loads_both_adapters(policy, folder, tmp_path):
    export_policy(policy, tmp_path / "out", "diffusers")
    plain = diffusers.WanPipeline.from_pretrained(folder("wan22"))
    plain.load_lora_weights(tmp_path / "out" / "transformer")
    plain.load_lora_weights(tmp_path / "out" / "transformer_2", load_into_transformer_2=True)
    noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(7))
    for (_, theirs), (_, ours) in zip(euler(plain, noise), euler(policy.pipeline, noise), strict=True):
        assert deviation(ours, theirs) < 1e-6


def test_an_adapters_own_shape_is_taken_and_unequal_ones_are_refused(policy, tmp_path):
    from flowrl.models.adapters import read

    export_policy(policy, tmp_path / "out", "peft")
    found = read(tmp_path / "out", None, family="diffusion")
    assert found.parts == ("transformer", "transformer_2") and found.options().rank == 4
    assert len(found.options().targets or ()) * 2 == len(found.ranks)
    config = tmp_path / "out" / "transformer_2" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 8'))
    with pytest.raises(UserError, match="differ in their layers, rank or alpha"):
        read(tmp_path / "out", None, family="diffusion")


def test_what_two_denoisers_cannot_do_is_said(folder, monkeypatch):
    monkeypatch.setattr("flowrl.models.diffusion.load.check_shard", lambda _: None)
    with pytest.raises(UserError, match=r"two denoisers.*set it to none"):
        load_policy(folder("wan22"), call=CALL, shard="fsdp")
    unbounded = diffusers.WanPipeline.from_pretrained(folder("wan22"))
    unbounded.register_to_config(boundary_ratio=None)
    with pytest.raises(UserError, match="no boundary_ratio"):
        load_policy(unbounded, call=CALL)


@pytest.mark.slow
def test_attention_backends_and_recomputed_activations_reach_both(folder):
    policy = load_policy(folder("wan22"), call=CALL, gradient_checkpointing=True, attention="sdpa")
    assert isinstance(policy.network, Stages)
    assert policy.network.transformer.gradient_checkpointing and policy.network.transformer_2.gradient_checkpointing
