"""Evaluate a target on suites: samples, then scores, then numbers."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.errors import UserError, counted
from flowrl.evaluation.agreement import OFFICIAL, agreement
from flowrl.evaluation.decoding import Decoding, check_varied, deterministic, grid, sampler_facts
from flowrl.evaluation.features import FeatureSpace, distances, open_space, with_diversity
from flowrl.evaluation.protocol import check_alone, departures, filled, find_protocol
from flowrl.evaluation.results import SCHEMA, VariantScores, summarise
from flowrl.evaluation.samples import SampleSource, complete_samples, prompts_digest
from flowrl.evaluation.scoring import score_samples
from flowrl.evaluation.self_test import check_judges
from flowrl.evaluation.statistics import RESAMPLES, Floats
from flowrl.evaluation.suite import Collective, Suite, Weighted, prompt_tag
from flowrl.evaluation.suites import entries, find
from flowrl.evaluation.target import Target, Variant
from flowrl.evaluation.targets import Request, Samplers, find_target
from flowrl.records.machine import versions
from flowrl.records.sample_files import TOGETHER, Entry, image_size, write_beside, write_text
from flowrl.runtime.display import Display
from flowrl.types import Policy, Prompt, Sampler

SAMPLES = 4
"""Per prompt, unless the user says so."""


@dataclass(frozen=True)
class GridPoint:
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
class Job:
    """What all stages of an evaluation need."""

    target: Target
    out: Path
    seed: int
    display: Display
    space: FeatureSpace | None
    """Where diversity and distances are measured."""
    tests: Mapping[str, Mapping[str, Any]]
    """The self-tests by suite."""


@dataclass(frozen=True)
class Case:
    """A suite at one decoding."""

    suite: Suite
    point: GridPoint
    rows: Sequence[int]
    """Its prompts that are used."""

    @property
    def name(self) -> str:
        """Its key in the results."""
        return self.point.named(self.suite.name)

    def folder(self, variant: str) -> Path:
        """Where its samples lie; suites with the same prompts share them."""
        return Path(variant) / self.point.named(re.sub(r"[^\w.-]+", "-", self.suite.source))


def evaluate(
    target: str | os.PathLike[str],
    suites: str | Sequence[str],
    out: str | Path,
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
    self_test: bool = False,
    features: str | None = None,
    reference: Path | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Evaluate ``target`` on ``suites`` and write ``out/results.json``; its content is returned (schema: ``results``).

    >>> results = flowrl.evaluate(run, "geneval", run.path / "eval", limit=20)  # of a run: base and tuned
    >>> results["suites"]["geneval"]["arms"]["tuned"]["measures"]["correct"]["samples"]["value"]

    ``target`` is a model (folder, hub id, or the name of a world, with ``family`` if it has several), a run directory,
    a LoRA folder (on ``model`` where it does not name its own), or images. A run or LoRA is evaluated twice, ``base``
    and ``tuned``, at equal prompts and seeds, a run with its config's held-out sampler unless given here or by the
    suite's protocol; of several lengths (tokens), steps and temperatures every combination is evaluated. Run again to
    resume: samples made with the same settings are kept, and scores follow from the files alone. ``limit`` takes that
    many prompts, evenly over tags. ``samples`` per prompt are 4, of greedy decoding 1, of episodes 256 together, also
    from z = 0 where no temperature is asked for. ``data`` holds the problems of gsm8k or math500, or the prompts of a
    suite of images; ``options`` are settings by suite, such as ``{"geneval": {"detector": "weights/mask2former"}}``.
    ``self_test`` repeats the self-test of what judges, otherwise run once. ``features`` (a CLIP or DINO) and
    ``reference`` (a folder of images) add diversity and distances. Raises UserError for what cannot be evaluated.
    """
    target, suites, out = os.fspath(target), [suites] if isinstance(suites, str) else suites, Path(out)
    _check(samples, limit, suites)
    protocol = find_protocol(suites)
    steps, guidance, samples = filled(protocol, steps, guidance, samples)
    decodings = _beside(suites, grid(steps=steps, guidance=guidance, length=length, temperature=temperature))
    request = Request(checkpoint, decodings, call, protocol.size if protocol else None, base, family, model=model)
    subject, samplers = find_target(target, request)
    check_varied(samplers.values(), samples or 1, "--samples")
    with ExitStack() as stack:
        shown = stack.enter_context(display or Display())
        shown.stage("loading what judges", log=False)
        check_alone(suites, subject)
        found = find(suites, subject, data, options)
        for suite in found:
            stack.callback(suite.close)
        tests = check_judges(found, self_test, shown)
        job = Job(subject, out, seed, shown, open_space(features, reference, subject), tests)
        cases = [_case(suite, point, limit, samples) for suite in found for point in _points(samplers, samples)]
        entries = _entries(cases, job)
    return _write(job, target, entries, {"limit": limit, "seed": seed, **_manifest(subject, cases)})


