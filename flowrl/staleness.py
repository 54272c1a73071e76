"""Samples of older weights, as where sampling and training work at the same time (``train.staleness``).

Iteration i, from 0, learns from samples that the weights after ``max(i - staleness, 0)`` iterations made. With
rollout workers they sample for the next iteration while this one updates (`flowrl.rounds.sample_ahead`); in one process
nothing is won by it: it computes the same, in an order that does not depend on clocks.
The weights are kept as sets ``version_<iterations>``, at most ``staleness`` of them between two iterations, and are
part of a checkpoint.
"""

from __future__ import annotations

from flowrl.session import Session


def sampling_version(session: Session, iteration: int | None = None) -> int:
    """The number of finished iterations of the weights that sample in an iteration, counted from 0; the coming one."""
    at = session.progress.iteration if iteration is None else iteration
    return max(at - session.config.train.staleness, 0)


def sampling_weights(session: Session, iteration: int | None = None) -> str:
    """The weight set that samples in an iteration, counted from 0; the coming one."""
    at = session.progress.iteration if iteration is None else iteration
    version = sampling_version(session, at)
    return session.algorithm.behaviour if version == at else _name(version)


def keep_version(session: Session) -> None:
    """Keep the live weights for a later iteration that samples with them: before the first update of this one."""
    if session.config.train.staleness:
        session.policy.update_ema(_name(session.progress.iteration), 0.0)


def drop_version(session: Session) -> None:
    """Free what no iteration samples with any more, once an iteration is finished."""
    if session.config.train.staleness:
        session.policy.weights.drop(_name(sampling_version(session) - 1))


def _name(version: int) -> str:
    return f"version_{version}"
