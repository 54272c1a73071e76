"""The statistics that the monitor watches: how each is measured, and what it would mean if it moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.media import as_floats
from flowrl.monitor.images import measure_images
from flowrl.monitor.texts import measure_texts
from flowrl.types import Samples, Share


@dataclass(frozen=True)
class Statistic:
    """A number per sample."""

    words: str
    floor: float
    """The least robust standard deviation it is counted in, so that a base model without any spread does not make
    every change large. In its own unit: about what a person would call the smallest visible change."""
    low: str | None = None
    """What a fall is typical of; None where a fall is no alarm."""
    high: str | None = None
    """What a rise is typical of; None where a rise is no alarm."""
    share: bool = False
    """From 0 to 1 for a sample: compared by its mean instead of its median."""


STATISTICS = {
    "contrast": Statistic("contrast", 0.02, "flat or blank images", "harsh contrast"),
    "chroma": Statistic("colourfulness", 0.03, "images that lose their colours", "over-saturated images"),
    "clipped": Statistic("share of channel values at black or white", 0.03, None, "over-saturated images"),
    "colors": Statistic("entropy of colours", 0.3, "flat or blank images", "noise"),
    "edges": Statistic("edge density", 0.03, "flat or blurred images", "clutter, lines or noise"),
    "detail": Statistic("high-frequency energy", 0.01, "flat or blurred images", "grids, lines or noise"),
    "noise": Statistic("noise level", 1 / 255, None, "noise all over the picture"),
    "grid": Statistic("strength of periodic patterns", 0.1, None, "a grid, stripes or a checkerboard"),
    "jpeg": Statistic("JPEG size", 0.25, "flat or blank images", "clutter or noise"),
    "nearest": Statistic("distance to the likest other sample", 0.01, "copies of few images"),
    "diversity": Statistic("diversity within a group", 0.01, "copies of one image"),
    "latent": Statistic("size of latents", 0.05, "a model that left its range", "a model that left its range"),
    "length": Statistic("length", 10.0, "empty or clipped answers", "padded answers"),
    "distinct": Statistic("share of distinct n-grams", 0.05, "repetition"),
    "duplicates": Statistic("share of duplicates within a group", 0.2, share=True),  # right where one answer is right
    "shared": Statistic("share of other prompts with the same answer", 0.2, None, "one answer for all", share=True),
    "full": Statistic("share of completions without an end", 0.2, None, "answers that never end", share=True),
}


def measure(
    samples: Samples,
    group: Tensor,
    *,
    latents: Tensor | None = None,
    full: Tensor | None = None,
    share: Share | None = None,
) -> dict[str, Tensor]:
    """Statistics of samples, each [N] float32; NaN where one means nothing for a sample.

    ``group`` [N] numbers the prompts. ``latents`` [N, ...] are what images were decoded from, ``full`` [N] bool marks
    completions that used all the room there is. With several processes all but ``group`` is that of this one, whose
    ``share`` of the N samples it is, and every process finds the same.
    """
    share = Share.alone(len(samples)) if share is None else share
    found: dict[str, Tensor] = {}
    if samples.images is not None:
        found |= measure_images(as_floats(samples.images), group, share.gather)
    if samples.completions is not None:
        found |= measure_texts(share.values(samples.completions), group)
    if latents is not None:
        found["latent"] = share.gather(latents.detach().float().flatten(1).square().mean(dim=1).sqrt().cpu())
    if full is not None:
        found["full"] = share.gather(full.float().cpu())
    return found


def subsample(group: Tensor, most: int) -> Tensor:
    """Rows of at most ``most`` samples: as many of evenly spaced groups as possible, at least two of each that has
    two. ``group`` [N] is group-major."""
    _, index, counts = torch.unique_consecutive(group, return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(group)) - starts[index]  # of each sample in its group
    each = max(min(2, int(counts.max())), most // len(counts))
    groups = min(len(counts), max(1, most // each))
    chosen = torch.arange(groups) * len(counts) // groups
    return (torch.isin(index, chosen) & (place < each)).nonzero()[:, 0]