def _beside(suites: Sequence[str], decodings: Mapping[str, Decoding]) -> dict[str, Decoding]:
    """With the temperatures that the suites, where all of them do, ask for beside a decoding without any."""
    own, *others = decodings.values()
    asked = [dict(entries()[name].beside) if name in entries() else {} for name in suites]
    if others or own.temperature is not None or any(each != asked[0] for each in asked):
        return dict(decodings)
    return {**decodings, **{label: replace(own, temperature=value) for label, value in asked[0].items()}}


def _case(suite: Suite, point: GridPoint, limit: int | None, samples: int | None) -> Case:
    """With as many samples per prompt as the suite asks for altogether, where the user asks for no number."""
    rows = choose_prompts(suite.prompts, limit)
    if samples is None and point.samples > 1:
        point = replace(point, samples=max(point.samples, -(-entries()[suite.name].least // max(len(rows), 1))))
    return Case(suite, point, rows)


def _entries(cases: Sequence[Case], job: Job) -> dict[str, dict[str, Any]]:
    made = _make_samples(cases, job)
    for case in cases:
        drawn = [job.out / case.folder(variant.name) / TOGETHER for variant in job.target.variants]
        write_beside(job.out / f"{case.name}.png", drawn)
    return {case.name: _results(case, job, made[case.name]) for case in cases}


def _write(job: Job, target: str, entries: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``results.json``; its content is returned."""
    results = {
        "schema": SCHEMA,
        "target": target,
        "kind": job.target.kind,
        "suites": entries,
        "manifest": manifest,
    }
    write_text(job.out / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return results


def choose_prompts(prompts: Sequence[Prompt], limit: int | None) -> list[int]:
    """Rows to use: all, or ``limit`` of them dealt evenly over the tags and evenly spaced within each."""
    if limit is None or limit >= len(prompts):
        return list(range(len(prompts)))
    by_tag: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_tag.setdefault(prompt_tag(prompt), []).append(row)
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


def _points(samplers: Samplers, samples: int | None) -> list[GridPoint]:
    """Greedy decoding makes one sample, and an equal sampler none of its own."""
    every = list(samplers.values())
    samplers = {label: each for i, (label, each) in enumerate(samplers.items()) if each not in every[:i]}
    points = [
        GridPoint(label, sampler, 1 if deterministic(sampler) else samples or SAMPLES)
        for label, sampler in samplers.items()
    ]
    return points or [GridPoint("", None, 0)]


def _make_samples(cases: Sequence[Case], job: Job) -> dict[str, dict[str, list[Entry]]]:
    """The samples of every case and variant, made where they are missing; each variant is loaded at most once."""
    target, display = job.target, job.display
    if target.folder is not None:
        return {case.name: {"images": [target.entries[row] for row in case.rows]} for case in cases}
    made: dict[str, dict[str, list[Entry]]] = {case.name: {} for case in cases}
    for variant in target.variants:
        variant = replace(variant, open=functools.cache(functools.partial(_load, variant, display)))
        for case in cases:
            source, folder = _source(target, variant, case, job.seed), job.out / case.folder(variant.name)
            made[case.name][variant.name] = complete_samples(
                source, case.suite.prompts, case.rows, case.point.samples, folder, display
            )
    return made


def _load(variant: Variant, display: Display) -> Policy:
    display.stage("loading the model" if variant.name == "model" else f"loading the {variant.name} model")
    return variant.open()


def _source(target: Target, variant: Variant, case: Case, seed: int) -> SampleSource:
    sampler = case.point.sampler
    assert sampler is not None
    by_words = entries()[case.suite.name].protocol is not None
    source = SampleSource(
        variant.open, sampler, seed, variant.identity, variant.weights, target.medium, noise_by_words=by_words
    )
    if target.kind != "run" or target.medium != "completions" or target.config is None:
        return source
    return replace(source, overlong=target.config.data.overlong, prefill=target.config.eval.prefill)


def _results(case: Case, job: Job, made: Mapping[str, list[Entry]]) -> dict[str, Any]:
    """A case's entry in ``results.json``, from its samples by variant."""
    suite, point, target = case.suite, case.point, job.target
    first = next(iter(made.values()))
    rows = case.rows if target.folder is not None else [entry.index for entry in first]  # some may be left out
    prompts = [suite.prompts[row] for row in rows]
    tags, weights = [prompt_tag(prompt) for prompt in prompts], _weights(suite, prompts)
    samples = max((len(entry.files) for entry in target.entries), default=point.samples)
    scores = {name: _scores(case, job, name, entries) for name, entries in made.items()}
    if isinstance(suite, Collective):
        scores = {name: replace(each, measures=suite.conclude(each.measures)) for name, each in scores.items()}
    seen = {name: job.space.of(entries) for name, entries in made.items()} if job.space else {}
    scores = {name: with_diversity(each, seen[name]) if seen else each for name, each in scores.items()}
    return {
        "suite": suite.name,
        "decoding": point.label,
        "title": point.named(suite.title),
        "version": suite.version,
        "source": suite.source,
        "medium": target.medium,
        "sampling": sampler_facts(point.sampler) if point.sampler else {},
        "primary": suite.primary,
        **({"independent": True} if entries()[suite.name].independent else {}),
        "partial": len(prompts) < suite.size,
        "prompts": len(prompts),
        "prompts_available": suite.size,
        "samples_per_prompt": samples,
        **({"resolution": _resolution(first)} if target.medium == "images" else {}),
        **_protocol(case, samples, first),
        **({"self_test": job.tests[suite.name]} if suite.name in job.tests else {}),
        **({"distances": distances(job.space, seen)} if job.space else {}),
        **_agreement(scores, tags),
        "metadata_sha256": prompts_digest(suite.prompts),
        **summarise(scores, tags, suite.tags, RESAMPLES, job.seed, weights),
    }


def _protocol(case: Case, samples: int, made: Sequence[Entry]) -> dict[str, Any]:
    """What the benchmark says of how samples are made, and what was not so."""
    protocol = entries()[case.suite.name].protocol
    if protocol is None:
        return {}
    sampling = sampler_facts(case.point.sampler) if case.point.sampler else {}
    return {"protocol": asdict(protocol), "departures": departures(protocol, sampling, samples, _resolution(made))}


def _agreement(scores: Mapping[str, VariantScores], tags: Sequence[str]) -> dict[str, Any]:
    """Of our verdicts with those of the official tool, where the suite was given some."""
    measures = next(iter(scores.values())).measures
    return {"agreement": agreement(measures["correct"], measures[OFFICIAL], tags)} if OFFICIAL in measures else {}


def _weights(suite: Suite, prompts: Sequence[Prompt]) -> dict[str, Floats]:
    """[P] by measure, where a suite's prompts count differently."""
    rows = [suite.weights(prompt) for prompt in prompts] if isinstance(suite, Weighted) else []
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _scores(case: Case, job: Job, variant: str, entries: Sequence[Entry]) -> VariantScores:
    target, display = job.target, job.display
    file, count = job.out / variant / case.name / "results.jsonl", sum(len(entry.files) for entry in entries)
    with display.counting(f"judging {counted(count, target.medium)} ({variant}) by {case.name}", count) as advance:
        return score_samples(case.suite, entries, target.folder or job.out / variant, file, advance)


def _resolution(entries: Sequence[Entry]) -> str:
    width, height = image_size(entries[0].files[0])
    return f"{width}x{height}"


def _manifest(target: Target, cases: Sequence[Case]) -> dict[str, Any]:
    every = [case.point for case in cases]
    points = [point for i, point in enumerate(every) if point not in every[:i]]
    return {
        **_sampling(points),
        "arms": {variant.name: dict(variant.identity) for variant in target.variants},
        "prompt_rewrite": False,
        "versions": versions(),
    }


def _sampling(points: Sequence[GridPoint]) -> dict[str, Any]:
    """Every setting of the samplers; of one that differs between them, the list."""
    settings = [{"samples": point.samples, **sampler_facts(point.sampler)} for point in points if point.sampler]
    columns = {name: [each[name] for each in settings] for name in (settings[0] if settings else {})}
    return {name: values[0] if len(set(values)) == 1 else values for name, values in columns.items()}
