"""Learning again from samples of earlier iterations, where the algorithm has a `Replay`: they are read from the run's
directory and put behind the present samples, and the present ones are kept there for later iterations.

Every process knows which samples are kept; the first one reads and writes them, and each learns from its share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowrl.clients.results import NOT_APPLICABLE
from flowrl.errors import UserError
from flowrl.math.random import derive
from flowrl.models import DiffusionPolicy
from flowrl.parts.algorithm import Algorithm
from flowrl.records.replays import MEMORY, Ring, file_name, names_in
from flowrl.rounds import ScoredRollout
from flowrl.runtime.ranks import together
from flowrl.samplers.chunks import TRACE, joined, rows_of
from flowrl.score.combination import CombinedScores
from flowrl.score.reward import CallStats
from flowrl.session import Session
from flowrl.types import (
    POLICY,
    REPLAY,
    IncompatibleError,
    Memory,
    PastSamples,
    Prompt,
    Ranks,
    Rollout,
    Scores,
    Share,
    exchange,
)

REWARDS = "rewards"
"""What the rewards answered of a kept sample, beside the tensors of its rollout."""


@dataclass(frozen=True)
class Learned:
    """What an iteration learns from: its own samples, and behind them those of earlier iterations."""

    rollout: Rollout
    """Of this process."""
    share: Share
    scores: Scores
    present: Scores
    """Of the iteration's own samples."""
    old: Scores | None = None
    """Of earlier ones that are groups of their own."""
    metrics: Mapping[str, float] = field(default_factory=dict)

    def advantage(self, algorithm: Algorithm, memory: Memory) -> Tensor:
        """What the algorithm's advantage says of all samples. Groups of earlier samples alone are judged by
        themselves, and move no state of it."""
        if self.old is None:
            return algorithm.advantage(self.scores, memory)
        present = algorithm.advantage(self.present, memory)
        return torch.cat([present, algorithm.advantage(self.old, deepcopy(memory))])

    def weighed(self, algorithm: Algorithm, memory: Memory) -> Learned:
        """With how much the algorithm's penalties hold each sample, where it says so."""
        if algorithm.penalty_weight is None:
            return self
        return replace(self, scores=replace(self.scores, penalty_weight=algorithm.penalty_weight(self.scores, memory)))


def with_old_samples(session: Session, batch: ScoredRollout) -> Learned:
    """The samples of an iteration, and those that the algorithm's replay puts beside them. Raises `UserError` for a
    file that cannot be read."""
    replay, ring, ranks = session.present_algorithm.replay, session.ring, session.ranks
    alone = Learned(batch.rollout, batch.share, batch.scores, batch.scores)
    if replay is None or ring is None:
        return alone
    names = names_in(session.memory)
    past, place, row = _past(ring, names, ranks)
    seed = derive(session.config.train.seed, "replay", session.progress.iteration)
    chosen, group = replay(past, batch.scores, seed)
    if not len(chosen):
        return replace(alone, metrics={"replay/samples": 0.0})
    if replay.alone:
        group = group + int(batch.scores.group.max()) + 1
    tensors = _read(ring, names, place[chosen], row[chosen], ranks)
    prompts = _prompts(session, past.prompt_ids[chosen])
    rewards = tensors.pop(REWARDS)
    old = _conclude(session, rewards, prompts, group)
    both = torch.cat([batch.scores.group, group])
    scores = _conclude(session, torch.cat([_answers(batch.scores), rewards]), [*batch.prompts, *prompts], both)
    source = torch.cat([_sources(batch.scores), torch.full_like(group, REPLAY)])
    feedback = _feedback(batch.scores, tensors)
    mine = torch.arange(len(chosen))[ranks.share(len(chosen))]
    held = [prompts[number] for number in mine.tolist()]
    return Learned(
        _joined(session, batch, {name: value[mine] for name, value in tensors.items()}, group[mine], held),
        Share.of(ranks, torch.cat([batch.share.here, len(batch.scores.group) + mine])),
        replace(scores, source=source, feedback=feedback),
        batch.scores,
        replace(old, feedback=tensors.get("feedback")) if replay.alone else None,
        {
            "replay/samples": float(len(chosen)),
            "replay/reward": float(old.total.mean()),
            "replay/age": float((session.progress.iteration - past.iteration[chosen]).double().mean()),
        },
    )


def keep_samples(session: Session, batch: ScoredRollout, iteration: int) -> None:
    """Keep the samples of an ``iteration``, counted from 0, that the policy made and that could be scored, and let go
    what is over the replay's capacity."""
    replay, ring, scores = session.algorithm.replay, session.ring, batch.scores
    if replay is None or ring is None:
        return
    if batch.rollout.nodes is not None:
        raise IncompatibleError("replay takes samples by themselves, and those of this sampler share parts; remove it")
    names = names_in(session.memory)
    rows = (scores.valid & (_sources(scores) == POLICY)).nonzero()[:, 0]
    if len(rows):
        part, here = batch.share.take(rows)
        tensors = {name: part.gather(value.cpu()[here]) for name, value in rows_of(batch.rollout).items()}
        tensors = {name: value for name, value in tensors.items() if name != "source"} | {
            REWARDS: _answers(scores)[rows]
        }
        made = torch.full((len(rows),), iteration)
        past = PastSamples(made, scores.group[rows], scores.prompt_ids[rows], scores.total[rows].double())
        name = file_name(iteration)
        with together(session.ranks):
            if session.ranks.rank == 0:
                ring.write(name, past, tensors)
        names = [*(known for known in names if known != name), name]
        ring.known[name] = past
    while len(names) > 1 and sum(len(ring.known[name]) for name in names) > replay.capacity:
        ring.known.pop(names.pop(0))
    session.memory[MEMORY] = names
    with together(session.ranks):
        if session.ranks.rank == 0:
            ring.prune(names)


