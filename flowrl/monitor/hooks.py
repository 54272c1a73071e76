"""What the training loop asks of the monitor: after an iteration, after an evaluation, and once both are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowrl.errors import UserError
from flowrl.monitor.alarms import Check, State, check_rewards, check_statistics, sentence
from flowrl.monitor.statistics import measure, subsample
from flowrl.records import checkpoint_folder
from flowrl.records.directory import RunDirectory
from flowrl.runtime.callbacks import Stop
from flowrl.types import Rollout, Samples, Scores, Share, TokenTrace

if TYPE_CHECKING:  # it loads diffusers, which a report has no need of
    from flowrl.session import Session

STATE_KEY = "monitor"
"""The monitor's key in `Session.memory`."""


def check_training(
    session: Session, rollout: Rollout, samples: Samples, metrics: Mapping[str, float], share: Share | None = None
) -> dict[str, float]:
    """Metrics of an iteration's samples against those of the first iteration, and of the KL (``metrics``). ``share``:
    which of the samples of all processes these are.

    Raises `UserError` where a limit of the KL is set and the algorithm does not measure it.
    """
    options, state = session.config.monitor, _state(session)
    checks = []
    if _has_media(session):
        share = Share.alone(len(rollout.group)) if share is None else share
        group = share.gather(rollout.group)
        chosen = subsample(group, options.samples)
        part, rows = share.take(chosen)
        trace, group = rollout.trace, group[chosen]
        full = trace.mask[rows].all(dim=1) if isinstance(trace, TokenTrace) else None
        latents = rollout.final[rows] if rollout.final.is_floating_point() else None
        measured = measure(samples.take(rows), group, latents=latents, full=full, share=part)
        checks = check_statistics("train", measured, group, state, options)
    if options.kl is not None:
        if "kl/reference" not in metrics:
            raise UserError(
                f"monitor.kl={options.kl:g} needs a KL to the reference, which this algorithm does not measure; give "
                "it a regularizer with a weight above 0, or set monitor.kl=null"
            )
        value = metrics["kl/reference"]
        checks.append(Check("kl", value, 0.0, not value <= options.kl))
    return _metrics(checks)


def check_heldout(session: Session, samples: Samples, scores: Scores, share: Share | None = None) -> dict[str, float]:
    """Metrics of held-out samples against those of the first evaluation, and of rewards that are only watched.
    ``share``: which of the samples that ``scores`` are of are these."""
    options, state = session.config.monitor, _state(session)
    checks = check_rewards(scores, state, options)
    if _has_media(session):
        share = Share.alone(len(samples)) if share is None else share
        chosen = subsample(scores.group, options.samples)
        part, rows = share.take(chosen)
        measured = measure(samples.take(rows), scores.group[chosen], share=part)
        checks += check_statistics("heldout", measured, scores.group[chosen], state, options)
    return _metrics(checks)


def new_alarms(session: Session, metrics: Mapping[str, float]) -> list[str]:
    """Sentences of the alarms that are raised in an iteration's metrics and were not before."""
    state, options = _state(session), session.config.monitor
    active: list[str] = state.setdefault("active", [])
    before = set(active)
    checked = {key.removeprefix("alarm/"): value for key, value in metrics.items() if key.startswith("alarm/")}
    active[:] = sorted((before - checked.keys()) | {name for name, value in checked.items() if value})
    if not active:
        state["since"] = None
    elif state.get("since") is None:
        state["since"] = session.progress.iteration
    return [f"alarm: {sentence(_check(name, metrics, state), options)}" for name in active if name not in before]


def should_stop(session: Session, run: RunDirectory) -> Stop | None:
    """After `new_alarms`: whether ``monitor.action`` ends the run here."""
    since, action, done = _state(session).get("since"), session.config.monitor.action, session.progress.iteration
    if since is None or action == "none":
        return None
    if action == "stop":
        return Stop(f"monitor.action=stop: saved and stopped after iteration {done}", save=True)
    alarmed = checkpoint_folder.directory(run.checkpoints, since)
    good = [path for path in checkpoint_folder.finished(run.checkpoints) if path < alarmed]
    best, metric = checkpoint_folder.best(run.checkpoints), session.config.checkpoint.best
    last = f"the last one before the alarm is {good[-1]}" if good else "none is older than the alarm"
    last += f", the best by {metric} is {best}" if best in good else ""
    return Stop(f"monitor.action=rollback: stopped after iteration {done} without a checkpoint; {last}", save=False)


def _has_media(session: Session) -> bool:
    """Whether samples are watched: of an episode there is only a line that tells of it, which no policy wrote."""
    return session.config.monitor.samples > 0 and session.algorithm.family != "control"


def _check(name: str, metrics: Mapping[str, float], state: State) -> Check:
    where, _, statistic = name.partition("/")
    base = state.get(where, {}).get(statistic) if where in ("train", "heldout") else None
    value, z = metrics[f"monitor/{name}"], metrics[f"monitor/{name}/z"]
    return Check(name, value, z, True, None if base is None else base[0])


def _metrics(checks: list[Check]) -> dict[str, float]:
    return {key: value for check in checks for key, value in check.metrics().items()}


def _state(session: Session) -> State:
    return session.memory.setdefault(STATE_KEY, {})
