"""Evaluate a target on suites: images, then verdicts, then numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowrl.errors import UserError
from flowrl.evaluation.generate import Maker, fingerprint, generate
from flowrl.evaluation.judge import judge
from flowrl.evaluation.layout import Entry, image_size, write_text
from flowrl.evaluation.resolve import Wish, resolve
from flowrl.evaluation.results import SCHEMA, Judged, summarise
from flowrl.evaluation.statistics import RESAMPLES
from flowrl.evaluation.suites import Suite, find, tag_of
from flowrl.evaluation.target import Target
from flowrl.runtime.environment import versions
from flowrl.samplers.flow import FlowSampler
from flowrl.types import Prompt


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on besides its target."""

    samples: int
    limit: int | None
    seed: int


def evaluate(
    target: str,
    suites: Sequence[str],
    out: Path,
    *,
    checkpoint: str = "best",
    samples: int = 4,
    limit: int | None = None,
    seed: int = 42,
    steps: int | None = None,
    guidance: float | None = None,
    call: Mapping[str, Any] | None = None,
    base: bool = True,
) -> dict[str, Any]:
    """Judge ``target`` on ``suites`` and write ``out/results.json``; its content is returned (schema: ``results``).

    ``target`` is a model (folder, hub id, or the name of a world), a run directory, a LoRA folder, or images.
    A run is judged twice, ``base`` and ``tuned``, at equal prompts and seeds, with its config's steps and
    guidance unless given here. Run again to resume: images made with the same settings are kept, and verdicts
    follow from the files alone. ``limit`` takes that many prompts, evenly over tags. Raises UserError for what
    cannot be judged.
    """
    settings = Settings(samples, limit, seed)
    _check(settings, suites)
    out = Path(out)
    subject, sampler = resolve(target, Wish(checkpoint, steps, guidance, call, base))
    found = [find(name, subject) for name in dict.fromkeys(suites)]
    numbers = {}
    for suite in found:
        try:
            numbers[suite.name] = _suite(suite, subject, sampler, settings, out)
        finally:
            suite.close()
    results = {
        "schema": SCHEMA,
        "target": target,
        "kind": subject.kind,
        "suites": numbers,
        "manifest": _manifest(subject, sampler, settings),
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


def _check(settings: Settings, suites: Sequence[str]) -> None:
    if not suites:
        raise UserError("--suite: name at least one suite, such as geneval")
    if settings.samples < 1:
        raise UserError(f"--samples: needs at least 1 image per prompt, found {settings.samples}")
    if settings.limit is not None and settings.limit < 1:
        raise UserError(f"--limit: needs at least 1 prompt, found {settings.limit}")


def _suite(suite: Suite, target: Target, sampler: FlowSampler | None, settings: Settings, out: Path) -> dict[str, Any]:
    rows = choose(suite.prompts, settings.limit)
    prompts = [suite.prompts[row] for row in rows]
    arms: dict[str, Judged] = {}
    entries: list[Entry] = []
    for arm in target.arms:
        assert sampler is not None
        folder = out / arm.name / re.sub(r"[^\w.-]+", "-", suite.source)
        maker = Maker(arm.open, sampler, settings.seed, arm.identity, arm.weights)
        entries = generate(maker, suite.prompts, rows, settings.samples, folder)
        arms[arm.name] = judge(suite, entries, out / arm.name, out / arm.name / suite.name / "results.jsonl")
    if target.folder is not None:
        entries = [target.entries[row] for row in rows]
        arms["images"] = judge(suite, entries, target.folder, out / "images" / suite.name / "results.jsonl")
    tags = [tag_of(prompt) for prompt in prompts]
    width, height = image_size(entries[0].images[0])
    return {
        "title": suite.title,
        "version": suite.version,
        "source": suite.source,
        "primary": suite.primary,
        "partial": len(prompts) < suite.size,
        "prompts": len(prompts),
        "prompts_available": suite.size,
        "images_per_prompt": max((len(entry.images) for entry in target.entries), default=settings.samples),
        "resolution": f"{width}x{height}",
        "metadata_sha256": fingerprint(suite.prompts),
        **summarise(arms, tags, suite.tags, RESAMPLES, settings.seed),
    }


def _manifest(target: Target, sampler: FlowSampler | None, settings: Settings) -> dict[str, Any]:
    return {
        **asdict(settings),
        "arms": {arm.name: dict(arm.identity) for arm in target.arms},
        "steps": sampler.steps if sampler else None,
        "guidance": sampler.guidance if sampler else None,
        "solver": sampler.solver if sampler else None,
        "prompt_rewrite": False,
        "versions": versions(),
    }
