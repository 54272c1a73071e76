"""What a reward model says of recorded samples: one decision, the sample's rating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from flowrl.estimators.tokens import check_recorded
from flowrl.types import Condition, IncompatibleError, Likelihood, RewardPolicy, Rollout, Rows, TokenTrace


@dataclass(frozen=True)
class RatingRows(Rows):
    """Conversations to be rated."""

    tokens: Tensor  # [N, T], prompt and completion
    mask: Tensor  # [N, T] bool

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.tokens), 1

    def row_tokens(self, condition: Any) -> Tensor:
        return self.mask.sum(dim=1)

    def block(self, rows: Tensor, decisions: slice) -> Self:
        return type(self)(self.tokens[rows], self.mask[rows])


@dataclass(frozen=True)
class Ratings:
    """``r(prompt, completion)`` of a reward model as the only decision of a sample: of two samples the first is the
    better one with probability ``sigmoid(r_1 - r_2)``, so a rating is a log-likelihood up to what a prompt's samples
    have in common."""

    family: ClassVar[str] = "reward"

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        check_recorded(recorded)
        return 1, 1

    def probe(self, rollout: Rollout, policy: RewardPolicy, seeds: Tensor) -> RatingRows:
        trace = rollout.trace
        if not isinstance(trace, TokenTrace):
            raise IncompatibleError("ratings are of recorded conversations: use the sampler recorded")
        return RatingRows(trace.tokens, trace.mask)

    def recorded_logp(self, rollout: Rollout, rows: RatingRows) -> Likelihood | None:
        return None

    def __call__(
        self, policy: RewardPolicy, rows: RatingRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        return Likelihood(policy.rate(condition, rows.tokens, rows.mask)[:, None])
