"""Samples in, scores out: every reward of a run, and the declared policy for samples that could not be scored."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.config import RewardConfig
from flowrl.errors import UserError
from flowrl.score.adapting import Answer, adapt, as_scores, close
from flowrl.score.finding import find_reward
from flowrl.types import Samples, Scores

OnNaN = Literal["raise", "drop_sample", "drop_group"]
SHOWN = 3
"""Prompts named in an error message."""


class RewardError(UserError):
    """A reward raised; the message names it, its exception and the line, and the exception is chained."""


@dataclass(frozen=True)
class _Reward:
    name: str
    weight: float
    answer: Answer
    batch_size: int | None


class Rewards:
    """All rewards of a run; calling it scores samples."""

    def __init__(self, rewards: Sequence[_Reward], on_nan: OnNaN) -> None:
        self._rewards = tuple(rewards)
        self._on_nan = on_nan

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(reward.name for reward in self._rewards)

    @property
    def weights(self) -> Tensor:
        """[R] float64."""
        return torch.tensor([reward.weight for reward in self._rewards], dtype=torch.float64)

    def __call__(self, samples: Samples, group: Tensor) -> Scores:
        """Score N samples; ``group`` [N] holds the samples' group numbers.

        A sample whose image is not finite could not be scored by any reward. Raises `RewardError` when a reward
        raises, `UserError` when its answer is no list of N finite-or-NaN numbers, when it changes the images, or when
        a sample could not be scored and the policy is ``raise``.
        """
        rewards = self.raw(samples)
        ids = torch.tensor([prompt.id for prompt in samples.prompts], dtype=torch.int64)
        group = group.detach().cpu()
        unscored = rewards[:, self.weights != 0].isnan().any(dim=1)
        valid = self._valid(unscored, group, rewards, samples)
        return Scores(rewards, self.weights, self.names, group, ids, valid)

    @torch.no_grad()
    def raw(self, samples: Samples) -> Tensor:
        """[N, R] float64 scores, NaN = could not score, whatever the policy."""
        samples, broken = _without_broken_images(samples)
        rewards = torch.stack([self._ask(reward, samples) for reward in self._rewards], dim=1)
        rewards[broken] = torch.nan
        return rewards

    def close(self) -> None:
        """Free what the rewards hold."""
        for reward in self._rewards:
            close(reward.answer)

    def _ask(self, reward: _Reward, samples: Samples) -> Tensor:
        size = reward.batch_size or len(samples)
        parts = [_part(samples, start, start + size) for start in range(0, len(samples), max(1, size))]
        answers = [as_scores(_call(reward, part), len(part), reward.name) for part in parts]
        return torch.cat(answers) if answers else torch.zeros(0, dtype=torch.float64)

    def _valid(self, unscored: Tensor, group: Tensor, rewards: Tensor, samples: Samples) -> Tensor:
        if not bool(unscored.any()):
            return ~unscored
        if self._on_nan == "raise":
            raise UserError(self._complaint(unscored, rewards, samples))
        if self._on_nan == "drop_group":
            unscored = torch.isin(group, group[unscored])
        if bool(unscored.all()):
            raise UserError(f"on_nan={self._on_nan} left no sample: {self._complaint(unscored, rewards, samples)}")
        return ~unscored

    def _complaint(self, unscored: Tensor, rewards: Tensor, samples: Samples) -> str:
        guilty = [name for name, column in zip(self.names, rewards.T, strict=True) if bool(column.isnan().any())]
        texts = [samples.prompts[int(i)].text for i in unscored.nonzero()[:, 0]]
        some = ", ".join(repr(text) for text in list(dict.fromkeys(texts))[:SHOWN])
        return (
            f"reward {', '.join(map(repr, guilty))} could not score {int(unscored.sum())} of {len(samples)} samples "
            f"(prompts: {some}); mend it, or set on_nan=drop_sample or on_nan=drop_group"
        )


def load_rewards(specs: Sequence[RewardConfig | Mapping[str, Any] | str], on_nan: OnNaN = "raise") -> Rewards:
    """Rewards ready to score. ``specs`` are entries of a config's ``rewards``.

    Raises `UserError` for a reward that does not exist, an option it does not have, or two of the same name.
    """
    rewards = [_load(spec if isinstance(spec, RewardConfig) else _read(spec)) for spec in specs]
    names = [reward.name for reward in rewards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"rewards: {', '.join(twice)} occurs more than once; give each a name of its own")
    return Rewards(rewards, on_nan)


def _read(spec: Mapping[str, Any] | str) -> RewardConfig:
    return RewardConfig.model_validate({"use": spec} if isinstance(spec, str) else spec)


def _load(spec: RewardConfig) -> _Reward:
    name = spec.name or spec.use.rpartition(":")[2]
    answer = adapt(find_reward(spec.use), name, spec.options, spec.device)
    return _Reward(name, spec.weight, answer, spec.batch_size)


def _call(reward: _Reward, samples: Samples) -> Any:
    version = _version(samples)
    try:
        answer = reward.answer(samples)
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's code raises is reported as theirs, chained
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno} in {frame.name}"
        raise RewardError(f"reward {reward.name!r} raised {type(error).__name__}: {error} ({where})") from error
    if _version(samples) != version:
        raise UserError(f"reward {reward.name!r} changes the images in place; work on images.clone()")
    return answer


def _version(samples: Samples) -> int:
    """Counts in-place changes of the images (tensors made in inference mode do not count)."""
    return 0 if samples.images is None or samples.images.is_inference() else samples.images._version


def _part(samples: Samples, start: int, stop: int) -> Samples:
    images = None if samples.images is None else samples.images[start:stop]
    completions = None if samples.completions is None else samples.completions[start:stop]
    return Samples(samples.prompts[start:stop], images, completions)


def _without_broken_images(samples: Samples) -> tuple[Samples, Tensor]:
    """Samples with black images in place of non-finite ones, and which they were [N]."""
    if samples.images is None:
        return samples, torch.zeros(len(samples), dtype=torch.bool)
    images = samples.images.detach()
    broken = ~torch.isfinite(images).flatten(1).all(dim=1)
    if bool(broken.any()):
        images = torch.where(broken.reshape(-1, *[1] * (images.ndim - 1)), torch.zeros_like(images), images)
    return replace(samples, images=images), broken.cpu()
