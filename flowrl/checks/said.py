"""When self-checks speak: all values once an iteration is checked, sentences only of those that are outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowrl.checks.measures import is_due
from flowrl.checks.registry import Facts, Verdict, verdicts
from flowrl.errors import counted
from flowrl.parts.diagnostics import VERSION
from flowrl.session import Session


def judge(session: Session, metrics: Mapping[str, float]) -> list[Verdict]:
    """The verdicts of the iteration that ended; none where it is not checked."""
    return verdicts(metrics, facts_of(session, metrics)) if is_due(session) else []


def facts_of(session: Session, metrics: Mapping[str, float]) -> Facts:
    """What the ranges depend on."""
    config, algorithm = session.config, session.algorithm
    sampler = algorithm.sampler
    elsewhere = getattr(sampler, "engine", None) is not None or session.workers is not None
    replays = getattr(algorithm.objective, "off_policy", False)
    makes = sampler.forwards > 0 and not replays  # rewards of what a data set holds are not the policy's
    return Facts(
        exact=config.model.dtype == "float32" and not elsewhere,
        stale=VERSION in metrics and metrics[VERSION] < session.progress.iteration - 1,
        samples=config.data.prompts * config.data.group * makes,
        groups=config.data.prompts * makes,
        group=config.data.group if algorithm.min_group > 1 else 1,  # others compare no samples of a group
        text=algorithm.family != "diffusion" and getattr(session.policy, "image_tokens", None) is None,
    )


class Spoken:
    """What a run has said of its self-checks: each that is outside once, until it was healthy again."""

    def __init__(self) -> None:
        self._outside: set[str] = set()
        self._began = False

    def notes(self, found: Sequence[Verdict]) -> list[str]:
        """Sentences of the checks that are outside and were not before; at the first time also how many are not."""
        outside = [verdict for verdict in found if not verdict.healthy]
        said = [
            f"self-check {verdict.sentence()} (flowrl doctor --explain {verdict.check.name})"
            for verdict in outside
            if verdict.check.name not in self._outside and not verdict.check.told
        ]
        if found and not self._began:
            self._began = True
            said = [f"{counted(len(found) - len(outside), 'self-checks')} healthy", *said]
        self._outside -= {verdict.check.name for verdict in found}
        self._outside |= {verdict.check.name for verdict in outside}
        return said
