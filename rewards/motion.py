"""How a video moves: whether its frames follow one another, and how much they change. No model, no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowrl.errors import UserError
from flowrl.scorers.videos import score_videos

RANGE = {"motion_smoothness": "[0, 1]", "motion_amount": "[0, 1]"}
NEEDS = {"motion_smoothness": ("videos of 3 frames or more",), "motion_amount": ("videos of 2 frames or more",)}
BLOCK = 5
"""Side of the neighbourhoods that are compared."""


class motion_smoothness:  # noqa: N801 - the name a config uses
    """1 minus how far every second frame is from what its two neighbours say of it: VBench's protocol with another
    interpolator.

    VBench (arXiv:2311.17982, appendix; github.com/Vchitect/VBench) leaves out the odd frames, lets the network AMT make
    them anew from the even ones, and scores ``(255 - mean |difference|) / 255``. AMT's weights are not read here: a
    frame is made by block matching instead, so numbers do not compare with VBench's. At each pixel x the displacement d
    of at most ``radius`` in both directions is taken for which the frame before at x - d and the frame after at x + d
    agree best over a neighbourhood of 5 x 5 pixels (the shortest of equals), and the mean of the two is the frame
    between. Motion of constant speed up to ``radius`` scores 1, also where it covers and uncovers, as long as it is
    small against the things that move; of faster ones the empty background around them agrees as well, and they lose.
    A video that stands still scores 1 too: weigh it against `motion_amount` or another reward.

    side: frames are first averaged down to this shortest edge; displacements are counted in those pixels.
    """

    def __init__(self, side: int = 64, radius: int = 4, batch_size: int = 8) -> None:
        if side < 8 or not 1 <= radius <= side // 2:
            raise UserError(f"motion_smoothness: side={side} should be 8 or more and radius={radius} in [1, side / 2]")
        self._side, self._radius, self._batch = side, radius, batch_size
        self.version = f"motion_smoothness:{side}:{radius}:1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] of videos [N, F, 3, H, W] in [0, 1]; NaN for one that is not finite."""

        def score(frames: Tensor, rows: slice) -> Tensor:
            small = shrunk(frames, self._side)
            before, between, after = small[:, :-2:2], small[:, 1:-1:2], small[:, 2::2]
            made = self._between(before.flatten(0, 1), after.flatten(0, 1))
            return 1 - (made - between.flatten(0, 1)).abs().unflatten(0, between.shape[:2]).flatten(1).mean(dim=1)

        return score_videos(images, prompts, self._batch, score, least=3)

    def _between(self, before: Tensor, after: Tensor) -> Tensor:
        """[n, 3, h, w] halfway between two frames."""
        reach = range(-self._radius, self._radius + 1)
        steps = sorted(((y, x) for y in reach for x in reach), key=lambda step: (step[0] ** 2 + step[1] ** 2, step))
        best, made = torch.full_like(before[:, :1], torch.inf), torch.zeros_like(before)
        for y, x in steps:
            first, second = shifted(before, y, x), shifted(after, -y, -x)
            apart = (first - second).abs().mean(dim=1, keepdim=True)
            apart = F.avg_pool2d(apart, BLOCK, stride=1, padding=BLOCK // 2, count_include_pad=False)
            better = apart < best - 1e-6
            best, made = torch.where(better, apart, best), torch.where(better, (first + second) / 2, made)
        return made


class motion_amount:  # noqa: N801 - the name a config uses
    """The mean change of a pixel from a frame to the next; 0 for a still. What VBench (arXiv:2311.17982) calls the
    dynamic degree is measured there by the optical flow of RAFT, which is not read here.

    side: frames are first averaged down to this shortest edge, which takes noise away.
    """

    def __init__(self, side: int = 64, batch_size: int = 8) -> None:
        if side < 1:
            raise UserError(f"motion_amount: side={side} should be 1 or more")
        self._side, self._batch = side, batch_size
        self.version = f"motion_amount:{side}:1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] of videos [N, F, 3, H, W] in [0, 1]; NaN for one that is not finite."""

        def score(frames: Tensor, rows: slice) -> Tensor:
            return shrunk(frames, self._side).diff(dim=1).abs().flatten(1).mean(dim=1)

        return score_videos(images, prompts, self._batch, score, least=2)


def shrunk(frames: Tensor, side: int) -> Tensor:
    """float32 [n, F, 3, h, w] in [0, 1] of uint8 frames, averaged down to a shortest edge of ``side`` where it is
    longer."""
    values = frames.flatten(0, 1).float() / 255
    height, width = values.shape[-2:]
    scale = side / min(height, width)
    if scale < 1:
        values = F.interpolate(values, (round(height * scale), round(width * scale)), mode="area")
    return values.unflatten(0, frames.shape[:2])


def shifted(frames: Tensor, y: int, x: int) -> Tensor:
    """Frames [n, 3, h, w] moved by (y, x) pixels, their edges repeated."""
    most = max(abs(y), abs(x))
    padded = F.pad(frames, [most] * 4, mode="replicate")
    height, width = frames.shape[-2:]
    return padded[..., most - y : most - y + height, most - x : most - x + width]
