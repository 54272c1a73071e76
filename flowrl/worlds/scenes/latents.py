"""The world's latents, which say what every slot holds, and the autoencoder that paints and reads them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowrl.worlds.images import autoencoder as shared
from flowrl.worlds.images.autoencoder import Vae
from flowrl.worlds.images.scenes import SLOT, Scene
from flowrl.worlds.scenes.scenes import FIGURES, PALETTE, SIDE, SIZE, any_scene, render

CHANNELS = len(FIGURES) + 7  # figure, colour, offset from the slot's centre, radius, background
LOUD = 2.5  # of a name and of full colour, against unit noise; rare letters at unit variance would be decided at once
OFFSET = 2.0  # pixels that count as one
RADIUS, RADIUS_SPREAD = 5.0, 0.8  # pixels
GREY_SPREAD = 0.05
CELLS = 2  # latents per slot and direction; all four of a slot say the same
NOISE = 0.4  # most noise on the latents a decoder learns from: it must forgive small errors
PLAN = shared.Plan(SIZE, widths=(8, 16, 32, 48), channels=CHANNELS)
BATCH = 12


def latents_of(scenes: Sequence[Scene]) -> Tensor:  # [N, CHANNELS, 8, 8]
    """What the flow model generates; an empty slot says 0 but for its background."""
    said = torch.zeros(len(scenes), CHANNELS, SIDE, SIDE)
    color = len(FIGURES)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            row, column = int(thing.y // SLOT), int(thing.x // SLOT)
            place = said[i, :, row, column]
            place[FIGURES.index(thing.shape)] = LOUD
            place[color : color + 3] = LOUD * (torch.tensor(PALETTE[thing.color]) - 0.5)
            x, y = thing.x - (column + 0.5) * SLOT, thing.y - (row + 0.5) * SLOT
            place[color + 3 : color + 6] = torch.tensor(
                [x / OFFSET, y / OFFSET, (thing.radius - RADIUS) / RADIUS_SPREAD]
            )
    said = said.repeat_interleave(CELLS, 2).repeat_interleave(CELLS, 3)
    axis = (torch.arange(SIDE * CELLS) + 0.5) / (SIDE * CELLS) - 0.5
    grey = torch.tensor([[scene.grey - 0.5, *scene.slope] for scene in scenes])[:, :, None, None]
    said[:, -1] = (grey[:, 0] + grey[:, 1] * axis[None, None] + grey[:, 2] * axis[None, :, None]) / GREY_SPREAD
    return said


def train(seconds: float, seed: int, log: Callable[[dict[str, float]], None], scenes: int = 6_000) -> Vae:
    """The decoder learns to paint noisy latents, the encoder to read pictures."""
    torch.manual_seed(seed)
    vae, rng, generator = shared.build(PLAN), random.Random(seed), torch.Generator().manual_seed(seed)
    drawn = [any_scene(rng) for _ in range(scenes)]
    images, latents = render(drawn) * 2 - 1, latents_of(drawn)

    def loss() -> Tensor:
        rows = torch.randint(scenes, (BATCH,), generator=generator)
        level = NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=generator)
        painted = shared.error(vae.decode(latents[rows] + level * noise).sample, images[rows])
        return painted + (vae.encode(images[rows]).latent_dist.mode() - latents[rows]).square().mean()

    shared.fit(loss, vae.parameters(), seconds, log)
    return shared.certain(vae)
