"""Trains the world's base model from nothing: `python -m flowrl.worlds.scenes.pretrain --out DIR`."""

from __future__ import annotations

from functools import partial

from diffusers import StableDiffusion3Pipeline as Pipeline

from flowrl.worlds.images import pretraining
from flowrl.worlds.images.autoencoder import Vae
from flowrl.worlds.images.pretraining import DrawPairs, Recipe
from flowrl.worlds.images.text import Language
from flowrl.worlds.scenes import latents
from flowrl.worlds.scenes.captions import CLEAN, NOISY, draw_pairs
from flowrl.worlds.scenes.glyphs import GLYPHS
from flowrl.worlds.scenes.prompts import vocabulary

LANGUAGE = Language(vocabulary(), context=14, spelled=[letter.lower() for letter in GLYPHS])
"""The longest caption: `the text "KEN" right of a red circle`."""


def build(vae: Vae, seed: int) -> Pipeline:
    """An untrained pipeline around a trained autoencoder."""
    return pretraining.build(vae, LANGUAGE, seed, width=96)


def lessons(vae: Vae, seconds: float, seed: int) -> list[tuple[Recipe, DrawPairs]]:
    """The shipped base's curriculum: what captions mean from clean scenes, then wrong ways of painting them."""
    clean, noisy = (partial(draw_pairs, noise=noise) for noise in (CLEAN, NOISY))
    return [
        (Recipe(0.3 * seconds, decay_from=1.0, high_noise=0.3, seed=seed), clean),
        (Recipe(0.7 * seconds, lr=1.5e-3, decay_from=0.5, high_noise=0.3, seed=seed + 1), noisy),
    ]


def main() -> None:
    """The command."""
    pretraining.train(latents.train, build, lessons, minutes=22, vae_minutes=6, half=True)


if __name__ == "__main__":
    main()
