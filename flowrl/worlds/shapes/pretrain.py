"""Trains the world's base model from nothing: `python -m flowrl.worlds.shapes.pretrain --out DIR`."""

from __future__ import annotations

from functools import partial

from diffusers import StableDiffusion3Pipeline as Pipeline

from flowrl.worlds.images import pretraining
from flowrl.worlds.images.autoencoder import Vae
from flowrl.worlds.images.pretraining import DrawPairs, Recipe
from flowrl.worlds.images.text import Language
from flowrl.worlds.shapes import autoencoder
from flowrl.worlds.shapes.captions import LAYOUT, NOISY, draw_pairs
from flowrl.worlds.shapes.prompts import vocabulary

LANGUAGE = Language(vocabulary(), context=10)
"""The longest caption has eight words."""


def build(vae: Vae, seed: int) -> Pipeline:
    """An untrained pipeline around a trained autoencoder."""
    return pretraining.build(vae, LANGUAGE, seed, width=112)


def lessons(vae: Vae, seconds: float, seed: int) -> list[tuple[Recipe, DrawPairs]]:
    """The shipped base's curriculum. Relations stay at chance without the second; the third restores the noise."""
    noisy, layout = (partial(draw_pairs, vae=vae, mix=mix) for mix in (NOISY, LAYOUT))
    return [
        (Recipe(0.52 * seconds, seed=seed), noisy),
        (Recipe(0.26 * seconds, lr=1.5e-3, decay_from=1.0, high_noise=0.4, seed=seed + 7), layout),
        (Recipe(0.22 * seconds, lr=1.5e-3, decay_from=0.3, high_noise=0.3, seed=seed + 8), noisy),
    ]


def main() -> None:
    """The command."""
    pretraining.train(autoencoder.train, build, lessons, minutes=23, vae_minutes=10)


if __name__ == "__main__":
    main()
