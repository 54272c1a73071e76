"""The world's image autoencoder: 32x32 renders to 12x4x4 latents whose first channels name shape and colour.

Latents trained on reconstruction alone are useless here: shapes differ from the grey background with either sign, so
presence and shape explain 1 % and 0.2 % of their variance, and a flow model learns no layout, count or binding from
text in 400k images (README.md). Seven of the twelve channels are therefore regressed on the scene.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from flowrl.worlds.shapes.scenes import CLASSES, COLORS, SIZE, SLOT, SLOTS, Scene, random_thing, render

CHANNELS = 12  # of the latent
NAMED = 7  # one per shape, then red, green, blue relative to grey; the same in all four cells of a slot
NAMED_WEIGHT = 0.3
LATENT_NOISE = 0.1  # added to unit-variance latents in training: the decoder must forgive small errors
BATCH = 24
Vae = Any
"""An `AutoencoderKL`; diffusers declares its outputs as tuples, which they are not."""
LR = 3e-3
SHAPE_WEIGHT = 5.0  # squared error near shapes counts this much: most pixels are background


def build() -> Vae:
    """Narrow where images are large; decoding costs about 1 ms per image on one core."""
    levels = 4
    kind: Any = AutoencoderKL  # declared for one level only
    return kind(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(16, 16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def any_scene(rng: random.Random) -> Scene:
    """One to four shapes of any kind: more varied than what any caption asks for."""
    slots = rng.sample(SLOTS, rng.randint(1, len(SLOTS)))
    things = tuple(random_thing(rng.choice(CLASSES), rng.choice(list(COLORS)), slot, rng) for slot in slots)
    return Scene(things, rng.uniform(0.42, 0.58), (rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)))


def train(seconds: float, seed: int, log: Callable[[str], None], scenes: int = 10_000) -> Vae:
    """Reconstruction plus named channels; the free ones are batch-normalised, their statistics folded in last."""
    torch.manual_seed(seed)
    vae = build()
    rng = random.Random(seed)
    drawn = [any_scene(rng) for _ in range(scenes)]
    images, names = render(drawn) * 2 - 1, named_channels(drawn)
    generator = torch.Generator().manual_seed(seed)

    def whole(rows: Tensor) -> Tensor:
        batch = images[rows]
        z = vae.encode(batch).latent_dist.mode()
        free = F.batch_norm(z[:, NAMED:], None, None, training=True)
        misnamed = (z[:, :NAMED] - names[rows]).square().mean()
        error = _error(vae, torch.cat([z[:, :NAMED], free], 1), batch, generator)
        return error + NAMED_WEIGHT * misnamed + 0.01 * _correlation(free)

    _fit(whole, vae.parameters(), seconds, scenes, generator, log)
    _fold_statistics(vae, images)
    return vae.eval().requires_grad_(False)


def named_channels(scenes: Sequence[Scene]) -> Tensor:  # [N, NAMED, 4, 4]
    """What the first channels should say: which shape and which colour each slot holds, standardised."""
    side = SIZE // SLOT
    said = torch.zeros(len(scenes), NAMED, side, side)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            row, column = int(thing.y // SLOT), int(thing.x // SLOT)
            said[i, CLASSES.index(thing.shape), row, column] = 1
            said[i, len(CLASSES) :, row, column] = torch.tensor(COLORS[thing.color]) - 0.5
    said = (said - said.mean((0, 2, 3), keepdim=True)) / said.std((0, 2, 3), keepdim=True)
    return said.repeat_interleave(2, 2).repeat_interleave(2, 3)


def encode(vae: Vae, images: Tensor) -> Tensor:
    """Clean latents as the transformer sees them, of images in [-1, 1]."""
    latents = vae.encode(images).latent_dist.mode()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def _fit(
    loss_of: Callable[[Tensor], Tensor],
    parameters: Iterable[torch.nn.Parameter],
    seconds: float,
    scenes: int,
    generator: torch.Generator,
    log: Callable[[str], None],
) -> None:
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    start, step, done = time.process_time(), 0, 0.0
    while done < 1:
        done = (time.process_time() - start) / seconds
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 50) * min(1.0, max(0.01, 1.4 * (1 - done)))
        loss = loss_of(torch.randint(scenes, (BATCH,), generator=generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            log(f"step {step} done {done:.2f} loss {loss.item():.5f}")


def _error(vae: Vae, z: Tensor, batch: Tensor, generator: torch.Generator) -> Tensor:
    """Squared plus a tenth of the absolute error, more of it near shapes."""
    z = z + LATENT_NOISE * torch.randn(z.shape, generator=generator)
    error = vae.decode(z).sample - batch
    contrast = (batch - batch[:, :, :1, :1]).abs().amax(1, keepdim=True)  # the corner is background
    near = F.max_pool2d((contrast > 0.3).float(), 3, 1, 1)
    return ((1 + (SHAPE_WEIGHT - 1) * near) * (error.square() + 0.1 * error.abs())).mean()


def _correlation(z: Tensor) -> Tensor:
    flat = z.movedim(1, 0).flatten(1)
    covariance = flat @ flat.T / flat.shape[1]
    return (covariance - torch.diag(covariance.diag())).square().mean()


@torch.no_grad()
def _fold_statistics(vae: Vae, images: Tensor) -> None:
    """Unit variance by the encoder's own last layer; the posterior's variance, never trained, becomes nil."""
    z = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in images.split(512)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    mean[:NAMED], std[:NAMED] = 0, 1  # standardised by their targets already
    last = vae.quant_conv
    last.weight[:CHANNELS].div_(std[:, None, None, None])
    last.bias[:CHANNELS].sub_(mean).div_(std)
    last.weight[CHANNELS:].zero_()
    last.bias[CHANNELS:].fill_(-12.0)
