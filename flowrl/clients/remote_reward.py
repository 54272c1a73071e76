"""Rewards that are scored elsewhere, and those among them that compare the samples of a group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flowrl.clients.results import NOT_APPLICABLE, as_list


@dataclass(frozen=True)
class ScoreInputs:
    """N samples as a remote reward gets them."""

    prompts: Sequence[str]
    images: Tensor | None
    """[N, 3, H, W] in [0, 1]"""
    completions: Sequence[str] | None
    columns: Mapping[str, Sequence[Any]]
    group: Sequence[int] | None = None
    """[N] the samples' group numbers, where the reward compares them."""


class RemoteReward(ABC):
    """A reward that is scored in another place."""

    version: str | None
    """What it says there of its weights and preprocessing."""
    grouped: bool
    """Whether it sees whole groups there."""

    def __call__(
        self,
        prompts: Sequence[str],
        images: Tensor | None = None,
        completions: Sequence[str] | None = None,
        **columns: Any,
    ) -> Tensor | list[float | None]:
        """N scores, NaN where it could not score, None where it does not apply."""
        return as_result(self.score(ScoreInputs(prompts, images, completions, columns)))

    @abstractmethod
    def score(self, inputs: ScoreInputs) -> Tensor:
        """[N] float64; `NOT_APPLICABLE` where it does not apply."""

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""


class GroupedRemoteReward:
    """Its parameter ``group`` makes every call hold whole groups; where samples are compared, they travel together."""

    def __init__(self, reward: RemoteReward) -> None:
        self.reward, self.version = reward, reward.version

    def __call__(
        self,
        prompts: Sequence[str],
        group: Sequence[int],
        images: Tensor | None = None,
        completions: Sequence[str] | None = None,
        **columns: Any,
    ) -> Tensor | list[float | None]:
        """N scores, NaN where it could not score, None where it does not apply."""
        return as_result(self.reward.score(ScoreInputs(prompts, images, completions, columns, group)))

    def close(self) -> None:
        """Free what the reward holds."""
        self.reward.close()


def as_result(scores: Tensor) -> Tensor | list[float | None]:
    """Scores as a reward answers: a list where some are None."""
    return as_list(scores) if bool((scores == NOT_APPLICABLE).any()) else scores


def seeing_groups(reward: RemoteReward) -> RemoteReward | GroupedRemoteReward:
    """The reward as rewards are called here; it asks for ``group`` if it sees groups there."""
    return GroupedRemoteReward(reward) if reward.grouped else reward
