"""Decoding with a gradient: the pipeline's own images, and the slope of its own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowrl.models.diffusion import load_policy
from tests.pipelines import CALLS, save

QUICK = ("sd3", "sd15")
FURTHER = (
    "animate_diff",
    "flux",
    "flux2",
    "hunyuan_image",
    "kandinsky3",
    "ltx",
    "lumina2",
    "pixart_sigma",
    "qwen_image",
    "sana",
    "sdxl",
    "wan",
    "z_image",
)
ALL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)]
"""One of each kind of decoder."""


@pytest.mark.parametrize("name", ALL)
def test_decoding_with_a_gradient_is_decoding(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    policy = load_policy(str(save(name, tmp_path)), call=CALLS[name], decode_batch=1)
    generator = torch.Generator().manual_seed(1)
    latents = 0.3 * torch.randn(2, *policy.latent_shape, generator=generator)
    plain = policy.decode(latents)
    x = latents.clone().requires_grad_()
    made = policy.decode(x, graph=True)
    assert made.requires_grad and not plain.requires_grad and not policy.decode(x).requires_grad
    torch.testing.assert_close(made.detach(), plain, rtol=0, atol=1e-6)
    weight = torch.randn(made.shape, generator=generator)
    (slope,) = torch.autograd.grad((made * weight).sum(), x)
    assert bool(torch.isfinite(slope).all()) and float(slope[0].abs().max()) > 0 and float(slope[1].abs().max()) > 0
    for _, part in policy.pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            assert all(parameter.grad is None for parameter in part.parameters())
    direction = slope / slope.norm()

    def total(step: float) -> float:
        return float((policy.decode(latents + step * direction) * weight).sum())

    slopes = [(total(step) - total(-step)) / (2 * step) for step in (0.3, 0.1, 0.03, 0.01)]
    best = min(abs(found / float(slope.norm()) - 1) for found in slopes)
    assert best < 0.1 or name == "sana"  # whose random decoder is too rough for differences in float32
    with torch.no_grad():
        assert torch.equal(policy.decode(latents), plain)
