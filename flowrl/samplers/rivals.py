"""Sampling from a mixture of the policy with another weight set, also as opponents beside the policy's own samples."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.chunks import interleaved
from flowrl.types import RIVAL, CausalPolicy, Decoder, Draw, Rollout, TextCondition, TokenTrace


@dataclass(frozen=True, kw_only=True)
class MixtureSampler(CausalSampler):
    """Draw each token from the geometric mixture ``p_live^(1 - mixture) p_to^mixture``, normalised: 0 is the policy, 1
    the other. Token by token, as Nash-MD's and TRL's is; the mixture of whole completions is another distribution.

    opponents: sample every second completion of a group so, as one to compare with (its source is `RIVAL`), and the
        others from the policy. Otherwise all of them, which the policy learns from as if they were its own.

    The record has no log-probabilities of such completions, because they are not the policy's. Both networks are run.
    """

    mixture: float = 0.5
    to: str = "reference"
    opponents: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mixture <= 1:
            raise ValueError(f"mixture={self.mixture} is the other policy's share: give one from 0 to 1")
        if self.engine is not None or self.greedy_first:
            raise ValueError("a mixture of policies is decoded here: set engine to null and greedy_first to false")

    @property
    def weight_sets(self) -> tuple[str, ...]:
        """Those that it asks besides the policy's."""
        return (self.to,)

    @property
    def forwards(self) -> int:
        return 2 * self.length

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> CausalSampler:
        """The policy alone."""
        return self._alone().heldout(steps, guidance, temperature)

    def __call__(self, policy: CausalPolicy, condition: TextCondition, draw: Draw) -> Rollout:
        mixed = draw.place % 2 == 1 if self.opponents else torch.ones(len(draw), dtype=torch.bool)
        parts: list[tuple[Tensor, Rollout]] = []
        if not bool(mixed.all()):
            rows = (~mixed).nonzero()[:, 0]
            parts.append((rows, self._alone()(policy, condition.take(rows), draw.take(rows))))
        if bool(mixed.any()):
            rows = mixed.nonzero()[:, 0]
            made = super().__call__(policy, condition.take(rows), draw.take(rows))
            assert isinstance(made.trace, TokenTrace) and made.trace.logp is not None
            trace = replace(made.trace, logp=torch.full_like(made.trace.logp, torch.nan))
            source = torch.full_like(made.source, RIVAL) if self.opponents else made.source
            parts.append((rows, replace(made, trace=trace, source=source, forwards=2 * made.forwards)))
        return interleaved(parts, condition, draw.group)

    def _alone(self) -> CausalSampler:
        return CausalSampler(**{field.name: getattr(self, field.name) for field in fields(CausalSampler)})

    def _decoder(self, policy: CausalPolicy, condition: TextCondition) -> Decoder:
        return _MixedDecoder(policy, condition, self.mixture, self.to)


class _MixedDecoder:
    """Implements :class:`flowrl.types.Decoder`: two weight sets that read the same tokens."""

    def __init__(self, policy: CausalPolicy, condition: TextCondition, share: float, to: str) -> None:
        self._policy, self._share, self._to = policy, share, to
        self._live = policy.decoder(condition)
        with policy.using(to) as other:
            self._other = other.decoder(condition)
        self._mix()

    def push(self, tokens: Tensor) -> None:
        """Append one token [n] to every row, and compute the next logits."""
        self._live.push(tokens)
        with self._policy.using(self._to):
            self._other.push(tokens)
        self._mix()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [m] only."""
        self._live.keep(rows)
        with self._policy.using(self._to):
            self._other.keep(rows)
        self._mix()

    def _mix(self) -> None:
        live, other = self._live.logits, self._other.logits
        if self._share in (0, 1):  # a logit of -inf times 0 is none
            self.logits = other if self._share else live
        else:
            self.logits = live.lerp(other.to(live), self._share)
