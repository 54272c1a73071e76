"""A reward of images that scores videos: some of their frames, each with the video's prompt, and the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowrl.clients.results import as_scores
from flowrl.errors import UserError
from flowrl.score.reward_function import AdaptedReward
from flowrl.scorers.videos import spaced_frames
from flowrl.types import Prompt, Samples


class PerFrame(AdaptedReward):
    """Mean over ``count`` evenly spaced frames of what ``reward`` says of each as a picture (all frames, if they are
    fewer); of frames that it could not score, NaN, over the others."""

    grouped = False

    def __init__(self, reward: AdaptedReward, count: int) -> None:
        if reward.grouped:
            raise UserError(f"reward {reward.name!r} compares the samples of a group, so frames={count} has no meaning")
        super().__init__(reward.function, reward.name)
        self.reward, self.count, self.style = reward, count, reward.style

    @property
    def version(self) -> str | None:
        """The reward's own, and of how many frames."""
        own = self.reward.version
        return None if own is None else f"{own}:frames-{self.count}"

    def __call__(self, samples: Samples, group: Tensor | None = None) -> Tensor:
        """[N] float64."""
        if not len(samples):
            return torch.zeros(0, dtype=torch.float64)
        frames = frames_of(samples, self.count, self.name)
        return as_scores(self.reward(frames), len(frames), self.name).view(len(samples), -1).nanmean(dim=1)


def frames_of(samples: Samples, count: int, name: str) -> Samples:
    """Frames [N * f] of the samples' videos as pictures, sample by sample. Raises `UserError` for other samples."""
    videos = samples.images
    if videos is None or videos.ndim != 5:
        what = "texts" if videos is None else f"images [N, {', '.join(map(str, videos.shape[1:]))}]"
        raise UserError(f"reward {name!r} scores frames={count} of videos, and the model makes {what}; remove frames")
    some = spaced_frames(videos, count)
    prompts: Sequence[Prompt] = [prompt for prompt in samples.prompts for _ in range(some.shape[1])]
    return replace(samples, prompts=prompts, images=some.flatten(0, 1), completions=None, feedback=None)
