"""What the image worlds' autoencoders share: architecture, loss, optimiser. Latents have an eighth of the side.

Latents trained on reconstruction alone are useless here: figures differ from the grey background with either sign, so
presence and shape explain 1 % and 0.2 % of their variance, and a flow model learns no layout, count or binding from
text in 400k images (shapes/README.md). Most channels, or all, are therefore regressed on the scene.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

LR = 3e-3
FIGURE_WEIGHT = 5.0  # squared error near figures counts this much: most pixels are background
Vae = Any
"""An `AutoencoderKL`; diffusers declares its outputs as tuples, which they are not."""


@dataclass(frozen=True)
class Plan:
    """What differs between the worlds."""

    size: int  # image side in pixels
    widths: tuple[int, int, int, int]  # from full size down; narrow where images are large
    channels: int  # of the latent


def build(plan: Plan) -> Vae:
    """Untrained, fully convolutional."""
    kind: Any = AutoencoderKL  # declared for one level only
    return kind(
        down_block_types=("DownEncoderBlock2D",) * len(plan.widths),
        up_block_types=("UpDecoderBlock2D",) * len(plan.widths),
        block_out_channels=plan.widths,
        layers_per_block=1,
        latent_channels=plan.channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=plan.size,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def fit(
    loss_of_batch: Callable[[], Tensor],
    parameters: Iterable[torch.nn.Parameter],
    seconds: float,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Minimises it for as many CPU seconds."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    start, step, done = time.process_time(), 0, 0.0
    while done < 1:
        done = (time.process_time() - start) / seconds
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 50) * min(1.0, max(0.01, 1.4 * (1 - done)))
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            log({"autoencoder step": step, "done": done, "loss": loss.item()})


def error(painted: Tensor, images: Tensor) -> Tensor:
    """Squared plus a tenth of the absolute error, more of it near figures."""
    away = painted - images
    contrast = (images - images[:, :, :1, :1]).abs().amax(1, keepdim=True)  # the corner is background
    near = F.max_pool2d((contrast > 0.3).float(), 3, 1, 1)
    return ((1 + (FIGURE_WEIGHT - 1) * near) * (away.square() + 0.1 * away.abs())).mean()


@torch.no_grad()
def encode(vae: Vae, images: Tensor) -> Tensor:
    """Clean latents as the transformer sees them, of images in [0, 1]."""
    latents = torch.cat([vae.encode(chunk * 2 - 1).latent_dist.mode() for chunk in images.split(256)])
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def certain(vae: Vae) -> Vae:
    """The posterior's variance, never trained, becomes nil. Frozen, for inference."""
    last, channels = vae.quant_conv, vae.config.latent_channels
    last.weight[channels:].zero_()
    last.bias[channels:].fill_(-12.0)
    return vae.eval().requires_grad_(False)
