"""What scorers of videos share: checked frames, and some of them evenly spaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.media import quantise


def spaced_frames(videos: Tensor, count: int) -> Tensor:
    """[N, min(F, count), 3, H, W]: frames number ``i F / count``, rounded down, of videos [N, F, 3, H, W]: the first of
    each of ``count`` equal stretches."""
    length = videos.shape[1]
    if count >= length:
        return videos
    return videos[:, [place * length // count for place in range(count)]]


def score_videos(
    videos: Tensor, prompts: Sequence[str], batch_size: int, score: Callable[[Tensor, slice], Tensor], least: int = 1
) -> Tensor:
    """[N] float64 scores on the host, from `score(frames [n, F, 3, H, W] uint8, rows)` on at most `batch_size` rows.

    NaN where a frame is not finite. Raises `UserError` for what is not [N, F, 3, H, W] with one prompt each, or has
    fewer frames than ``least``.
    """
    if videos.ndim != 5 or videos.shape[2] != 3:
        raise UserError(
            f"video scorers take videos [N, F, 3, H, W] in [0, 1], found {'x'.join(map(str, videos.shape))}"
        )
    if videos.shape[1] < least:
        raise UserError(f"this scorer needs videos of {least} frames or more, found {videos.shape[1]}")
    if len(videos) != len(prompts):
        raise UserError(f"video scorers need one prompt per video, found {len(videos)} videos, {len(prompts)} prompts")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, found {batch_size}")
    parts = [torch.zeros(0, dtype=torch.float64)]
    with torch.inference_mode():
        for start in range(0, len(videos), batch_size):
            rows = slice(start, min(start + batch_size, len(videos)))
            finite = torch.isfinite(videos[rows]).flatten(1).all(dim=1).cpu()
            parts.append(score(quantise(videos[rows]), rows).double().cpu().masked_fill(~finite, torch.nan))
    return torch.cat(parts).clone()
