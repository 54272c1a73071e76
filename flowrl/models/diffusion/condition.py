"""What the denoiser is told about a prompt: encoded once per unique text, stored once, gathered by row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.errors import UserError
from flowrl.models.diffusion.denoiser_spec import PROBES, CallSpec, DenoiserSpec
from flowrl.models.diffusion.inputs import LeafPath, pick, same, split
from flowrl.models.diffusion.prompt_cache import PromptCache
from flowrl.models.diffusion.prompt_inputs import SIDE, PromptInputs, Told, stand_in
from flowrl.models.diffusion.recorder import Recorder
from flowrl.types import PromptRows

CHUNK = 16
"""Prompts given to the text encoders at once."""

REST: LeafPath = ("",)
"""Key of the constant channels that share an input with the latents."""


@dataclass(frozen=True)
class Branch:
    """Inputs of one branch for P prompts; a branch that is the same for all of them keeps one row."""

    rows: dict[LeafPath, Any]
    """Batch-first leaves [P, ...] or [1, ...], or lists."""
    template: dict[str, Any]
    """The call's inputs with everything that does not depend on the prompt."""
    constant: bool

    def take(self, index: Tensor) -> dict[LeafPath, Any]:
        """Leaves of the rows ``index`` [N]."""
        index = torch.zeros_like(index) if self.constant else index
        return {path: pick(value, index) for path, value in self.rows.items()}


@dataclass(frozen=True)
class DiffusionCondition:
    """Conditioning of N rows: the branches of P unique prompts, and which prompt each row has."""

    branches: tuple[Branch, ...]
    index: Tensor
    """[N] int64 into the unique prompts."""
    origin: PromptRows | None = None
    """What they were made of, where teachers are asked (`flowrl.models.teachers`)."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> DiffusionCondition:
        """The condition of the rows with these indices [n] (repeats allowed)."""
        origin = None if self.origin is None else self.origin.take(rows)
        return replace(self, index=self.index[put(rows, self.index.device)], origin=origin)


@dataclass(frozen=True)
class _Encoded:
    """One prompt's branches, each leaf with a batch of 1."""

    rows: tuple[dict[LeafPath, Any], ...]
    templates: tuple[dict[str, Any], ...]
    size: int

    def fits(self, other: _Encoded) -> bool:
        """Whether both can share tensors: equal shapes, and equal inputs besides."""
        return same(self.templates, other.templates) and all(
            mine == theirs for mine, theirs in zip(_shapes(self.rows), _shapes(other.rows), strict=True)
        )

    def close(self, other: _Encoded) -> bool:
        """Whether both are the same but for the rounding of batches of other sizes."""
        pairs = [
            (mine[path], theirs[path]) for mine, theirs in zip(self.rows, other.rows, strict=True) for path in mine
        ]
        return all(_close(mine, theirs) for mine, theirs in pairs)


def _close(left: Any, right: Any) -> bool:
    if isinstance(left, (list, tuple)):
        return all(map(_close, left, right))
    if not isinstance(left, Tensor) or not left.is_floating_point():
        return same(left, right)
    rounding = 1e-3 if left.dtype == torch.float32 else 5e-2
    return float((left.float() - right.float()).norm()) <= rounding * float(right.float().norm())


