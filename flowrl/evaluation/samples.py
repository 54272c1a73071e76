"""First stage of an evaluation: its samples on disk, resumable file by file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.console import Console

from flowrl.errors import UserError, counted
from flowrl.evaluation.generation import Generated, batch_size, generate
from flowrl.evaluation.target import Medium, Overlong
from flowrl.math.random import derive
from flowrl.records.sample_files import (
    COMPLETION,
    IMAGE,
    Entry,
    metadata_path,
    sample_path,
    write_completion,
    write_image,
    write_overviews,
    write_text,
)
from flowrl.runtime.display import Display
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import Draw, Policy, Prompt, Sampler
from flowrl.version import __version__

if TYPE_CHECKING:  # transformers: only when samples have to be made
    from flowrl.models.text.policy import TextPolicy

MANIFEST = "manifest.json"
Job = tuple[Entry, int]
"""A sample to make: its prompt, and its number among those of the prompt."""


@dataclass(frozen=True)
class SampleSource:
    """What makes the samples of one variant; ``identity`` tells its samples from another's."""

    open: Callable[[], Policy]
    """Loads the policy; called only when samples are missing."""
    sampler: Sampler
    seed: int
    identity: Mapping[str, Any]
    weights: str = "live"
    medium: Medium = "images"
    overlong: Overlong | None = None
    """What is done with prompts that leave no room for a completion: a run's ``data.overlong``. None: they are refused
    when their turn comes."""
    prefill: str | None = None
    """How every answer begins: a run's ``eval.prefill``. None: as the policy has it."""
    noise_by_words: bool = False
    """The noise of a sample follows from its prompt's words instead of the prompt's number, so a part or another order
    of the prompts is made of the same noise."""

    def settings(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Everything a sample depends on besides its prompt's number and its own."""
        settings = {
            **self.identity,
            "seed": self.seed,
            "sampler": repr(self.sampler),
            "prompts_sha256": prompts_digest(prompts),
            "flowrl": __version__,
        }
        if self.overlong not in (None, "error"):
            settings["overlong"] = self.overlong
        if self.prefill is not None:
            settings["prefill"] = self.prefill
        if self.noise_by_words:
            settings["noise"] = "by the prompt's words"
        return settings

    @property
    def suffix(self) -> str:
        """Of the files it makes."""
        return IMAGE if self.medium == "images" else COMPLETION


def complete_samples(
    source: SampleSource,
    prompts: Sequence[Prompt],
    chosen: Sequence[int],
    samples: int,
    folder: Path,
    display: Display | None = None,
) -> list[Entry]:
    """Make what is missing of ``samples`` samples for each chosen prompt; return all of them.

    The noise of a sample follows from ``(seed, prompt number or words, sample number)``, so neither the batch nor the
    number of samples changes it. A folder made with other settings is made again. Prompts that the source leaves out
    (``overlong``) have no entry. Raises UserError for a folder we did not make, and for prompts that do not fit.
    """
    _claim(folder, source.settings(prompts))
    entries = [_entry(source, prompts[index], index, samples, folder) for index in chosen]
    if all(path.exists() for entry in entries for path in entry.files):
        return entries
    with display or Display(console=Console(quiet=True)) as display, ExitStack() as stack:
        policy = source.open()
        if source.prefill is not None:
            stack.enter_context(cast("TextPolicy", policy).prefilled(source.prefill))
        fitting = _fitting(source, policy, {entry.index: prompts[entry.index] for entry in entries})
        changed = sum(fitting.get(entry.index) != prompts[entry.index] for entry in entries)
        if changed:
            done = "left out" if source.overlong == "drop" else "shortened"
            display.note(f"{changed} of {len(entries)} prompts are too long and were {done} (data.overlong)")
        entries = [entry for entry in entries if entry.index in fitting]
        _make_missing(source, policy, fitting, entries, folder, display)
    return entries


def _make_missing(
    source: SampleSource,
    policy: Policy,
    prompts: Mapping[int, Prompt],
    entries: Sequence[Entry],
    folder: Path,
    display: Display,
) -> None:
    jobs = [(entry, number) for entry in entries for number, path in enumerate(entry.files) if not path.exists()]
    size = batch_size(policy, source.sampler)
    label = f"making {counted(len(jobs), source.medium)} ({folder.parent.name})"
    with display.counting(label, len(jobs)) as advance:
        for start in range(0, len(jobs), size):
            part = jobs[start : start + size]
            for entry, _ in part:
                _describe(entry, metadata_path(folder, entry.index))
            first = part[0] == (entries[0], 0)
            made = _generate(source, policy, prompts, part, draws=first)
            if made.drawn is not None:
                write_overviews(folder, made.drawn.together, made.drawn.moving)
            _write(made, [entry.files[number] for entry, number in part], [_chunks(source, *job) for job in part])
            advance(len(part))


def _entry(source: SampleSource, prompt: Prompt, index: int, samples: int, folder: Path) -> Entry:
    files = tuple(sample_path(folder, index, sample, source.suffix) for sample in range(samples))
    return Entry(index, {**prompt.columns, "prompt": prompt.text}, files)


def _describe(entry: Entry, path: Path) -> None:
    if not path.exists():
        write_text(path, json.dumps(entry.metadata, ensure_ascii=False) + "\n")


def _fitting(source: SampleSource, policy: Policy, prompts: Mapping[int, Prompt]) -> dict[int, Prompt]:
    """By number, the prompts that leave room for a completion, as ``source.overlong`` says."""
    if source.overlong is None or not isinstance(source.sampler, MaskedSampler | CausalSampler):
        return dict(prompts)
    numbered = [replace(prompt, id=index) for index, prompt in prompts.items()]
    found = cast("TextPolicy", policy).fit_prompts(numbered, source.sampler.length, source.overlong)
    return {prompt.id: replace(prompt, id=prompts[prompt.id].id) for prompt in found}


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """sha256 of the prompt set as JSON lines, in its order."""
    lines = (json.dumps({**prompt.columns, "prompt": prompt.text}, sort_keys=True) + "\n" for prompt in prompts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _generate(
    source: SampleSource, policy: Policy, prompts: Mapping[int, Prompt], jobs: Sequence[Job], draws: bool
) -> Generated:
    keys = [prompts[entry.index].text if source.noise_by_words else entry.index for entry, _ in jobs]
    seeds = [derive(source.seed, "evaluation", key, sample) for key, (_, sample) in zip(keys, jobs, strict=True)]
    numbers = [entry.index for entry, _ in jobs]
    asked = [prompts[number] for number in numbers]
    draw = Draw.of(torch.tensor(seeds), torch.tensor(numbers), 0, source.seed, asked)
    return generate(policy, source.sampler, source.weights, draw, draws=draws)


def _chunks(source: SampleSource, entry: Entry, sample: int) -> dict[str, Any]:
    """What a picture says of itself."""
    settings = {**source.identity, "weights": source.weights, "sampler": repr(source.sampler), "sample": sample}
    software = f"flowrl {__version__}"
    return {"prompt": entry.metadata["prompt"], "seed": str(source.seed), "settings": settings, "Software": software}


def _write(made: Generated, paths: Sequence[Path], chunks: Sequence[Mapping[str, Any]]) -> None:
    if made.samples.completions is not None:
        for path, completion, tokens in zip(paths, made.samples.completions, made.tokens, strict=True):
            write_completion(path, completion, tokens)
        return
    images, prompt = made.samples.images, made.samples.prompts[0].text
    assert images is not None
    if images.ndim != 4:
        raise UserError(f"the model makes videos ({images.shape[1]} frames), which no suite can judge yet")
    if not bool(torch.isfinite(images).all()):
        raise UserError(f"the model made non-finite images for {prompt!r}; try dtype float32 or less guidance")
    for path, image, facts in zip(paths, images, chunks, strict=True):
        write_image(path, image, facts)


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` ours for these settings: samples made with others are removed, others are not touched."""
    manifest = folder / MANIFEST
    settings = json.loads(json.dumps(settings))  # what is read back has lists for tuples
    old = _read_manifest(manifest) if manifest.is_file() else None
    if old is None and any(folder.glob("[0-9]*/samples/*")):
        raise UserError(
            f"{folder} holds samples without a manifest.json; choose another --out, or judge it as a folder"
        )
    if old == settings:
        return
    stale = [path for suffix in (IMAGE, COMPLETION) for path in folder.glob(f"[0-9]*/samples/[0-9]*{suffix}")]
    for path in [*stale, *folder.glob("[0-9]*/metadata.jsonl")]:
        path.unlink()
    write_text(manifest, json.dumps(settings, indent=1) + "\n")


def _read_manifest(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove {path.parent}, whose samples are then made again"
        ) from error
