"""Samples put together as they are made."""

from __future__ import annotations

import math

import pytest
import torch

from flowrl.checks.registry import DECODE
from flowrl.config import Config
from flowrl.media import as_floats, quantise
from flowrl.records.directory import RunDirectory
from flowrl.score import KeptSamples
from flowrl.train import train
from flowrl.types import Samples, prompts_of
from tests.launching import settled

IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = prompts_of(["a", "b", "c", "d", "e", "f"])


def chunks(images: torch.Tensor | None = IMAGES) -> list[Samples]:
    every = [slice(0, 2), slice(2, 4), slice(4, 6)]
    if images is None:
        return [Samples(PROMPTS[rows], completions=[p.text for p in PROMPTS[rows]]) for rows in every]
    return [Samples(PROMPTS[rows], images=images[rows].clone()) for rows in every]


def test_images_lie_in_one_tensor_from_the_first_chunk_on() -> None:
    kept = KeptSamples(6)
    scored = [kept.add(chunk).images for chunk in chunks()]
    made = kept.all()
    assert made.images is not None and torch.equal(made.images, IMAGES) and list(made.prompts) == PROMPTS
    start, size = made.images.data_ptr(), made.images.element_size() * IMAGES[0].numel()
    assert [part.data_ptr() - start for part in scored if part is not None] == [0, 2 * size, 4 * size]
    assert made.images.untyped_storage().nbytes() == 6 * size


def test_pictures_take_a_quarter_and_rewards_see_what_was_made() -> None:
    kept = KeptSamples(6, pictures_from=4 * 48)
    scored = [kept.add(chunk).images for chunk in chunks()]
    assert torch.equal(torch.cat([part for part in scored if part is not None]), IMAGES)
    images = kept.all().images
    assert images is not None and images.dtype == torch.uint8 and images.untyped_storage().nbytes() == IMAGES.numel()
    small = KeptSamples(6, pictures_from=4 * 48 + 1)
    small.add(chunks()[0])
    assert small.all().images.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.equal(images, quantise(IMAGES)) and quantise(images) is images
    assert float((as_floats(images) - IMAGES).abs().max()) <= 0.5 / 255 + 1e-7


@pytest.mark.parametrize("limit", [0.0, math.inf])
def test_all_at_once_texts_and_other_numbers_of_rows(limit: float) -> None:
    kept = KeptSamples(3, pictures_from=limit)  # a sampler that makes two of each
    whole = kept.add(Samples(PROMPTS, images=IMAGES))
    assert whole.images is IMAGES and len(kept.all()) == 6
    assert kept.all().images.dtype == (torch.float32 if limit else torch.uint8)  # type: ignore[union-attr]
    texts = KeptSamples(6, pictures_from=limit)
    for chunk in chunks(None):
        assert texts.add(chunk) is chunk
    assert texts.all().completions == ["a", "b", "c", "d", "e", "f"] and texts.all().images is None


@pytest.mark.slow
def test_a_run_scores_the_same_whatever_is_kept(tmp_path) -> None:
    """And says the same of everything but what is measured on the kept pictures, which is close."""
    small = ["train.iterations=1", "data.prompts=2", "data.group=4", "eval.every=0", "train.sample_batch=3"]
    rows = {}
    for images in ("auto", "float32", "uint8"):
        config = Config.load("configs/quickstart.yaml", [*small, f"train.images={images}", f"out={tmp_path / images}"])
        rows[images] = RunDirectory(train(config)).metrics()[-1]
    assert untimed(rows["auto"]) == untimed(rows["float32"])
    exact, rounded = (untimed(rows[images]) for images in ("float32", "uint8"))
    assert exact.keys() == rounded.keys()
    for key, value in exact.items():
        close = key.startswith("monitor/") or key == DECODE
        assert rounded[key] == (pytest.approx(value, abs=2e-2) if close else value), key
    shown = [(tmp_path / images / "samples").rglob("*.png") for images in ("float32", "uint8")]
    assert [a.read_bytes() for a in sorted(shown[0])] == [b.read_bytes() for b in sorted(shown[1])]


def untimed(row: dict) -> dict:
    return {k: v for k, v in settled(row).items() if "/z" not in k}
