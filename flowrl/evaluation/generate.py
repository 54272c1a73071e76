"""First stage: the samples of an evaluation, resumable file by file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flowrl.errors import UserError, counted
from flowrl.evaluation.decoding import Made, make
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
    write_text,
)
from flowrl.runtime.display import Display
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import Draw, Prompt, Sampler
from flowrl.version import __version__

BATCH_NUMBERS = 2**20  # latent numbers per batch: four images of 1024 px with 16 latent channels, on any GPU
BATCH_IMAGES = 64
BATCH_LOGITS = 2**28  # logits per batch, 1 GiB: 16 completions of 128 tokens from a vocabulary of 128k
BATCH_COMPLETIONS = 256


@dataclass(frozen=True)
class Maker:
    """What makes the samples of one arm; ``identity`` tells its samples from another's."""

    open: Callable[[], Any]
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

    def settings(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Everything a sample depends on besides its prompt's number and its own."""
        return {
            **self.identity,
            "seed": self.seed,
            "sampler": repr(self.sampler),
            "prompts_sha256": fingerprint(prompts),
            "flowrl": __version__,
            **{
                name: value for name in ("overlong", "prefill") if (value := getattr(self, name)) not in (None, "error")
            },
        }

    @property
    def suffix(self) -> str:
        """Of the files it makes."""
        return IMAGE if self.medium == "images" else COMPLETION


def generate(
    maker: Maker,
    prompts: Sequence[Prompt],
    chosen: Sequence[int],
    samples: int,
    folder: Path,
    progress: Display | bool = True,
) -> list[Entry]:
    """Make what is missing of ``samples`` samples for each chosen prompt; return all of them. ``progress`` shows how
    far it is; True shows it by itself.

    The noise of a sample follows from ``(seed, prompt number, sample number)``, so neither the batch nor the number
    of samples changes it. A folder made with other settings is made again. Prompts that the maker leaves out
    (``overlong``) have no entry. Raises UserError for a folder we did not make, and for prompts that do not fit.
    """
    _claim(folder, maker.settings(prompts))
    entries = [_entry(maker, prompts[index], index, samples, folder) for index in chosen]
    if all(path.exists() for entry in entries for path in entry.files):
        return entries
    with _shown(progress) as shown, ExitStack() as stack:
        shown.stage(f"loading the {folder.parent.name} model")
        policy = maker.open()
        if maker.prefill is not None:
            stack.enter_context(policy.beginning(maker.prefill))
        asked = _fitting(maker, policy, {entry.index: prompts[entry.index] for entry in entries})
        changed = sum(asked.get(entry.index) != prompts[entry.index] for entry in entries)
        if changed:
            done = "left out" if maker.overlong == "drop" else "shortened"
            shown.note(f"{changed} of {len(entries)} prompts are too long and were {done} (data.overlong)")
        entries = [entry for entry in entries if entry.index in asked]
        jobs = [(entry, n) for entry in entries for n, path in enumerate(entry.files) if not path.exists()]
        size = batch_size(policy, maker.sampler)
        with shown.counting(f"making {counted(len(jobs), maker.medium)} ({folder.parent.name})", len(jobs)) as advance:
            for start in range(0, len(jobs), size):
                part = jobs[start : start + size]
                for entry, _ in part:
                    _describe(entry, metadata_path(folder, entry.index))
                made = _make(maker, policy, asked, part)
                _write(made, [entry.files[n] for entry, n in part], [_facts(maker, *job) for job in part])
                advance(len(part))
    return entries


def _entry(maker: Maker, prompt: Prompt, index: int, samples: int, folder: Path) -> Entry:
    files = tuple(sample_path(folder, index, sample, maker.suffix) for sample in range(samples))
    return Entry(index, {**prompt.columns, "prompt": prompt.text}, files)


def _describe(entry: Entry, path: Path) -> None:
    if not path.exists():
        write_text(path, json.dumps(entry.metadata, ensure_ascii=False) + "\n")


def _fitting(maker: Maker, policy: Any, asked: Mapping[int, Prompt]) -> dict[int, Prompt]:
    """By number, the prompts that leave room for a completion, as ``maker.overlong`` says."""
    if maker.overlong is None or not isinstance(maker.sampler, MaskedSampler | CausalSampler):
        return dict(asked)
    numbered = [replace(prompt, id=index) for index, prompt in asked.items()]
    found = policy.fit(numbered, maker.sampler.length, maker.overlong)
    return {prompt.id: replace(prompt, id=asked[prompt.id].id) for prompt in found}


def batch_size(policy: Any, sampler: Sampler) -> int:
    """Samples at a time for a policy."""
    if isinstance(sampler, MaskedSampler | CausalSampler):
        return max(1, min(BATCH_COMPLETIONS, BATCH_LOGITS // (sampler.length * policy.vocabulary)))
    return max(1, min(BATCH_IMAGES, BATCH_NUMBERS // max(1, torch.Size(policy.latent_shape).numel())))


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """sha256 of the prompt set as JSON lines, in its order."""
    lines = (json.dumps({**prompt.columns, "prompt": prompt.text}, sort_keys=True) + "\n" for prompt in prompts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _make(maker: Maker, policy: Any, prompts: Mapping[int, Prompt], jobs: Sequence[tuple[Entry, int]]) -> Made:
    seeds = [derive(maker.seed, "evaluation", entry.index, sample) for entry, sample in jobs]
    numbers = [entry.index for entry, _ in jobs]
    asked = [prompts[number] for number in numbers]
    draw = Draw.of(torch.tensor(seeds), torch.tensor(numbers), 0, maker.seed, asked)
    return make(policy, maker.sampler, maker.weights, draw)


def _facts(maker: Maker, entry: Entry, sample: int) -> dict[str, Any]:
    """What a picture says of itself."""
    settings = {**maker.identity, "weights": maker.weights, "sampler": repr(maker.sampler), "sample": sample}
    software = f"flowrl {__version__}"
    return {"prompt": entry.metadata["prompt"], "seed": str(maker.seed), "settings": settings, "Software": software}


def _write(made: Made, paths: Sequence[Path], facts: Sequence[Mapping[str, Any]]) -> None:
    if made.samples.completions is not None:
        for path, completion, tokens in zip(paths, made.samples.completions, made.tokens, strict=True):
            write_completion(path, completion, tokens)
        return
    images, prompt = made.samples.images, made.samples.prompts[0].text
    assert images is not None
    if images.ndim != 4:
        raise UserError(f"the model makes videos ({images.shape[1]} frames), which no suite can judge yet")
    if not bool(torch.isfinite(images).all()):
        raise UserError(f"the model made non-finite images for {prompt!r}; try dtype float32 or fewer guidance")
    for path, image, said in zip(paths, images, facts, strict=True):
        write_image(path, image, said)


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` ours for these settings: samples made with others are removed, strangers' are not touched."""
    manifest = folder / "manifest.json"
    settings = json.loads(json.dumps(settings))  # what is read back has lists for tuples
    old = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else None
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


def _shown(progress: Display | bool) -> Display:
    """Where progress is shown; nowhere for False."""
    if isinstance(progress, Display):
        return progress
    return Display() if progress else Display(console=Console(quiet=True))
