"""Evaluate a target on suites: samples, then verdicts, then numbers."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.errors import UserError, counted
from flowrl.evaluation.decoding import check_varied, deterministic, facts, grid
from flowrl.evaluation.generate import Maker, fingerprint, generate
from flowrl.evaluation.judge import judge
from flowrl.evaluation.resolve import Samplers, Wish, resolve
from flowrl.evaluation.results import SCHEMA, Judged, summarise
from flowrl.evaluation.statistics import RESAMPLES
from flowrl.evaluation.suites import Suite, find, tag_of
from flowrl.evaluation.target import Target
from flowrl.records.machine import versions
from flowrl.records.sample_files import Entry, image_size, write_text
from flowrl.runtime.display import Display
from flowrl.types import Prompt, Sampler

SAMPLES = 4
"""Per prompt, unless the user says so."""


@dataclass(frozen=True)
class Part:
    """One decoding of a grid; ``label`` is empty where there is only one."""

    label: str
    sampler: Sampler | None
    """None for images that exist."""
    samples: int
    """Per prompt."""

    def named(self, name: str) -> str:
        """``name``, or ``name@length=64,steps=32`` in a grid."""
        return f"{name}@{self.label}" if self.label else name


@dataclass(frozen=True)
class Case:
    """A suite at one decoding."""

    suite: Suite
    part: Part
    rows: Sequence[int]
    """Its prompts that are used."""

    @property
    def name(self) -> str:
        """Its key in the results."""
        return self.part.named(self.suite.name)

    def folder(self, arm: str) -> Path:
        """Where its samples lie; suites with the same prompts share them."""
        return Path(arm) / self.part.named(re.sub(r"[^\w.-]+", "-", self.suite.source))


def evaluate(
    target: str,
    suites: Sequence[str],
    out: Path,
    *,
    checkpoint: str = "best",
    samples: int | None = None,
    limit: int | None = None,
    seed: int = 42,
    steps: int | Sequence[int] | None = None,
    guidance: float | None = None,
    length: int | Sequence[int] | None = None,
    temperature: float | Sequence[float] | None = None,
    call: Mapping[str, Any] | None = None,
    base: bool = True,
    family: str | None = None,
    model: str | None = None,
    data: Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Judge ``target`` on ``suites`` and write ``out/results.json``; its content is returned (schema: ``results``).

    ``target`` is a model (folder, hub id, or the name of a world, with ``family`` if it has several), a run directory,
    a LoRA folder (on ``model`` where it does not name its own), or images. A run or LoRA is judged twice, ``base`` and
    ``tuned``, at equal prompts and seeds, a run with its
    config's held-out sampler unless given here; of several lengths (tokens), steps and temperatures every combination
    is judged. Run again to resume: samples made with the same settings are kept, and verdicts follow from the files
    alone. ``limit`` takes that many prompts, evenly over tags. ``samples`` per prompt are 4, of greedy decoding 1.
    ``data`` holds the problems of gsm8k or math500, or the prompts of a suite of images; ``options`` are settings by
    suite, such as ``{"geneval": {"detector": "weights/mask2former"}}``. Raises UserError for what cannot be judged.
    """
    _check(samples, limit, suites)
    out = Path(out)
    decodings = grid(steps=steps, guidance=guidance, length=length, temperature=temperature)
    subject, samplers = resolve(target, Wish(checkpoint, decodings, call, base, family, model=model))
    parts = _parts(samplers, samples)
    with ExitStack() as stack:
        shown = stack.enter_context(display or Display())
        shown.stage("loading what judges", log=False)
        found = find(suites, subject, data, options)
        for suite in found:
            stack.callback(suite.close)
        cases = [Case(suite, part, choose(suite.prompts, limit)) for suite in found for part in parts]
        made = _samples(cases, subject, seed, out, shown)
        numbers = {case.name: _numbers(case, subject, made[case.name], seed, out, shown) for case in cases}
    results = {
        "schema": SCHEMA,
        "target": target,
        "kind": subject.kind,
        "suites": numbers,
        "manifest": {"limit": limit, "seed": seed, **_manifest(subject, parts)},
    }
    write_text(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return results


def choose(prompts: Sequence[Prompt], limit: int | None) -> list[int]:
    """Rows to use: all, or ``limit`` of them dealt evenly over the tags and evenly spaced within each."""
    if limit is None or limit >= len(prompts):
        return list(range(len(prompts)))
    by_tag: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_tag.setdefault(tag_of(prompt), []).append(row)
    quota = dict.fromkeys(by_tag, 0)
    while sum(quota.values()) < limit:
        for tag, rows in by_tag.items():
            if quota[tag] < len(rows) and sum(quota.values()) < limit:
                quota[tag] += 1
    chosen = []
    for tag, rows in by_tag.items():
        chosen += [rows[index * len(rows) // quota[tag]] for index in range(quota[tag])]
    return sorted(chosen)


def _check(samples: int | None, limit: int | None, suites: Sequence[str]) -> None:
    if not suites:
        raise UserError("--suite: name at least one suite, such as geneval")
    if samples is not None and samples < 1:
        raise UserError(f"--samples: needs at least 1 sample per prompt, found {samples}")
    if limit is not None and limit < 1:
        raise UserError(f"--limit: needs at least 1 prompt, found {limit}")


def _parts(samplers: Samplers, samples: int | None) -> list[Part]:
    """Greedy decoding makes one sample. Raises UserError if several were asked for and would all be equal."""
    check_varied(samplers.values(), samples or 1, "--samples")
    parts = [
        Part(label, sampler, 1 if deterministic(sampler) else samples or SAMPLES) for label, sampler in samplers.items()
    ]
    return parts or [Part("", None, 0)]


def _samples(
    cases: Sequence[Case], target: Target, seed: int, out: Path, shown: Display
) -> dict[str, dict[str, list[Entry]]]:
    """The samples of every case and arm, made where they are missing; each arm is loaded at most once."""
    made: dict[str, dict[str, list[Entry]]] = {case.name: {} for case in cases}
    if target.folder is not None:
        return {case.name: {"images": [target.entries[row] for row in case.rows]} for case in cases}
    run = target.config if target.kind == "run" and target.medium == "completions" else None
    told = {"overlong": run.data.overlong, "prefill": run.eval.prefill} if run is not None else {}
    for arm in target.arms:
        load = functools.cache(arm.open)
        for case in cases:
            assert case.part.sampler is not None
            maker = Maker(load, case.part.sampler, seed, arm.identity, arm.weights, target.medium, **told)
            folder = out / case.folder(arm.name)
            made[case.name][arm.name] = generate(maker, case.suite.prompts, case.rows, case.part.samples, folder, shown)
    return made


def _numbers(
    case: Case, target: Target, made: Mapping[str, list[Entry]], seed: int, out: Path, shown: Display
) -> dict[str, Any]:
    suite, part = case.suite, case.part
    first = next(iter(made.values()))
    rows = case.rows if target.folder is not None else [entry.index for entry in first]  # some may be left out
    prompts = [suite.prompts[row] for row in rows]
    arms: dict[str, Judged] = {}
    for arm, entries in made.items():
        file, count = out / arm / case.name / "results.jsonl", sum(len(entry.files) for entry in entries)
        with shown.counting(f"judging {counted(count, target.medium)} ({arm}) by {case.name}", count) as advance:
            arms[arm] = judge(suite, entries, target.folder or out / arm, file, advance)
    return {
        "suite": suite.name,
        "decoding": part.label,
        "title": part.named(suite.title),
        "version": suite.version,
        "source": suite.source,
        "medium": target.medium,
        "sampling": facts(part.sampler) if part.sampler else {},
        "primary": suite.primary,
        "partial": len(prompts) < suite.size,
        "prompts": len(prompts),
        "prompts_available": suite.size,
        "samples_per_prompt": max((len(entry.files) for entry in target.entries), default=part.samples),
        **({"resolution": _resolution(first)} if target.medium == "images" else {}),
        "metadata_sha256": fingerprint(suite.prompts),
        **summarise(arms, [tag_of(prompt) for prompt in prompts], suite.tags, RESAMPLES, seed),
    }


def _resolution(entries: Sequence[Entry]) -> str:
    width, height = image_size(entries[0].files[0])
    return f"{width}x{height}"


def _manifest(target: Target, parts: Sequence[Part]) -> dict[str, Any]:
    return {
        **_sampling(parts),
        "arms": {arm.name: dict(arm.identity) for arm in target.arms},
        "prompt_rewrite": False,
        "versions": versions(),
    }


def _sampling(parts: Sequence[Part]) -> dict[str, Any]:
    """Every setting of the samplers; of one that differs between them, the list."""
    every = [{"samples": part.samples, **facts(part.sampler)} for part in parts if part.sampler]
    columns = {name: [found[name] for found in every] for name in (every[0] if every else {})}
    return {name: values[0] if len(set(values)) == 1 else values for name, values in columns.items()}
