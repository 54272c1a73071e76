"""Frozen policies that a policy is compared with, under a name that its ``using`` knows.

An adapter of the same network is a weight set like any other. What is more than that answers in the student's place:
another model (`Peer`), weights at a guidance scale of their own (`Guided`), and a teacher for each domain of the
prompts (`Panel`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.errors import UserError
from flowrl.models.weights import HasWeightSets
from flowrl.types import CfgGrad, Condition, Decoder, Prompt, PromptRows, TokenScores


@dataclass
class Peer:
    """Another policy of the same family, with the same vocabulary or latent space. It makes its own condition of the
    prompts, on its own device; where they were changed on the way (masked prompts), it reads the student's tokens."""

    policy: Any
    guidance: float | None = None
    """Its guidance scale; ``None`` is the one that the student is asked with."""
    _known: tuple[tuple[Prompt, ...], Condition] | None = field(default=None, init=False, repr=False)
    """The prompts that it was asked of last, and what it made of them."""

    def asked_by(self, student: Any) -> _PeerOf:
        """The peer, answering on the student's device."""
        return _PeerOf(self, student.device)

    def condition(self, condition: Any) -> Condition:
        """What it is conditioned on for the rows of the student's ``condition``."""
        rows = origin_of(condition)
        if rows is None:
            return condition
        if self._known is None or self._known[0] is not rows.prompts:
            self._known = (rows.prompts, self.policy.condition(rows.prompts))
        return self._known[1].take(rows.index)


@dataclass(frozen=True)
class _PeerOf:
    peer: Peer
    device: torch.device
    """The student's."""

    def velocity(
        self, x: Tensor, t: Tensor, condition: Any, *, guidance: float | None = None, cfg_grad: CfgGrad = "cond"
    ) -> Tensor:
        scale = guidance if self.peer.guidance is None else self.peer.guidance
        there = put(x, self.peer.policy.device)
        with torch.no_grad():
            return put(self.peer.policy.velocity(there, t, self.peer.condition(condition), guidance=scale), x.device)

    @property
    def vocabulary(self) -> int:
        return self.peer.policy.vocabulary

    @property
    def end_tokens(self) -> tuple[int, ...]:
        return self.peer.policy.end_tokens

    @property
    def pad_token(self) -> int:
        return self.peer.policy.pad_token

    def decoder(self, condition: Any) -> _DecoderOf:
        return _DecoderOf(self.peer.policy.decoder(self.peer.condition(condition)), self.device)

    def score(self, condition: Any, tokens: Tensor, targets: Tensor, labels: Tensor, **options: Any) -> TokenScores:
        with torch.no_grad():
            scores = self.peer.policy.score(self.peer.condition(condition), tokens, targets, labels, **options)
        return replace(scores, logp=put(scores.logp, self.device))


@dataclass(frozen=True)
class _DecoderOf:
    """A decoder whose logits are on another device."""

    decoder: Decoder
    device: torch.device

    @property
    def logits(self) -> Tensor:
        return put(self.decoder.logits, self.device)

    def push(self, tokens: Tensor) -> None:
        self.decoder.push(tokens)

    def keep(self, rows: Tensor) -> None:
        self.decoder.keep(rows)


@dataclass(frozen=True)
class Guided:
    """A weight set that answers with a guidance scale of its own, whatever the student's is."""

    weights: str
    guidance: float

    def asked_by(self, student: HasWeightSets) -> _GuidedStudent:
        """The student with these weights."""
        return _GuidedStudent(student, self)


@dataclass(frozen=True)
class _GuidedStudent:
    student: Any
    teacher: Guided

    def velocity(
        self, x: Tensor, t: Tensor, condition: Any, *, guidance: float | None = None, cfg_grad: CfgGrad = "cond"
    ) -> Tensor:
        with self.student.weights.using(self.teacher.weights):
            return self.student.velocity(x, t, condition, guidance=self.teacher.guidance)


@dataclass(frozen=True)
class Panel:
    """A teacher for each value of a column of the prompts: every row is answered by its own."""

    column: str
    members: Mapping[str, str]
    """Names that ``using`` knows, by the value of the column."""

    def asked_by(self, student: HasWeightSets) -> _PanelOf:
        """The panel's members, in the place of this student."""
        return _PanelOf(student, self)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `UserError` for a prompt that no member teaches."""
        for prompt in prompts:
            self.member(prompt)

    def member(self, prompt: Prompt) -> str:
        """Who teaches a prompt."""
        value = str(prompt.columns.get(self.column))
        if value not in self.members:
            have = ", ".join(sorted(self.members))
            raise UserError(
                f"teachers: prompt {prompt.id + 1} has {value!r} in the column {self.column!r}, which no member teaches"
                f" (there are {have}); add one, or leave the prompt out"
            )
        return self.members[value]


@dataclass(frozen=True)
class _PanelOf:
    student: Any
    panel: Panel

    def velocity(
        self, x: Tensor, t: Tensor, condition: Any, *, guidance: float | None = None, cfg_grad: CfgGrad = "cond"
    ) -> Tensor:
        found = torch.empty_like(x)
        for name, rows in self._rows(condition):
            there = put(rows, x.device)
            with self.student.using(name) as teacher:
                found[there] = teacher.velocity(x[there], t[rows.to(t.device)], condition.take(rows), guidance=guidance)
        return found

    def score(self, condition: Any, tokens: Tensor, targets: Tensor, labels: Tensor, **options: Any) -> TokenScores:
        every = [tokens, targets, labels]
        parts: list[tuple[Tensor, TokenScores]] = []
        for name, rows in self._rows(condition):
            with self.student.using(name) as teacher:
                mine = (value[rows.to(value.device)] for value in every)
                parts.append((rows, teacher.score(condition.take(rows), *mine, **options)))
        return _joined(parts, len(tokens))

    def _rows(self, condition: Any) -> list[tuple[str, Tensor]]:
        """``(member, rows [n] that it teaches)``."""
        origin = origin_of(condition)
        if origin is None:
            raise UserError("teachers of several domains are chosen by the prompt, and these prompts were masked; set "
                            "estimator.corrupt=0")  # fmt: skip
        names = [self.panel.member(origin.prompts[place]) for place in origin.index.tolist()]
        rows = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
        return [(name, torch.tensor(places)) for name, places in rows.items()]


def origin_of(condition: Any) -> PromptRows | None:
    """The prompts of a condition's rows, where it knows them."""
    return vars(condition).get("origin")


def _joined(parts: list[tuple[Tensor, TokenScores]], count: int) -> TokenScores:
    """Scores of ``count`` rows from those of some of them each."""
    device = parts[0][1].logp.device
    made: dict[str, Any] = {}
    for name in (f.name for f in fields(TokenScores)):
        found = [(rows, getattr(scores, name)) for rows, scores in parts]
        if all(isinstance(value, Tensor) for _, value in found):
            whole = found[0][1].new_zeros(count, *found[0][1].shape[1:])
            for rows, value in found:
                whole[put(rows, device)] = put(value, device)
            made[name] = whole
    made["shown"] = tuple(
        replace(shown, where=shown.where.new_full((count, shown.where.shape[1]), -1).index_copy(0, rows, shown.where))
        for rows, scores in parts
        for shown in scores.shown
    )
    return TokenScores(**made)
