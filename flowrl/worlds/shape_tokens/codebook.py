"""The image tokenizer: the shapes world's autoencoder with a codebook, as a `VQModel` of diffusers."""

from __future__ import annotations

import random
from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor

from flowrl.worlds.images.autoencoder import Vae, encode
from flowrl.worlds.shapes.autoencoder import CHANNELS, PLAN, any_scene
from flowrl.worlds.shapes.scenes import render

CODES = 512
"""Of them, 96 % of the test set's scenes survive with 256, and all with 512."""
SCENES = 4000
ROUNDS = 25


def tokenizer_of(vae: Vae, seed: int) -> VQModel:
    """The autoencoder's own encoder and decoder, with the means of `CODES` clusters of its latents between them."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    latents = torch.cat([encode(vae, render([any_scene(rng) for _ in range(250)])) for _ in range(SCENES // 250)])
    kind: Any = VQModel
    made = kind(
        down_block_types=("DownEncoderBlock2D",) * len(PLAN.widths),
        up_block_types=("UpDecoderBlock2D",) * len(PLAN.widths),
        block_out_channels=PLAN.widths,
        layers_per_block=1,
        latent_channels=CHANNELS,
        sample_size=PLAN.size,
        num_vq_embeddings=CODES,
        norm_num_groups=8,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    state = {name: value for name, value in vae.state_dict().items() if name in made.state_dict()}
    mean = state.pop("quant_conv.weight")[:CHANNELS, :, 0, 0]  # of the mean alone, folded into the layer before
    state["encoder.conv_out.bias"] = mean @ state["encoder.conv_out.bias"] + state.pop("quant_conv.bias")[:CHANNELS]
    state["encoder.conv_out.weight"] = torch.einsum("oc,cikl->oikl", mean, state["encoder.conv_out.weight"])
    state["quant_conv.weight"] = torch.eye(CHANNELS)[:, :, None, None]
    state["quant_conv.bias"] = torch.zeros(CHANNELS)
    state["quantize.embedding.weight"] = clusters(latents.permute(0, 2, 3, 1).flatten(0, 2), CODES, generator)
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


def clusters(points: Tensor, count: int, generator: torch.Generator) -> Tensor:  # [N, C] -> [count, C]
    """Lloyd's algorithm for `ROUNDS` rounds; a cluster without points begins anew at one."""
    means = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, means).argmin(dim=1)
        size = torch.bincount(nearest, minlength=count)[:, None]
        total = torch.zeros_like(means).index_add_(0, nearest, points)
        anew = points[torch.randint(len(points), (count,), generator=generator)]
        means = torch.where(size > 0, total / size.clamp(min=1), anew)
    return means
