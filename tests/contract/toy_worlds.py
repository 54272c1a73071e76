"""Toys of what samplers may return besides a policy's own samples: recorded data, two turns with an environment, the
steps of an episode, and a reward with a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.math.random import derive, normal, uniform
from flowrl.models.tiny_text import TinyText, TinyTextCondition
from flowrl.parts.objectives import ObjectiveDefaults
from flowrl.types import (
    DATA,
    Batch,
    Draw,
    Likelihood,
    Memory,
    Prompt,
    Rollout,
    Rows,
    Scores,
    Table,
    TokenTrace,
)


# -------------------------------------------------------------------------------------------- a recorded prompt set
def recorded_prompts(latents: Tensor, ratings: Tensor) -> list[Prompt]:
    """Prompt ``a``, with recorded samples [K, dim] and what somebody said of them [K] as columns."""
    return [Prompt("a", 0, {"recorded": latents.tolist(), "ratings": ratings.tolist()})]


@dataclass(frozen=True)
class Recorded:
    """Reads samples instead of making them: of each row the one that its place says."""

    steps: int = 4
    forwards: ClassVar[int] = 0
    recorded: ClassVar[int] = 0

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Recorded:
        return self

    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        pairs = list(zip(draw.prompts, draw.place.tolist(), strict=True))
        latents = torch.tensor([prompt.columns["recorded"][place] for prompt, place in pairs])
        ratings = torch.tensor([prompt.columns["ratings"][place] for prompt, place in pairs], dtype=torch.float64)
        made = Rollout.of(draw, condition, latents, times=policy.times(self.steps))
        return replace(made, source=torch.full_like(draw.group, DATA), feedback=ratings)


@dataclass(frozen=True)
class PerSource:
    """A mean over the samples of each source, and ``share`` of the weight to data."""

    share: float = 0.25

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        assert source is not None
        data = (source == DATA)[:, None] & mask
        own = mask & ~data
        return self.share * data / data.sum().clamp(min=1) + (1 - self.share) * own / own.sum().clamp(min=1)


# ------------------------------------------------------------------------------------- two turns with an environment
def answer_of(first: Tensor) -> Tensor:
    """What the environment says to a first token: the next one of three."""
    return (first + 1) % 3


@dataclass(frozen=True)
class TwoTurns:
    """A token of the policy, one of the environment, a token of the policy again: one row. Each turn has a reward, 1
    where the token is 1 and where it repeats the environment's."""

    forwards: ClassVar[int] = 2
    recorded: ClassVar[int] = 3

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> TwoTurns:
        return self

    @torch.no_grad()
    def __call__(self, policy: TinyText, condition: TinyTextCondition, draw: Draw) -> Rollout:
        tokens = torch.full((len(draw), 3), policy.pad_token)
        numbers = uniform(draw.seeds, (3,), stream=0)
        for place in (0, 2):
            logits = policy.table[condition.index, policy.state(canvas(policy, tokens, place)), place]
            tokens[:, place] = (numbers[:, place, None] > logits.double().softmax(dim=-1).cumsum(dim=-1)).sum(dim=-1)
            if place == 0:
                tokens[:, 1] = answer_of(tokens[:, 0])
        mask = torch.tensor([True, False, True]).expand(tokens.shape)
        event = torch.tensor([0, -1, 1]).expand(tokens.shape)
        made = Rollout.of(draw, condition, tokens, TokenTrace(tokens, mask, 1.0, event=event), forwards=2 * len(draw))
        rewards = torch.stack([tokens[:, 0] == 1, tokens[:, 2] == tokens[:, 1]], dim=1).double()
        return replace(made, feedback=rewards)


def canvas(policy: TinyText, tokens: Tensor, place: int) -> Tensor:
    """What an autoregressive toy reads before it says the token of a place: the tokens before it, masks from there."""
    return torch.where(torch.arange(tokens.shape[1]) < place, tokens, policy.mask_token)


