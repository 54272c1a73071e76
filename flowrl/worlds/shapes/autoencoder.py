"""The world's image autoencoder: 32x32 renders to 12x4x4 latents whose first channels name shape and colour."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flowrl.worlds.images import autoencoder as shared
from flowrl.worlds.images.autoencoder import Vae
from flowrl.worlds.images.scenes import CLASSES, COLORS, SLOT, Scene, on_grey
from flowrl.worlds.shapes.scenes import SIZE, SLOTS, random_thing, render

CHANNELS = 12  # of the latent
NAMED = 7  # one per shape, then red, green, blue relative to grey; the same in all four cells of a slot
NAMED_WEIGHT = 0.3
LATENT_NOISE = 0.1  # added to unit-variance latents in training: the decoder must forgive small errors
BATCH = 24
PLAN = shared.Plan(SIZE, widths=(16, 16, 32, 64), channels=CHANNELS)  # decoding costs about 1 ms per image on one core


def any_scene(rng: random.Random) -> Scene:
    """One to four shapes of any kind: more varied than what any caption asks for."""
    slots = rng.sample(SLOTS, rng.randint(1, len(SLOTS)))
    things = [random_thing(rng.choice(CLASSES), rng.choice(list(COLORS)), slot, rng) for slot in slots]
    return on_grey(things, rng)


def train(seconds: float, seed: int, log: Callable[[dict[str, float]], None], scenes: int = 10_000) -> Vae:
    """Reconstruction plus named channels; the free ones are batch-normalised, their statistics folded in last."""
    torch.manual_seed(seed)
    vae, rng, generator = shared.build(PLAN), random.Random(seed), torch.Generator().manual_seed(seed)
    drawn = [any_scene(rng) for _ in range(scenes)]
    images, names = render(drawn) * 2 - 1, named_channels(drawn)

    def loss() -> Tensor:
        rows = torch.randint(scenes, (BATCH,), generator=generator)
        batch = images[rows]
        z = vae.encode(batch).latent_dist.mode()
        free = F.batch_norm(z[:, NAMED:], None, None, training=True)
        misnamed = (z[:, :NAMED] - names[rows]).square().mean()
        z = torch.cat([z[:, :NAMED], free], 1)
        noise = LATENT_NOISE * torch.randn(z.shape, generator=generator)
        error = shared.error(vae.decode(z + noise).sample, batch)
        return error + NAMED_WEIGHT * misnamed + 0.01 * _correlation(free)

    shared.fit(loss, vae.parameters(), seconds, log)
    _fold_statistics(vae, images)
    return shared.certain(vae)


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


def _correlation(z: Tensor) -> Tensor:
    flat = z.movedim(1, 0).flatten(1)
    covariance = flat @ flat.T / flat.shape[1]
    return (covariance - torch.diag(covariance.diag())).square().mean()


@torch.no_grad()
def _fold_statistics(vae: Vae, images: Tensor) -> None:
    """Unit variance of the free channels by the encoder's own last layer."""
    z = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in images.split(512)])[:, NAMED:]
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    last = vae.quant_conv
    last.weight[NAMED:CHANNELS].div_(std[:, None, None, None])
    last.bias[NAMED:CHANNELS].sub_(mean).div_(std)
