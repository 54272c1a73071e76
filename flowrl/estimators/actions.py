"""Likelihood of action chunks that a policy gives a probability of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowrl.devices import put
from flowrl.types import Likelihood, Rollout, Rows


@dataclass(frozen=True)
class ActionRows(Rows):
    """One action chunk of every sample."""

    large: ClassVar[frozenset[str]] = frozenset({"action"})

    action: Tensor  # [N, 1, h, d]


@dataclass(frozen=True, kw_only=True)
class ActionLikelihood:
    """``log p(a | s)`` of whole chunks and its ``entropy``, both with their gradient; to inherit from."""

    family: ClassVar[str] = "control"

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return recorded, recorded

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> ActionRows:
        return ActionRows(rollout.final[:, None].float().cpu())

    def recorded_logp(self, rollout: Rollout, rows: ActionRows) -> None:
        return None

    def __call__(self, policy: Any, rows: ActionRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        action, others = put(rows.action[:, 0], policy.device), {}
        for name in references:
            with policy.using(name) as other:
                others[name] = self.measure(other, condition, action)[0]
        logp, entropy = self.measure(policy, condition, action)
        found = {f"log_ratio/{name}": (logp.detach() - value)[:, None] for name, value in others.items()}
        return Likelihood(logp[:, None], found | {"entropy": entropy[:, None]})

    def measure(self, policy: Any, condition: Any, action: Tensor) -> tuple[Tensor, Tensor]:
        """``log p`` [N] and entropy [N] float64 of chunks [N, h, d]."""
        raise NotImplementedError
