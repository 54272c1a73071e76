"""How samples are made for an evaluation: the sampler of a run or of a bare model, what the user changes of it, and
grids of such changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flowrl.composition import build
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import Sampler

Number = TypeVar("Number", int, float)

STEPS = 28
"""Of a diffusion model without a run; SD3's own default."""
LENGTHS = {"masked": 128, "causal": 256, "control": 40}
"""Tokens of a completion, or decisions of an episode at most, of a model without a run or a world of ours."""
BLOCK = 32
"""Tokens of a block of a masked model without a run, where the completion is longer; LLaDA's for short answers."""
FACTS = ("length", "block", "steps", "order", "threshold", "solver", "guidance", "temperature")
DRAWN_ORDERS = ("random", "origin")


@dataclass(frozen=True)
class Decoding:
    """What the user asked of a sampler; None is as the target does it by itself."""

    steps: int | None = None
    guidance: float | None = None
    length: int | None = None
    temperature: float | None = None


def numbers(option: str, given: str | None, kind: type[Number]) -> list[Number] | None:
    """The numbers of an option such as ``64,128``; `UserError` for what is none, or too small."""
    if given is None:
        return None
    least = "1 or more" if kind is int else "0 or more"
    try:
        values = [kind(part) for part in given.split(",")]
    except ValueError:
        values = []
    if not values or any(not 0 <= value < float("inf") or (kind is int and value < 1) for value in values):
        raise UserError(f"{option}: give numbers of {least}, separated by commas, found {given!r}")
    return values


def grid(
    *,
    steps: int | Sequence[int] | None = None,
    guidance: float | None = None,
    length: int | Sequence[int] | None = None,
    temperature: float | Sequence[float] | None = None,
) -> dict[str, Decoding]:
    """Every combination by its label, such as ``length=64,steps=32``: the options with several values, so ``""`` where
    there is one combination."""
    axes = {"length": _values(length), "steps": _values(steps), "temperature": _values(temperature)}
    varied = [name for name, values in axes.items() if len(values) > 1]
    out = {}
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        label = ",".join(f"{name}={chosen[name]:g}" for name in varied)
        out[label] = Decoding(guidance=guidance, **chosen)
    return out


def sampler_of_run(config: Config, changes: Decoding) -> Sampler:
    """The sampler of the run's held-out evaluation, changed as asked. Raises UserError for an unfit changes."""
    own = Decoding(config.eval.sampling_steps, config.eval.guidance, temperature=config.eval.temperature)
    return sampler_of_algorithm(config.algorithm, own, changes)


def sampler_of_algorithm(
    algorithm: str | Mapping[str, Any], own: Decoding, changes: Decoding, *, trusted: bool = True
) -> Sampler:
    """The held-out form of an algorithm's sampler, with a run's own decoding, changed as asked. Not ``trusted`` runs
    no code that the algorithm names."""
    trained = build(algorithm, trusted=trusted).sampler
    heldout = trained.heldout(None, None, None)  # of a sampler of records, the one that makes samples
    return _changed(_changed(heldout, own), changes)


def sampler_of_model(family: str, length: int | None, changes: Decoding, world: str | None = None) -> Sampler:
    """The sampler of a model without a run; ``length`` is that of its world's completions or episodes.

    Diffusion: 28 steps, the model's own guidance. Language: greedy; autoregressive up to 256 tokens, masked 128 in
    blocks of 32, half as many steps as tokens, the most certain first. Control: episodes in its ``world``, by
    default avoid, 10 steps from noise. Raises UserError for an unfit changes.
    """
    if family == "diffusion":
        return _changed(FlowSampler(steps=STEPS), changes)
    length = length or LENGTHS[family]
    if family == "control":
        return _changed(EpisodeSampler(sampler=FlowSampler(), environment=world or "avoid", decisions=length), changes)
    if family == "causal":
        return _changed(CausalSampler(length=length, temperature=0.0), changes)
    sampler = MaskedSampler(
        length=length, steps=-(-length // 2), block=BLOCK if length > BLOCK else None, temperature=0
    )
    return _changed(sampler, changes)


def deterministic(sampler: Sampler) -> bool:
    """Whether all samples of a prompt are the same completion."""
    return getattr(sampler, "temperature", None) == 0 and getattr(sampler, "order", None) not in DRAWN_ORDERS


def check_varied(samplers: Iterable[Sampler], samples: int, option: str) -> None:
    """Raise UserError if several samples of a prompt are asked for (by ``option``) and all would be equal."""
    every = list(samplers)
    if samples > 1 and every and all(map(deterministic, every)):
        raise UserError(
            f"{option}: {samples} greedy completions of a prompt are all equal; give a --temperature above 0, such as "
            f"0.8, or {option} 1"
        )


def sampler_facts(sampler: Sampler) -> dict[str, Any]:
    """The settings of a sampler that a reader of results wants to know."""
    return {name: getattr(sampler, name) for name in FACTS if hasattr(sampler, name)}


def _changed(sampler: Sampler, changes: Decoding) -> Sampler:
    try:
        if changes.length is not None:
            sampler = _lengthened(sampler.heldout(None, None, None), changes.length)  # whose parts fit any length
        return sampler.heldout(changes.steps, changes.guidance, changes.temperature)
    except ValueError as error:
        raise UserError(f"sampling: {error}") from error


def _lengthened(sampler: Sampler, length: int) -> Sampler:
    """A masked model keeps its tokens per step: half the length in half the steps."""
    if isinstance(sampler, MaskedSampler):
        block = sampler.block if sampler.block is None else min(sampler.block, length)
        steps = max(round(sampler.steps * length / sampler.length), length // (block or length))
        return replace(sampler, length=length, steps=steps, block=block)
    if isinstance(sampler, CausalSampler):
        return replace(sampler, length=length)
    raise ValueError("image models have no length; remove it")


def _values(given: Number | Sequence[Number] | None) -> list[Number] | list[None]:
    if given is None:
        return [None]
    return list(dict.fromkeys(given)) if isinstance(given, Sequence) else [given]
