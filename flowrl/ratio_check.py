"""What rounding does to the ratio before the first update: where it ends a run, and where the run says so."""

from __future__ import annotations

from collections.abc import Mapping

from flowrl.errors import UserError
from flowrl.parts.diagnostics import DEVIATION, MISMATCH, MISMATCH_MAX, NEARLY_ALL, OUTSIDE, VERSION
from flowrl.session import Session

RATIO_LIMIT = 1e-3
"""Largest ``|ratio - 1|`` before the first update that float32 rounding explains."""
OUTSIDE_LIMIT = 0.01
"""Share of decisions outside the clip before the first update, above which the run says so."""
MISMATCH_LIMIT = 0.02
"""Largest mean of ``|log p|`` between an inference engine and the trainer that kernels in half precision explain (they
differ by .001 to .01); beyond it weights, temperature or template differ. A rule of thumb."""
FINER = {
    "bfloat16": "model.dtype=float16 (rounds 8 times finer, its loss is scaled) or float32",
    "float16": "model.dtype=float32",
}
"""What to try instead of a dtype."""


class RatioCheck:
    """Watches the ratio of every iteration's first optimiser batch, where new and old policy are the same."""

    def __init__(self) -> None:
        self._said = self._compared = False

    def check(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Raise `UserError` where sampler and trainer disagree: ratios, and so gradients, would mean nothing."""
        off = metrics[DEVIATION]
        if _stale(session, metrics):
            return
        if session.config.model.dtype == "float32" and not off <= RATIO_LIMIT:
            raise UserError(
                f"the ratio is off by {off:.2g} before the first update, where it should be 1: the model answers "
                "differently in sampling and in training; is there dropout, or a log-density summed over a large "
                "latent (then set algorithm.estimator.reduction=mean)?"
            )

    def notes(self, session: Session, metrics: Mapping[str, float]) -> list[str]:
        """An engine's distance, and one sentence where rounding alone puts more than 1 % of decisions outside the clip:
        those that are clipped have no gradient, and which are is decided by rounding. Each is said once a run."""
        return [*self._engine_notes(session, metrics), *self._clip_notes(session, metrics)]

    def _engine_notes(self, session: Session, metrics: Mapping[str, float]) -> list[str]:
        """How far an inference engine, or a rollout worker, is from the trainer at the first step, and whether that is
        usual: by log-probabilities of tokens, or by the ratio of recorded steps that the trainer replayed."""
        engine = getattr(session.algorithm.sampler, "engine", None) or (session.workers and "the rollout workers")
        if self._compared or not engine:
            return []
        self._compared = True
        if MISMATCH not in metrics:
            off = f"steps of {engine}, replayed by the trainer, have ratios within {metrics[DEVIATION]:.2g} of 1"
            return [off] if session.algorithm.estimator.has_recorded_logp else []
        mean, most = metrics[MISMATCH], metrics[MISMATCH_MAX]
        found = f"log-probabilities of {engine} and of the trainer differ by {mean:.2g} on average, {most:.2g} at most"
        if mean <= MISMATCH_LIMIT:
            return [f"{found}: usual for different kernels"]
        return [
            f"{found}; above {MISMATCH_LIMIT} on average it is more than rounding: compare dtype, model.path and the"
            " engine's version, or add token_advantage: [truncated_importance]"
        ]

    def _clip_notes(self, session: Session, metrics: Mapping[str, float]) -> list[str]:
        share = metrics.get(OUTSIDE, 0.0)
        if self._said or _stale(session, metrics) or not share > OUTSIDE_LIMIT:
            return []
        self._said = True
        dtype, clip = session.config.model.dtype, max(session.algorithm.objective.clip_range or (0.0,))
        finer = f"use {FINER[dtype]}, or " if dtype in FINER else ""
        return [
            f"{share:.1%} of decisions lie outside the clip of {clip:.2g} before any update, by rounding in {dtype} "
            f"alone: {finer}widen the clip (99 % of them lie within {metrics[NEARLY_ALL]:.2g})"
        ]


def _stale(session: Session, metrics: Mapping[str, float]) -> bool:
    """Whether the samples of the iteration that ended were made by older weights, so that the ratio was not 1."""
    return VERSION in metrics and metrics[VERSION] < session.progress.iteration - 1