@dataclass(frozen=True)
class PerTurn:
    """The reward of each turn and of later ones, less the mean of the group: [N, E]."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        assert scores.feedback is not None
        gains = scores.feedback.flip(1).cumsum(dim=1).flip(1)
        return gains - gains.mean(dim=0)


# ------------------------------------------------------------------------------------------------- a point mass
@dataclass(frozen=True)
class PointMass:
    """Episodes of a point on a line: every row is a step, whose action is one draw of the policy, so that more rows
    come back than were drawn. The reward of a step is how near to 1 the point then is. The last row of an episode is
    the state that it ended in, without an action."""

    horizon: int = 3
    steps: int = 4
    forwards: ClassVar[int] = 12
    recorded: ClassVar[int] = 0

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> PointMass:
        return self

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        rows = self.horizon + 1
        index = torch.arange(len(draw)).repeat_interleave(rows)
        keys = [derive(int(seed), "step", k) for seed in draw.seeds for k in range(rows)]
        wide = replace(draw.take(index), seeds=torch.tensor(keys))
        actions = normal(wide.seeds, policy.latent_shape, stream=0)
        moved = actions[:, 0].reshape(-1, rows).double()
        moved[:, -1] = 0.0
        rewards = -(moved.cumsum(dim=1) - 1).abs()
        rewards[:, -1] = torch.nan
        made = Rollout.of(wide, condition.take(index), actions, times=policy.times(self.steps))
        return replace(made, feedback=rewards.flatten())


@dataclass(frozen=True)
class Returns:
    """The discounted reward of a step and of all later ones of its episode: an advantage over rows, which only the
    groups and the feedback of a table tell."""

    gamma: float = 0.9
    reference: str = ""

    def __call__(self, table: Table) -> Table:
        assert table.feedback is not None
        out = torch.zeros_like(table.feedback)
        for key in table.group.unique():
            rows = (table.group == key).nonzero()[:, 0]
            later = 0.0
            for row in reversed(rows.tolist()):
                later = float(table.feedback[row].nan_to_num(0.0)) + self.gamma * later
                out[row] = later
        return replace(table, advantage=out[:, None].expand(table.mask.shape))


# ------------------------------------------------------------------------------------------- a reward with a gradient
@dataclass(frozen=True)
class Closeness:
    """A judge: how close the picture of a latent is to a target of its row."""

    decode: Any
    targets: Tensor  # [N, dim]
    names: tuple[str, ...] = ("closeness",)

    def __call__(self, clean: Tensor, rows: Tensor) -> Tensor:
        return -(self.decode(clean)[:, 0, 0] - self.targets[rows]).square().sum(dim=1, keepdim=True)

    def in_words(self, clean: Tensor, rows: Tensor, templates: Sequence[str]) -> list[Tensor]:
        """A longer prompt counts more."""
        return [len(template) * self(clean, rows) for template in templates]


@dataclass(frozen=True)
class ReplayRows(Rows):
    noise: Tensor  # [N, 1, dim]
    recorded: Tensor  # [N, 1, dim]
    row: Tensor  # [N, 1]
    judge: Any


@dataclass(frozen=True)
class OneStep:
    """The sample of a one-step sampler again, as a function of the weights, and what its judge says of it."""

    references: tuple[str, ...] = ()
    has_recorded_logp: bool = False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return 1, 1

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> ReplayRows:
        noise = normal(seeds, policy.latent_shape, stream=0)
        row = torch.arange(len(seeds))[:, None]
        return ReplayRows(noise[:, None], rollout.final[:, None], row, rollout.judge)

    def recorded_logp(self, rollout: Rollout, rows: ReplayRows) -> None:
        return None

    def __call__(self, policy: Any, rows: ReplayRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        noise = rows.noise[:, 0]
        clean = noise - policy.velocity(noise, torch.ones(len(noise)), condition)
        rewards = rows.judge(clean, rows.row[:, 0])
        miss = -(clean - rows.recorded[:, 0]).square().sum(dim=1, keepdim=True)
        named = zip(rows.judge.names, rewards.T, strict=True)
        return Likelihood(miss, {f"reward/{name}": column[:, None] for name, column in named})


@dataclass(frozen=True)
class Ascent(ObjectiveDefaults):
    """Minus the judge's reward."""

    needs_old_logp: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return -likelihood.need("reward/closeness")


# --------------------------------------------------------------------------------- parts that see the live likelihood
@dataclass(frozen=True)
class TopEntropy:
    """The ``share`` of the decisions that count with the highest entropy: a quantile of the optimiser batch."""

    share: float = 1.0
    coupled: ClassVar[bool] = True

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        counted = batch.weight > 0
        entropy = live.need("entropy").double()
        least = torch.quantile(entropy[counted], 1 - self.share)
        return (entropy >= least).double()


@dataclass(frozen=True)
class FixedWeights:
    """Channels by weights known before; keeps the Gram matrices that it was shown."""

    weights: tuple[float, ...]
    seen: list[Tensor] = field(default_factory=list, compare=False)

    def __call__(self, gram: Tensor) -> Tensor:
        self.seen.append(gram)
        return torch.tensor(self.weights, dtype=torch.float64)


@dataclass(frozen=True)
class Growing:
    """A coefficient that grows by a factor in every iteration."""

    sets: str
    factor: float = 1.0

    def __call__(self, value: float, metrics: Any, iteration: int) -> float:
        return value * self.factor
