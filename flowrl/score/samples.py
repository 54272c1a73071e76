"""Some of the samples, or several chunks of them as one; group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowrl.types import Prompt, Samples, Share


def take(samples: Samples, rows: Sequence[int]) -> Samples:
    """Some of the samples; a view where they follow one another, so that a change in place is noticed."""
    prompts = [samples.prompts[row] for row in rows]
    completions = None if samples.completions is None else [samples.completions[row] for row in rows]
    feedback = None if samples.feedback is None else samples.feedback[list(rows)]
    if samples.images is None:
        return Samples(prompts, None, completions, feedback)
    together = list(rows) == list(range(rows[0], rows[0] + len(rows))) if rows else False
    images = samples.images[rows[0] : rows[-1] + 1] if together else samples.images[list(rows)]
    return replace(samples, prompts=prompts, images=images, completions=completions, feedback=feedback)


def joined(parts: Sequence[Samples]) -> Samples:
    """Samples one after the other."""
    if len(parts) == 1:
        return parts[0]
    prompts = [prompt for part in parts for prompt in part.prompts]
    images = [part.images for part in parts if part.images is not None]
    texts = [text for part in parts for text in part.completions or ()]
    completions = texts if parts[0].completions is not None else None
    said = [part.feedback for part in parts if part.feedback is not None]
    return Samples(prompts, torch.cat(images) if images else None, completions, torch.cat(said) if said else None)


def gathered(samples: Samples, share: Share, rows: Tensor, prompts: Sequence[Prompt]) -> Samples:
    """The samples with these numbers [n] on every process, from those of each process' share; ``prompts`` are those of
    all samples."""
    part, held = share.take(rows)
    mine = samples.take(held)
    return Samples(
        [prompts[row] for row in rows.tolist()],
        None if mine.images is None else part.gather(mine.images),
        None if mine.completions is None else part.values(mine.completions),
        None if mine.feedback is None else part.gather(mine.feedback),
    )


def split_by_group(group: Tensor, rows: Sequence[int]) -> list[list[int]]:
    """The rows of each group, in the order of their first. group: [N] int64."""
    found: dict[int, list[int]] = {}
    for row, key in zip(rows, group[list(rows)].tolist(), strict=True):
        found.setdefault(key, []).append(row)
    return list(found.values())


def without_broken_images(samples: Samples) -> tuple[Samples, Tensor]:
    """Samples with black images in place of non-finite ones, and which they were [N] bool."""
    if samples.images is None:
        return samples, torch.zeros(len(samples), dtype=torch.bool)
    images = samples.images.detach()
    broken = ~torch.isfinite(images).flatten(1).all(dim=1)
    if bool(broken.any()):
        images = torch.where(broken.reshape(-1, *[1] * (images.ndim - 1)), torch.zeros_like(images), images)
    return replace(samples, images=images), broken.cpu()
