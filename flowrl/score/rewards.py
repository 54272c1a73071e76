"""Samples in, scores out: every reward of a run, and the declared policy for samples that could not be scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from flowrl.clients.process import ProcessReward
from flowrl.clients.results import NOT_APPLICABLE, RewardError, as_list
from flowrl.config import RewardConfig
from flowrl.config.findings import explain_errors
from flowrl.errors import UserError
from flowrl.score.background import RewardThread, Scoring
from flowrl.score.combination import (
    NanPolicy,
    applies_to,
    check_applicability,
    combine,
    describe_uncovered_prompts,
    dropped_samples,
)
from flowrl.score.given import Given
from flowrl.score.registry import find_reward, with_absolute_path
from flowrl.score.reward import CallStats, Reward
from flowrl.score.signatures import adapt
from flowrl.types import Prompt, Samples, Scores

__all__ = ["RewardError", "Rewards", "load_rewards"]
SHOWN = 3
"""Prompts named in an error message."""


class Rewards:
    """All rewards of a run; calling it scores samples, `scoring` does so while they are made."""

    def __init__(self, rewards: Sequence[Reward], on_nan: NanPolicy, remarks: Sequence[str] = ()) -> None:
        self.rewards = tuple(rewards)
        # Text rewards of flowrl and of TRL look alike; what was adapted from elsewhere is said.
        adapted = [(name, style) for name, style in self.styles.items() if style not in ("flowrl", "TRL")]
        self.remarks = [*(f"reward {name}: {style}'s signature, adapted" for name, style in adapted), *remarks]
        """What a run says of them at its start."""
        self._on_nan: NanPolicy = on_nan
        self._threads = [RewardThread(reward.name) if reward.overlap else None for reward in self.rewards]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(reward.name for reward in self.rewards)

    @property
    def weights(self) -> Tensor:
        """[R] float64; 0 for a reward that is only watched and for a gate."""
        return torch.tensor([reward.weight for reward in self.rewards], dtype=torch.float64)

    @property
    def styles(self) -> dict[str, str]:
        """Whose signature each reward has."""
        return {reward.name: reward.function.style for reward in self.rewards}

    @property
    def versions(self) -> dict[str, str]:
        """What rewards say of their weights and preprocessing (an attribute ``version``), wherever they are scored, for
        the run's manifest: the same name means other numbers elsewhere."""
        known = {reward.name: reward.function.version for reward in self.rewards}
        return {name: version for name, version in known.items() if version is not None}

    @property
    def grouped(self) -> bool:
        """Whether one of them sees whole groups."""
        return any(reward.function.grouped for reward in self.rewards)

    def __call__(self, samples: Samples, group: Tensor) -> Scores:
        """Score N samples; ``group`` [N] holds the samples' group numbers.

        A sample whose image is not finite could not be scored by any reward. Raises `RewardError` when a reward
        raises or returns anything but N finite-or-NaN numbers and its policy is ``raise``, `UserError` when it
        changes the images, or when a sample could not be scored and the policy is ``raise``.
        """
        group = group.detach().cpu()
        scored, stats = self.ask(samples, group)
        return self.conclude(scored, samples.prompts, group, stats)

    def ask(self, samples: Samples, group: Tensor) -> tuple[Tensor, list[CallStats]]:
        """``([N, R] float64, R)``: what all rewards return, before any policy, and the statistics of their calls.
        Raises what calling does, but for the policy for what could not be scored."""
        stats = [CallStats() for _ in self.rewards]
        columns = [reward.score(samples, group, its) for reward, its in zip(self.rewards, stats, strict=True)]
        return torch.stack(columns, dim=1), stats

    def raw(self, samples: Samples, group: Tensor | None = None) -> Tensor:
        """[N, R] float64 scores, NaN = could not score or does not apply, whatever the policy for NaN. Without
        ``group``, samples of the same prompt are one."""
        return _nan_where_not_applicable(self._raw(samples, group))

    def raw_lists(self, samples: Samples, group: Tensor | None = None) -> list[list[float | None]]:
        """As `raw`, N numbers for each of the R rewards, with None where a reward said that it does not apply."""
        return [as_list(column) for column in self._raw(samples, group).T]

    def _raw(self, samples: Samples, group: Tensor | None) -> Tensor:
        """As `raw`, with `NOT_APPLICABLE` where a reward said None."""
        group = _prompt_ids(samples.prompts) if group is None else group.detach().cpu()
        return self.ask(samples, group)[0]

    def scoring(self, group: Tensor, asked: bool = True) -> Scoring:
        """Scoring of samples that are about to be made, ``group`` [N] being their group numbers: chunks are added as
        they are ready, and scored in the background; not ``asked``, no reward sees them."""
        return Scoring(self.rewards, self._threads, group.detach().cpu(), self.conclude, asked)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `UserError` if a reward applies to none of the prompts, or none to a prompt."""
        counted = [bool(weight != 0) for weight in self.weights]
        check_applicability(self.names, [reward.applies for reward in self.rewards], counted, prompts)

    def conclude(self, rewards: Tensor, prompts: Sequence[Prompt], group: Tensor, stats: Sequence[CallStats]) -> Scores:
        """Scores from what all rewards returned [N, R], by the declared policies.

        None (`NOT_APPLICABLE`) is no failure: the reward does not apply to that sample, is in no statistic of it and
        adds nothing to its total. A sample to which no reward with a weight applies is left out (TRL gives it the
        total 0).
        """
        applies = self._applies(prompts) & (rewards != NOT_APPLICABLE)
        bare = self._bare(applies)
        rewards = _nan_where_not_applicable(rewards)
        valid = self._valid(rewards, applies, prompts, group, stats) & ~bare
        if len(valid) and not bool(valid.any()):
            raise UserError(
                f"no sample is left: the rewards said None (does not apply) to {int(bare.sum())} of {len(prompts)} "
                f"samples, such as of {prompts[int(bare.nonzero()[0, 0])].text!r}; add a reward that applies to them"
            )
        return self._combined(rewards, applies, prompts, group, valid)

    def evaluate(self, samples: Samples, group: Tensor) -> Scores:
        """Scores of an evaluation: what could not be scored is NaN, and no sample is left out, whatever the policies
        say of training, but those to which no reward with a weight applies."""
        rewards, group = self._raw(samples, group), group.detach().cpu()
        applies = self._applies(samples.prompts) & (rewards != NOT_APPLICABLE)
        return self._combined(_nan_where_not_applicable(rewards), applies, samples.prompts, group, ~self._bare(applies))

    def close(self) -> None:
        """Free what the rewards hold."""
        for thread in self._threads:
            if thread is not None:
                thread.close()
        for reward in self.rewards:
            reward.function.close()

    def _applies(self, prompts: Sequence[Prompt]) -> Tensor:
        """[N, R] bool. Raises `UserError` for a prompt without a reward to learn from."""
        applies = torch.ones(len(prompts), len(self.rewards), dtype=torch.bool)
        for k, reward in enumerate(self.rewards):
            if reward.applies:
                applies[:, k] = applies_to(reward.applies, prompts)
        bare = self._bare(applies).nonzero()[:, 0]
        if len(bare):
            raise UserError(describe_uncovered_prompts(prompts[int(bare[0])], len(bare)))
        return applies

    def _bare(self, applies: Tensor) -> Tensor:
        """[N] bool: samples without a reward to learn from, where there is such a reward."""
        learned = self.weights != 0
        return ~applies[:, learned].any(dim=1) if bool(learned.any()) else torch.zeros(len(applies), dtype=torch.bool)

    def _combined(
        self, rewards: Tensor, applies: Tensor, prompts: Sequence[Prompt], group: Tensor, valid: Tensor
    ) -> Scores:
        scores = Scores(rewards, self.weights, self.names, group, _prompt_ids(prompts), valid)
        return combine(scores, applies, tuple(reward.gate for reward in self.rewards))

    def _policy(self, reward: Reward) -> NanPolicy | None:
        """What becomes of samples it could not score; None for one that is only watched."""
        if reward.weight == 0 and reward.gate is None:
            return None
        return self._on_nan if reward.on_error is None else reward.on_error.then

    def _valid(
        self, rewards: Tensor, applies: Tensor, prompts: Sequence[Prompt], group: Tensor, stats: Sequence[CallStats]
    ) -> Tensor:
        policies: list[NanPolicy | None] = [self._policy(reward) for reward in self.rewards]
        unscored = rewards.isnan() & applies & torch.tensor([policy is not None for policy in policies])
        for k, policy in enumerate(policies):
            if policy == "raise" and bool(unscored[:, k].any()):
                own = self.rewards[k].on_error is not None  # which goes before on_nan
                remedy = "its on_error to {then: drop_group}" if own else "on_nan=drop_sample or on_nan=drop_group"
                raise UserError(f"{self._complaint(unscored, prompts, stats)}; mend it, or set {remedy}")
        dropped = dropped_samples(rewards, applies, policies, group)
        if bool(dropped.all()) and len(dropped):
            used = dict.fromkeys(policy for k, policy in enumerate(policies) if policy and unscored[:, k].any())
            raise UserError(
                f"{' and '.join(used)} left no sample: {self._complaint(unscored, prompts, stats)}; mend it"
            )
        return ~dropped

    def _complaint(self, unscored: Tensor, prompts: Sequence[Prompt], stats: Sequence[CallStats]) -> str:
        guilty = [k for k in range(len(self.names)) if bool(unscored[:, k].any())]
        rows = unscored.any(dim=1)
        texts = [prompts[int(i)].text for i in rows.nonzero()[:, 0]]
        some = ", ".join(repr(text) for text in list(dict.fromkeys(texts))[:SHOWN])
        why = next((f": {stats[k].last_failure}" for k in guilty if stats[k].last_failure), "")
        return (
            f"reward {', '.join(repr(self.names[k]) for k in guilty)} could not score {int(rows.sum())} of "
            f"{len(prompts)} samples (prompts: {some}){why}"
        )


def load_rewards(
    specs: Sequence[RewardConfig | Mapping[str, Any] | str], on_nan: NanPolicy = "raise", given: Given | None = None
) -> Rewards:
    """Rewards ready to score. ``specs`` are entries of a config's ``rewards``; ``given`` are functions they name.

    Raises `UserError` for a reward that does not exist, an option it does not have, or two of the same name.
    """
    read = [spec if isinstance(spec, RewardConfig) else _read(spec) for spec in specs]
    names = [_name(spec) for spec in read]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"rewards: {', '.join(twice)} occurs more than once; give each a name of its own")
    loaded: list[Reward] = []
    places = [with_absolute_path(spec.use) for spec in read]  # before any of them runs
    try:
        for spec, use in zip(read, places, strict=True):
            loaded.append(_load(spec, use, given))
    except BaseException:  # worker processes that have started would outlive the mistake
        for reward in loaded:
            reward.function.close()
        raise
    unknown = [reward.name for reward in (given or {}).values() if reward.source is None]
    said = [f"reward {name}: Python keeps no source of it, so the run cannot say what it was" for name in unknown]
    return Rewards(loaded, on_nan, said)


def _read(spec: Mapping[str, Any] | str) -> RewardConfig:
    try:
        return RewardConfig.model_validate({"use": spec} if isinstance(spec, str) else spec)
    except ValidationError as error:
        raise explain_errors(error, RewardConfig, "reward") from None


def _name(spec: RewardConfig) -> str:
    return spec.name or spec.use.rpartition(":")[2].rpartition("/")[2]


def _load(spec: RewardConfig, use: str, given: Given | None) -> Reward:
    name = _name(spec)
    settings = spec.model_dump(include={"options", "device", "dtype", "batch_size", "messages", "frames"})
    function = (
        ProcessReward(use, name, spec.timeout, settings)
        if spec.process
        else adapt(find_reward(use, given), name, **settings)
    )
    return Reward(name, spec.factor, function, spec.batch_size, spec.applies, spec.gate, spec.on_error, spec.overlap)


def _nan_where_not_applicable(scores: Tensor) -> Tensor:
    return torch.where(scores == NOT_APPLICABLE, torch.nan, scores)


def _prompt_ids(prompts: Sequence[Prompt]) -> Tensor:
    """[N] int64"""
    return torch.tensor([prompt.id for prompt in prompts], dtype=torch.int64)
