"""Several rewards, one total: which applies to a prompt, which gates the others, and whose samples are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.types import Prompt, Scores

Gate = Literal["multiply"] | float
NanPolicy = Literal["raise", "drop_sample", "drop_group"]


@dataclass(frozen=True)
class CombinedScores(Scores):
    """Scores of rewards of which some may not apply to every prompt, and some may be gates.

    The total is the weighted sum of the rewards that apply to a sample, times its gates where it is positive: a gate
    that stays shut takes what was earned, and never lifts a negative total. Statistics of one reward are those of
    ``rewards``: NaN where it does not apply, so such samples are in no mean, and none is counted as 0.
    """

    applies: Tensor  # [N, R] bool
    gates: tuple[Gate | None, ...]

    @property
    def gate_factor(self) -> Tensor:
        """[N] product of the gates that apply; NaN where one could not score."""
        factor = torch.ones(len(self.group), dtype=torch.float64)
        for k, gate in enumerate(self.gates):
            if gate is None:
                continue
            score = self.rewards[:, k]
            opened = score if gate == "multiply" else torch.where(score.isnan(), score, (score >= gate).double())
            factor = factor * torch.where(self.applies[:, k], opened, 1.0)
        return factor

    @property
    def contributions(self) -> Tensor:
        """[N, R] every reward as it counts, gated, before its weight; NaN where it does not apply or could not score.
        For normalising each reward on its own before they are added."""
        sign = self.weights.sign()
        return sign * _gated(sign * self.rewards, self.gate_factor[:, None])

    @property
    def total(self) -> Tensor:
        """[N]"""
        counted = self.weights != 0
        rewards = torch.where(self.applies, self.rewards, 0.0)
        return _gated((rewards[:, counted] * self.weights[counted]).sum(dim=1), self.gate_factor)


def combine(scores: Scores, applies: Tensor, gates: tuple[Gate | None, ...]) -> Scores:
    """``scores`` with the applicability [N, R] and gates [R] of its rewards; as it was where there is none of either.

    Raises `UserError` for a multiplying gate whose score is outside [0, 1].
    """
    for k, gate in enumerate(gates):
        outside = (scores.rewards[:, k] < 0) | (scores.rewards[:, k] > 1)
        if gate == "multiply" and bool(outside.any()):
            found = float(scores.rewards[:, k][outside][0])
            raise UserError(
                f"reward {scores.names[k]!r} multiplies the others, so its scores should lie in [0, 1], "
                f"found {found:.4g}; scale it, or give a threshold as in 'gate: 0.5'"
            )
    if bool(applies.all()) and not any(gate is not None for gate in gates):
        return scores
    return CombinedScores(**vars(scores), applies=applies, gates=gates)


def dropped_samples(rewards: Tensor, applies: Tensor, policies: Sequence[NanPolicy | None], group: Tensor) -> Tensor:
    """[N] bool: samples that the rewards' policies drop, because one that counts could not score them (NaN) or, with
    ``drop_group``, a sample of their group. ``None`` is the policy of a reward that is only watched."""
    dropped = torch.zeros(len(group), dtype=torch.bool)
    for k, policy in enumerate(policies):
        unscored = rewards[:, k].isnan() & applies[:, k]
        if policy == "drop_sample":
            dropped |= unscored
        elif policy == "drop_group":
            dropped |= torch.isin(group, group[unscored])
    return dropped


def applies_to(conditions: Mapping[str, Any], prompts: Sequence[Prompt]) -> Tensor:
    """[N] bool: prompts whose columns have, for every condition, the value or one of the values asked for. A column
    that holds a list has all of its values. A prompt without the column is none of them."""
    found = [
        all(bool(_values(prompt.columns.get(key)) & _values(wanted)) for key, wanted in conditions.items())
        for prompt in prompts
    ]
    return torch.tensor(found, dtype=torch.bool)


def check_applicability(
    names: Sequence[str], conditions: Sequence[Mapping[str, Any]], counted: Sequence[bool], prompts: Sequence[Prompt]
) -> None:
    """Raise `UserError` if a reward applies to no prompt, or a prompt has no reward to learn from."""
    table = [applies_to(condition, prompts) for condition in conditions]
    for name, condition, column in zip(names, conditions, table, strict=True):
        if condition and not bool(column.any()):
            columns = sorted({key for prompt in prompts for key in prompt.columns})
            raise UserError(
                f"reward {name!r} applies to none of {len(prompts)} prompts: applies={dict(condition)!r} "
                f"(columns: {', '.join(map(repr, columns)) or 'none'})"
            )
    learned = [column for column, counts in zip(table, counted, strict=True) if counts]
    bare = (~torch.stack(learned).any(dim=0)).nonzero()[:, 0] if learned else torch.zeros(0)
    if len(bare):
        raise UserError(describe_uncovered_prompts(prompts[int(bare[0])], len(bare)))


def describe_uncovered_prompts(prompt: Prompt, count: int) -> str:
    """What to say of samples or prompts that no trained reward applies to."""
    return (
        f"no reward with a weight applies to {count} of the prompts, such as {prompt.text!r} with the columns "
        f"{dict(prompt.columns)!r}; remove them, or widen a reward's 'applies'"
    )


def _gated(value: Tensor, factor: Tensor) -> Tensor:
    return value.clamp(min=0) * factor + value.clamp(max=0)


def _values(value: object) -> set[object]:
    items = value if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else [value]
    items = () if value is None else items
    return {item if isinstance(item, str | int | float) else repr(item) for item in items}