class RecentPrompts:
    """What was encoded by its prompts: the most recently used, up to ``limit_bytes`` together, and at least one."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._kept: OrderedDict[Told, list[_Encoded]] = OrderedDict()

    def __contains__(self, prompts: Told) -> bool:
        return prompts in self._kept

    def __getitem__(self, prompts: Told) -> list[_Encoded]:
        self._kept.move_to_end(prompts)
        return self._kept[prompts]

    def __setitem__(self, prompts: Told, entries: list[_Encoded]) -> None:
        self._bytes += sum(entry.size for entry in entries) - sum(e.size for e in self._kept.pop(prompts, ()))
        self._kept[prompts] = entries
        while self._bytes > self._limit and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= sum(entry.size for entry in dropped)


class Encoder:
    """Texts, and pictures where ``inputs`` has some, to conditions, remembering the most recent ones up to
    ``limit_bytes``. Prompts with pictures are encoded one by one: some pipelines take one picture for all prompts.

    A pipeline that pads to the longest prompt of the batch gives a text different shapes in different batches; for
    those the prompts of one condition are encoded together and that set of prompts is what is remembered. Others
    can be kept on disk (`keep`).
    """

    def __init__(
        self, recorder: Recorder, spec: DenoiserSpec, inputs: PromptInputs | None = None, limit_bytes: int = 1 << 30
    ) -> None:
        self._recorder = recorder
        self._spec = spec
        self.inputs = inputs or PromptInputs()
        self._recent = RecentPrompts(limit_bytes)
        self._cache: PromptCache | None = None
        self.texts_encoded = 0
        """Prompts the text encoders have seen."""
        self._interned: dict[int, dict[LeafPath, Any]] = {}
        short, long = self._capture([(PROBES[1],)])[0], self._capture([(PROBES[0],)])[0]
        self.ragged = not short.fits(long)
        self._example = short
        if self.ragged and self.inputs.columns:
            self._check_batches()

    def keep(self) -> None:
        """From now on encode prompts one by one, and keep them on disk for later runs."""
        self._cache = PromptCache(self._recorder)

    def renewed(self) -> Encoder:
        """One that remembers nothing, for text encoders that have changed."""
        fresh = Encoder(self._recorder, self._spec, self.inputs)
        if self._cache is not None:
            fresh.keep()
        return fresh

    def __call__(self, prompts: Sequence[Told]) -> DiffusionCondition:
        told = list(dict.fromkeys(prompts))
        entries = self._together(told) if self.ragged else self._one_by_one(told)
        if self.inputs.columns:
            self._check_alike(told, entries)
        position = {each: i for i, each in enumerate(told)}
        index = put(torch.tensor([position[each] for each in prompts]), self._recorder.pipeline._execution_device)
        branches = tuple(self._branch(entries, i) for i in range(len(self._spec.branches)))
        return DiffusionCondition(branches, index)

    def _together(self, told: list[Told]) -> list[_Encoded]:
        key = tuple(told)
        if key not in self._recent:
            self._recent[key] = self._capture(told)
        return self._recent[key]

    def _one_by_one(self, told: list[Told]) -> list[_Encoded]:
        entries = {each: self._recent[each][0] for each in told if each in self._recent}
        missing = [each for each in told if each not in entries]
        size = 1 if any(len(each) > 1 for each in missing) else CHUNK
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            found = self._capture(chunk) if self._cache is None else [self._cached(each) for each in chunk]
            for each, entry in zip(chunk, found, strict=True):
                entries[each] = entry
                self._recent[each] = [entry]
        return [entries[each] for each in told]

    def _check_alike(self, told: list[Told], entries: list[_Encoded]) -> None:
        """Raise `UserError` for pictures that become inputs of different shapes, or of one that the latents beside them
        do not have."""
        odd = next((i for i, entry in enumerate(entries) if not entry.fits(entries[0])), None)
        if odd is not None:
            first, other = ([str(part) for part in told[i][1:]] for i in (0, odd))
            raise UserError(
                f"model.inputs: {type(self._recorder.pipeline).__name__} makes inputs of different shapes of the"
                f" pictures {', '.join(first)} and {', '.join(other)}, which cannot be in one batch; give all pictures"
                " one size"
            )
        for rows, call in zip(entries[0].rows, self._spec.branches, strict=True):
            slot, rest = call.latent, rows.get(REST)
            beside = [] if rest is None else [n for axis, n in enumerate(rest.shape[1:]) if axis != slot.axis]
            if rest is not None and beside != [n for axis, n in enumerate(slot.latent) if axis != slot.axis]:
                raise UserError(
                    f"model.inputs: {type(self._recorder.pipeline).__name__} makes inputs of the shape {beside} of"
                    f" {', '.join(map(str, told[0][1:]))}, which do not fit its latents {list(slot.latent)}; give"
                    f" pictures of its own size (model.call height and width, or {SIDE} x {SIDE} where it has none)"
                )

    def _check_batches(self) -> None:
        """Raise `UserError` unless a list of two pictures is one for each prompt. Where texts are padded to the longest
        of a batch, its prompts have to be encoded together."""
        told = [(PROBES[0], *[stand_in(self._recorder.call, seed)] * len(self.inputs.columns)) for seed in (1, 2)]
        try:
            pairs = zip(self._capture(told), [self._capture([each])[0] for each in told], strict=True)
            alike = all(one.fits(other) and one.close(other) for one, other in pairs)
        except UserError:
            alike = False
        if not alike:
            raise UserError(
                f"model.inputs: {type(self._recorder.pipeline).__name__} pads texts to the longest of a batch and takes"
                " no list of one picture for each prompt; give all prompts the same by model.call"
            )

    def _cached(self, told: Told) -> _Encoded:
        """A prompt from the cache on disk, or encoded alone and put there."""
        assert self._cache is not None
        (text,) = told
        rows = self._cache.load(text)
        if rows is not None and _shapes(rows) == _shapes(self._example.rows):
            return self._encoded(rows, list(self._example.templates), 0)
        (entry,) = self._capture([told])
        self._cache.save(text, list(entry.rows))
        return entry

    def _capture(self, told: Sequence[Told]) -> list[_Encoded]:
        given = self.inputs.arguments(told) if len(told[0]) > 1 else None
        texts = [each[0] for each in told]
        calls = self._recorder.calls(texts, len(self._spec.calls), self._spec.blank, given)
        self.texts_encoded += len(texts)
        rows: list[dict[LeafPath, Any]] = []
        templates: list[dict[str, Any]] = []
        for spec, call in zip(self._spec.calls, calls, strict=True):
            rows += _branch_rows(spec, call.inputs)
            templates += [_template(spec, call.inputs)] * spec.branches
        return [self._encoded(rows, templates, i) for i in range(len(texts))]

    def _encoded(self, rows: list[dict[LeafPath, Any]], templates: list[dict[str, Any]], i: int) -> _Encoded:
        """Prompt ``i`` of a capture. The unconditional branch of every prompt is one object."""
        own = [{path: _row(value, i) for path, value in branch.items()} for branch in rows]
        size = sum(_bytes(value) for branch in own for value in branch.values())
        other = self._spec.guidance.unconditional
        if other is not None:
            known = self._interned.setdefault(other, own[other])
            if same(known, own[other]):
                own[other] = known
        return _Encoded(tuple(own), tuple(templates), size)

    def _branch(self, entries: list[_Encoded], branch: int) -> Branch:
        first = entries[0].rows[branch]
        constant = all(same(first[path], entry.rows[branch][path]) for entry in entries[1:] for path in first)
        kept = entries[:1] if constant else entries
        rows = {path: _concatenate([entry.rows[branch][path] for entry in kept]) for path in first}
        return Branch(rows, entries[0].templates[branch], constant)


def _branch_rows(spec: CallSpec, inputs: dict[str, Any]) -> list[dict[LeafPath, Any]]:
    """Batch-first prompt-dependent leaves of every branch of a call."""
    rows: list[dict[LeafPath, Any]] = [{} for _ in range(spec.branches)]
    for path, value in spec.layout.leaves(inputs):
        kind = spec.layout.batched.get(path)
        if kind is None or value is None:  # a mask is left out where no prompt of the batch is padded
            continue
        if path in spec.varying and not (path == spec.latent.path and spec.latent.axis is not None):
            continue
        for branch, part in zip(rows, split(value, kind, spec.branches), strict=True):
            if path == spec.latent.path:
                branch[REST] = spec.latent.constant(part)
            else:
                branch[path] = part
    return rows


def _template(spec: CallSpec, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs without what is filled in per row, so that no captured batch is kept alive."""
    blank = {path: None for path in {*spec.layout.batched, *spec.varying}}
    return spec.layout.build(inputs, blank)


def _row(value: Any, i: int) -> Any:
    return value[i : i + 1].clone() if isinstance(value, Tensor) else value[i : i + 1]


def _concatenate(rows: list[Any]) -> Any:
    return torch.cat(rows) if isinstance(rows[0], Tensor) else [item for row in rows for item in row]


def _shape(value: Any) -> Any:
    """What must agree for rows to share a tensor: the shape; entries of lists may differ in size."""
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _shapes(branches: Sequence[dict[LeafPath, Any]]) -> list[dict[LeafPath, Any]]:
    return [{path: _shape(value) for path, value in branch.items()} for branch in branches]


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(item) for item in value) if isinstance(value, (list, tuple)) else 0