def _past(ring: Ring, names: Sequence[str], ranks: Ranks) -> tuple[PastSamples, Tensor, Tensor]:
    """``(what is known of all kept samples, [K] which file each is in, [K] its row there)``."""
    new = [name for name in names if name not in ring.known]
    if new:  # after a resume
        found: list[dict[str, list[float]]] = []
        with together(ranks):
            if ranks.rank == 0:
                found = [{key: value.tolist() for key, value in vars(ring.about(name)).items()} for name in new]
        for name, about in zip(new, exchange(ranks, found)[0], strict=True):
            total = torch.tensor(about.pop("total"), dtype=torch.float64)
            ring.known[name] = PastSamples(**{key: torch.tensor(value) for key, value in about.items()}, total=total)
    each = [ring.known[name] for name in names]
    none = {"total": torch.zeros(0, dtype=torch.float64)}
    past = PastSamples(
        **{
            key: torch.cat([none.get(key, torch.zeros(0, dtype=torch.int64)), *(vars(part)[key] for part in each)])
            for key in PastSamples.__dataclass_fields__
        }
    )
    counts = torch.tensor([len(part) for part in each], dtype=torch.int64)
    place = torch.arange(len(each)).repeat_interleave(counts)
    row = torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.arange(len(part)) for part in each)])
    return past, place, row


def _read(ring: Ring, names: Sequence[str], place: Tensor, row: Tensor, ranks: Ranks) -> dict[str, Tensor]:
    """The samples, on every process."""
    found: dict[str, Tensor] = {}
    with together(ranks):
        if ranks.rank == 0:
            found = ring.read(names, place, row)
    if ranks.size == 1:
        return found
    shapes = {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in found.items()}
    return {
        name: ranks.first(found[name] if found else torch.empty(shape, dtype=getattr(torch, dtype)))
        for name, (dtype, shape) in exchange(ranks, shapes)[0].items()
    }


def _prompts(session: Session, ids: Tensor) -> list[Prompt]:
    known = {prompt.id: prompt for prompt in session.prompts.prompts}
    gone = next((key for key in ids.tolist() if key not in known), None)
    if gone is not None:
        raise UserError(
            f"replay: a kept sample is of prompt {gone + 1} of data.train, which is not there any more; start a new run"
        )
    return [known[key] for key in ids.tolist()]


def _answers(scores: Scores) -> Tensor:
    """[N, R] what the rewards answered."""
    if not isinstance(scores, CombinedScores):
        return scores.rewards
    return torch.where(scores.applies, scores.rewards, NOT_APPLICABLE)


def _sources(scores: Scores) -> Tensor:
    """[N] int64"""
    return torch.full_like(scores.group, POLICY) if scores.source is None else scores.source


def _feedback(scores: Scores, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return None if scores.feedback is None else torch.cat([scores.feedback, tensors["feedback"]])


def _conclude(session: Session, rewards: Tensor, prompts: Sequence[Prompt], group: Tensor) -> Scores:
    """Scores by the declared policies, of answers [N, R] that were concluded before."""
    return session.rewards.conclude(rewards, prompts, group, [CallStats() for _ in session.rewards.names])


def _joined(
    session: Session, batch: ScoredRollout, tensors: Mapping[str, Tensor], group: Tensor, prompts: Sequence[Prompt]
) -> Rollout:
    """The present rollout of this process with the old samples that it learns from behind its own."""
    present, policy = batch.rollout, session.policy
    if not len(group):
        return present
    if isinstance(policy, DiffusionPolicy) and policy.encoder.ragged:
        raise IncompatibleError(
            "replay needs prompts that are encoded alike in every batch, and this pipeline pads a prompt to the "
            "longest of its batch; remove algorithm.replay"
        )
    wanted = {name: value for name, value in rows_of(present).items() if name != "source"}
    other = [name for name in wanted if name not in tensors or tensors[name].shape[1:] != wanted[name].shape[1:]]
    if other or present.judge is not None:
        raise IncompatibleError(f"replay: samples of earlier iterations have another {', '.join(other) or 'judge'}")
    placed = {name: tensors[name].to(value.device) for name, value in wanted.items()}
    trace = {name.removeprefix(TRACE): value for name, value in placed.items() if name.startswith(TRACE)}
    own = {name: value for name, value in placed.items() if not name.startswith(TRACE)}
    kept = None if present.trace is None else replace(present.trace, **trace)
    source = torch.full((len(group),), REPLAY)
    old = replace(present, group=group, trace=kept, source=source, forwards=0, **own)
    condition = policy.condition([*batch.samples.prompts, *prompts])
    return joined([present, old], condition, torch.cat([present.group, group]))
