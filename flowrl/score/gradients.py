"""Rewards with a gradient: a judge of clean latents, made of decoding and of every reward's ``gradient``.

A reward declares it by a second method, or a function by an attribute: ``gradient(images, prompts, **columns) -> [N]``,
the score of images [N, 3, H, W] in [0, 1] by operations of torch alone, so nothing rounded and nothing resized by
Pillow. ``flowrl test-reward`` compares it with the score and with finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.clients import is_remote_reward
from flowrl.config import RewardConfig
from flowrl.errors import UserError
from flowrl.score.combination import CombinedScores
from flowrl.score.given import Given, is_given
from flowrl.score.per_frame import PerFrame, frames_of
from flowrl.score.registry import list_rewards
from flowrl.score.reward import Reward
from flowrl.score.reward_function import RewardFunction, takes_anything
from flowrl.score.rewards import Rewards
from flowrl.score.signatures import SignatureReward
from flowrl.types import Prompt, Samples, Scores

Gradient = Callable[[Samples], Any]
REMEDY = "; or set its weight=0 to watch it only"


def gradient_of(function: RewardFunction) -> Gradient | str:
    """A reward's ``gradient`` as a function of samples, or why there is none."""
    if function.grouped:
        return "compares the samples of a group, so no sample has a gradient of its own"
    if isinstance(function, PerFrame):
        return _of_frames(function)
    own = getattr(getattr(function, "function", None), "gradient", None)
    if not isinstance(function, SignatureReward) or not callable(own):
        return "declares no gradient(images, prompts, **columns); see `flowrl rewards` for those that do"
    asked = SignatureReward(own, function.name, function.settings, messages=False)
    unknown = [key for key in function.settings if key not in asked.parameters]
    if unknown and not takes_anything(asked.parameters):
        return f"has a gradient that does not take the option {unknown[0]!r}"
    return asked


def _of_frames(function: PerFrame) -> Gradient | str:
    """The mean over frames of the gradient that a reward of images has."""
    inner = gradient_of(function.reward)
    if isinstance(inner, str):
        return inner

    def mean(samples: Samples) -> Tensor:
        scores = torch.as_tensor(inner(frames_of(samples, function.count, function.name)))
        return scores.view(len(samples), -1).mean(dim=1)

    return mean


def check_gradients(rewards: Sequence[RewardConfig], given: Given | None = None) -> None:
    """Raise `UserError`, before anything is loaded, for rewards of a config that can have no gradient here."""
    followed = [spec for spec in rewards if spec.factor != 0]
    if not followed:
        raise UserError("rewards: this algorithm follows the gradient of its rewards, and none has a weight; give one")
    shipped = {entry.name: entry.differentiable for entry in list_rewards()}
    for spec in followed:
        if spec.process:
            raise _refused(spec.use, "is scored in a process of its own, through which no gradient comes back")
        if is_remote_reward(spec.use):
            raise _refused(spec.use, "is scored elsewhere, from where no gradient comes back")
        if is_given(spec.use) and not callable(getattr((given or {})[spec.use].function, "gradient", None)):
            raise _refused(spec.use, "is a function without an attribute gradient(images, prompts, **columns)")
        if not shipped.get(spec.use, True):
            able = ", ".join(name for name, has in shipped.items() if has)
            raise _refused(spec.use, f"has none; of the rewards that come with flowrl {able} have one")


def check_loaded_gradients(rewards: Rewards) -> None:
    """Raise `UserError` for rewards that turn out to have none once they are loaded."""
    for reward in rewards.rewards:
        if reward.weight != 0:
            _gradient(reward)


def judge(rewards: Rewards, scores: Scores, prompts: Sequence[Prompt], here: Tensor, decode: Any) -> RewardJudge:
    """The judge of the samples that this process holds: their ``prompts``, and ``here`` [n] their numbers among those
    of ``scores``, -1 for a spare one. ``decode`` makes images of clean latents, with a gradient."""
    factor = _factors(scores)[here.clamp(min=0)] * (here >= 0)[:, None]
    some = [k for k, reward in enumerate(rewards.rewards) if reward.weight != 0]
    chosen = [rewards.rewards[k] for k in some]
    return RewardJudge(
        tuple(reward.name for reward in chosen),
        tuple(_gradient(reward) for reward in chosen),
        decode,
        tuple(prompts),
        factor[:, some],
    )


@dataclass(frozen=True)
class RewardJudge:
    """`flowrl.types.Judge` of a run's rewards: each times its weight, 0 where it does not apply, and times the gates of
    the sample, which are what its scores said: constants."""

    names: tuple[str, ...]
    gradients: tuple[Gradient, ...]
    decode: Callable[[Tensor], Tensor]
    prompts: tuple[Prompt, ...]
    factor: Tensor  # [N, R] float64

    def __call__(self, clean: Tensor, rows: Tensor) -> Tensor:
        """[n, R] with gradient of clean latents [n, ...] of the rows [n]."""
        return self._scores(self.decode(clean), rows, "{}")

    def in_words(self, clean: Tensor, rows: Tensor, templates: Sequence[str]) -> list[Tensor]:
        """The same [n, R] for other prompts, once for each template, which has the prompt in place of ``{}``."""
        images = self.decode(clean)
        return [self._scores(images, rows, template) for template in templates]

    def _scores(self, images: Tensor, rows: Tensor, template: str) -> Tensor:
        factor, columns = self.factor[rows], []
        for k, gradient in enumerate(self.gradients):
            counts = (factor[:, k] != 0).nonzero()[:, 0]
            column = 0 * images.flatten(1).sum(dim=1)  # of the others, whose columns it may not know
            if len(counts):
                asked = [self.prompts[row] for row in rows[counts].tolist()]
                prompts = [replace(prompt, text=template.replace("{}", prompt.text)) for prompt in asked]
                there = counts.to(images.device)
                scores = torch.as_tensor(gradient(Samples(prompts, images=images[there]))).to(column)
                column = column.index_add(0, there, scores * factor[counts, k].to(column))
            columns.append(column)
        return torch.stack(columns, dim=1)


def _gradient(reward: Reward) -> Gradient:
    found = gradient_of(reward.function)
    if isinstance(found, str):
        raise _refused(reward.name, found)
    return found


def _refused(name: str, why: str) -> UserError:
    return UserError(f"rewards: this algorithm follows the gradient of its rewards, and {name} {why}{REMEDY}")


def _factors(scores: Scores) -> Tensor:
    """[N, R] what every reward is multiplied by in the total."""
    factor = scores.weights.expand_as(scores.rewards)
    if not isinstance(scores, CombinedScores):
        return factor
    earned = (torch.where(scores.applies, scores.rewards, 0.0).nan_to_num() * factor).sum(dim=1)
    return factor * scores.applies * torch.where(earned > 0, scores.gate_factor.nan_to_num(), 1.0)[:, None]
