"""First stage: the images of an evaluation, resumable file by file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import flowrl
from flowrl.errors import UserError
from flowrl.evaluation.layout import Entry, metadata_path, sample_path, write_image, write_text
from flowrl.math.random import derive
from flowrl.samplers.flow import FlowSampler
from flowrl.types import Draw, Prompt

BATCH_NUMBERS = 2**20  # latent numbers per batch: four images of 1024 px with 16 latent channels, on any GPU
BATCH_IMAGES = 64


@dataclass(frozen=True)
class Maker:
    """What makes the images of one arm; ``identity`` tells its images from another's."""

    open: Callable[[], Any]
    sampler: FlowSampler
    seed: int
    identity: Mapping[str, Any]
    weights: str = "live"

    def settings(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Everything an image depends on besides its prompt's number and its own."""
        return {
            **self.identity,
            "seed": self.seed,
            "sampler": repr(self.sampler),
            "prompts_sha256": fingerprint(prompts),
            "flowrl": flowrl.__version__,
        }


def generate(
    maker: Maker, prompts: Sequence[Prompt], chosen: Sequence[int], samples: int, folder: Path, progress: bool = True
) -> list[Entry]:
    """Make what is missing of ``samples`` images for each chosen prompt; return all of them.

    The noise of an image follows from ``(seed, prompt number, image number)``, so neither the batch nor the number of
    images changes it. A folder made with other settings is made again. Raises UserError for a folder we did not make.
    """
    _claim(folder, maker.settings(prompts))
    entries = []
    for index in chosen:
        metadata = {**prompts[index].columns, "prompt": prompts[index].text}
        path = metadata_path(folder, index)
        if not path.exists():
            write_text(path, json.dumps(metadata, ensure_ascii=False) + "\n")
        images = tuple(sample_path(folder, index, sample) for sample in range(samples))
        entries.append(Entry(index, metadata, images))
    jobs = [(entry, n) for entry in entries for n, path in enumerate(entry.images) if not path.exists()]
    if jobs:
        policy = maker.open()
        size = batch_size(policy.latent_shape)
        with _bar(progress) as bar:
            task = bar.add_task(f"images of {folder.parent.name}", total=len(jobs)) if bar else None
            for start in range(0, len(jobs), size):
                _make(maker, policy, jobs[start : start + size])
                if bar and task is not None:
                    bar.advance(task, min(size, len(jobs) - start))
    return entries


def batch_size(latent_shape: Sequence[int]) -> int:
    """Images at a time for a latent of this shape."""
    return max(1, min(BATCH_IMAGES, BATCH_NUMBERS // max(1, torch.Size(latent_shape).numel())))


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """sha256 of the prompt set as JSON lines, in its order."""
    lines = (json.dumps({**prompt.columns, "prompt": prompt.text}, sort_keys=True) + "\n" for prompt in prompts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _make(maker: Maker, policy: Any, jobs: Sequence[tuple[Entry, int]]) -> None:
    texts = [str(entry.metadata["prompt"]) for entry, _ in jobs]
    unique = list(dict.fromkeys(texts))
    rows = torch.tensor([unique.index(text) for text in texts])
    seeds = [derive(maker.seed, "evaluation", entry.index, sample) for entry, sample in jobs]
    draw = Draw.of(torch.tensor(seeds), torch.tensor([entry.index for entry, _ in jobs]), 0, maker.seed)
    with torch.no_grad(), policy.using(maker.weights):
        rollout = maker.sampler(policy, policy.condition(unique).take(rows), draw)
        images = policy.decode(rollout.final)
    if images.ndim != 4:
        raise UserError(f"the model makes videos ({images.shape[1]} frames), which no suite can judge yet")
    if not bool(torch.isfinite(images).all()):
        raise UserError(f"the model made non-finite images for {texts[0]!r}; try dtype float32 or fewer guidance")
    for (entry, sample), image in zip(jobs, images, strict=True):
        write_image(entry.images[sample], image)


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` ours for these settings: images made with others are removed, strangers' are not touched."""
    path = folder / "manifest.json"
    settings = json.loads(json.dumps(settings))  # what is read back has lists for tuples
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if old is None and any(folder.glob("[0-9]*/samples/*")):
        raise UserError(f"{folder} holds images without a manifest.json; choose another --out, or judge it as a folder")
    if old == settings:
        return
    for stale in [*folder.glob("[0-9]*/samples/[0-9]*.png"), *folder.glob("[0-9]*/metadata.jsonl")]:
        stale.unlink()
    write_text(path, json.dumps(settings, indent=1) + "\n")


def _bar(wanted: bool) -> AbstractContextManager[Progress | None]:
    return Progress(transient=True) if wanted else nullcontext()
