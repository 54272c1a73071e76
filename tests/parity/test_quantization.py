"""Adapters on a base in four or eight bits: the same numbers as on its dequantised weights, in every family."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from flowrl.errors import UserError
from flowrl.models import export_formats, export_policy, load_policy
from flowrl.models.causal.load import load_causal
from flowrl.models.diffusion import DiffusionPolicy
from flowrl.models.diffusion.load import open_pipeline
from flowrl.models.masked.load import load_masked
from flowrl.models.quantization import Quantized, dequantized, describe_quantized, diffusers_options, is_quantized
from flowrl.models.source import ModelSource
from flowrl.models.text.policy import TextPolicy
from flowrl.types import prompts_of
from tests import components_text, pipelines
from tests.parity.conftest import PROMPTS, move, points

bnb: Any = pytest.importorskip("bitsandbytes")
METHODS = ("nf4", "int8")
IMAGES = ("sd3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flux", "qwen_image", "sdxl")))


def quantized_layers(network: nn.Module) -> dict[str, Any]:
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, kinds)}


def on_dequantized(policy: Any, plain: Any) -> Any:
    """``plain``, the same model without quantisation, with the weights that the quantised one stands for, and its
    adapter."""
    ours, theirs = (p.network if isinstance(p, DiffusionPolicy) else p.network.model for p in (policy, plain))
    layers = quantized_layers(ours)
    assert layers
    with torch.no_grad():
        for name, layer in layers.items():
            theirs.get_submodule(name).weight.copy_(dequantized(layer, torch.float32))
        for a, b in zip(policy.parameters(), plain.parameters(), strict=True):
            b.copy_(a)
    return plain


def image_loss(policy: DiffusionPolicy) -> tuple[torch.Tensor, torch.Tensor]:
    x, t = points(policy)
    condition = policy.condition(prompts_of(PROMPTS))
    with torch.no_grad():
        still = policy.velocity(x, t, condition)
    return policy.velocity(x, t, condition), still


def text_loss(policy: TextPolicy) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = {"input_ids": torch.arange(5, 5 + 24).reshape(2, 12) % policy.network.embedded}
    with torch.no_grad():
        still = policy.network.run(inputs).logits
    return policy.network.run(inputs).logits, still


def same_numbers(policy: Any, plain: Any, loss: Any) -> None:
    """Predictions, with and without gradient, and gradients."""
    gradients = []
    for model in (policy, plain):
        made, still = loss(model)
        torch.testing.assert_close(made.detach(), still, rtol=1e-3, atol=5e-5)  # convolutions round by themselves
        made.double().square().mean().backward()
        gradients.append((made.detach(), [p.grad for p in model.parameters()]))
    (first, ours), (second, theirs) = gradients
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
    assert sum(float(g.abs().sum()) for g in ours if g is not None) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)  # a layer behind which nothing is read, in some networks
        if a is None:
            continue
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", IMAGES)
def test_denoiser(name, method, folder):
    call = pipelines.CALLS[name]
    policy = load_policy(folder(name), call=call, quantize=method)  # with its self-check
    assert is_quantized(policy.network)
    move(policy)
    plain = load_policy(folder(name), call=call, parity="skip")
    before, _ = image_loss(plain)
    same_numbers(policy, on_dequantized(policy, plain), image_loss)
    after, _ = image_loss(plain)
    assert float((before - after).detach().abs().max()) > 1e-4  # the weights were rounded


@pytest.mark.parametrize("method", METHODS)
def test_language_models(method):
    for load, name in ((load_causal, "qwen3"), (load_masked, "bert"), (load_masked, "llada")):
        folder, trust = components_text.folder(name), name == "llada"
        policy = load(folder, quantize=method, trust_remote_code=trust)
        move(policy)
        plain = on_dequantized(policy, load(folder, trust_remote_code=trust))
        same_numbers(policy, plain, text_loss)
        head = policy.network.model.get_output_embeddings()
        assert not quantized_layers(head) and type(head) is nn.Linear


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_is_as_any_other(method, folder, tmp_path):
    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], quantize=method, parity="skip")
    move(policy)
    assert "merged" not in export_formats(policy)
    for to in ("diffusers", "peft"):
        export_policy(policy, tmp_path / to, to)
    with pytest.raises(UserError, match="merged"):
        export_policy(policy, tmp_path / "merged", "merged")
    user = open_pipeline(ModelSource(str(folder("sd3"))), torch.float32)
    with torch.no_grad():
        for name, layer in quantized_layers(policy.network).items():
            name = name.removesuffix(".base_layer")
            user.transformer.get_submodule(name).weight.copy_(dequantized(layer, torch.float32))
    user.load_lora_weights(str(tmp_path / "diffusers"))
    theirs = {key.replace("default_0", "default"): p.detach() for key, p in user.transformer.named_parameters()}
    for name, parameter in policy.adaptation.parameters.items():
        torch.testing.assert_close(theirs[name], parameter.detach(), rtol=0, atol=0)
    x, t = points(policy)
    with torch.no_grad():
        made = policy.velocity(x, t, policy.condition(prompts_of(PROMPTS)))
        policy.network = user.transformer  # the same call, of the network that a user loaded
        again = policy.velocity(x, t, policy.condition(prompts_of(PROMPTS)))
    torch.testing.assert_close(again, made, rtol=1e-5, atol=1e-6)


def test_what_is_held_in_few_bits_is_told(folder):
    dense = load_causal(components_text.folder("qwen3"), quantize="nf4").network.model
    linear = sum(layer.in_features * layer.out_features for layer in quantized_layers(dense).values())
    assert describe_quantized(dense).startswith(f"quantised: {linear:,} of ")
    assert "experts" not in describe_quantized(dense)
    sparse = load_masked(components_text.folder("diffusion_gemma"), quantize="int8").network.model
    assert ("experts" in describe_quantized(sparse)) == (
        sum(p.numel() for p in sparse.parameters() if p.dim() == 3)
        > sum(layer.in_features * layer.out_features for layer in quantized_layers(sparse).values())
    )


def test_the_way_of_accelerators_is_that_of_the_cpu(folder, monkeypatch):
    """Diffusers' own quantiser, which asks for an accelerator, and ours on the CPU make the same numbers."""
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer

    for quantiser in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantiser, "validate_environment", lambda self, *args, **kwargs: None)
    place = str(folder("sd3") / "transformer")
    for method in METHODS:
        ours = diffusers.SD3Transformer2DModel.from_pretrained(place)
        Quantized(network=method).finish("transformer", ours)
        options = diffusers_options(method, torch.float32, torch.device("cuda"))
        options |= {"device_map": {"": "cpu"}, "torch_dtype": torch.float32}
        theirs = diffusers.SD3Transformer2DModel.from_pretrained(place, **options)
        Quantized(network=method).finish("transformer", theirs)
        first, second = quantized_layers(ours), quantized_layers(theirs)
        assert first.keys() == second.keys()
        for name, layer in first.items():
            assert torch.equal(dequantized(layer, torch.float32), dequantized(second[name], torch.float32))
