"""Images or completions for given prompts, from a model or a trained run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flowrl.data import PromptSet, load_prompts, with_pictures
from flowrl.errors import UserError, counted
from flowrl.evaluation.decoding import Decoding, check_varied, sampler_facts
from flowrl.evaluation.generation import Generated, generate
from flowrl.evaluation.targets import Request, find_target
from flowrl.math.random import derive
from flowrl.models.diffusion import DiffusionPolicy
from flowrl.records.sample_files import write_image, write_text
from flowrl.runtime.display import Display
from flowrl.types import Draw, Prompt
from flowrl.version import __version__

BATCH = 8
"""Samples made at once."""
COMPLETIONS = "completions.jsonl"


@dataclass(frozen=True)
class SampleOptions:
    """What the user asked for; None is what the run does in its evaluation, or the model by itself."""

    count: int = 1
    """Samples per prompt."""
    seed: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    checkpoint: str = "best"
    weights: str | None = None
    """Weight set, such as ``ema``."""
    family: str | None = None
    device: str = "auto"
    model: str | None = None
    """What a LoRA adapts, where it does not say."""
    call: Mapping[str, Any] | None = None
    """Arguments of the pipeline's call, such as height."""
    base: bool = False
    """Of a run or a LoRA: the model before training."""


@dataclass(frozen=True)
class Written:
    """Samples on disk."""

    files: list[Path]
    completions: list[dict[str, Any]]
    """The lines of the file of completions; none for images."""


@dataclass(frozen=True)
class _Job:
    """One sample to make."""

    prompt: Prompt
    number: int
    """Among the samples of its prompt."""
    seed: int


def sample(
    source: str, prompts: Sequence[str | PromptSet], out: Path, options: SampleOptions, display: Display | None = None
) -> Written:
    """Make ``count`` samples per prompt and write them to ``out``: images as ``00000-0000.png`` (prompt, image) whose
    text chunks hold ``prompt``, ``seed`` (of the options), ``settings`` (JSON) and ``Software``; completions as lines
    of ``completions.jsonl`` with ``prompt``, ``completion``, ``seed`` and ``tokens``.

    A sample follows from its seed, prompt number and sample number alone. A prompt set may have columns with pictures,
    where the model is told some (``model.inputs``). Raises `UserError` for an unknown source.
    """
    display = display or Display(console=Console(quiet=True))
    target, samplers = find_target(source, _request(options))
    if not target.variants:
        raise UserError(f"{source} holds images; name a model or a run to make more")
    check_varied(samplers.values(), options.count, "--count")
    variant, sampler = target.variants[0 if options.base else -1], samplers[""]
    display.stage(f"loading {source}")
    policy, weights = variant.open(), options.weights or variant.weights
    out.mkdir(parents=True, exist_ok=True)
    inputs = policy.encoder.inputs.columns if isinstance(policy, DiffusionPolicy) else {}
    jobs = _jobs([prompt for given in prompts for prompt in _prompts(given, inputs)], options)
    written = Written([], [])
    with display.counting(f"making {counted(len(jobs), target.medium)}", len(jobs)) as advance:
        for start in range(0, len(jobs), BATCH):
            part = jobs[start : start + BATCH]
            numbers = torch.tensor([job.prompt.id for job in part])
            keys, asked = torch.tensor([job.seed for job in part]), [job.prompt for job in part]
            made = generate(policy, sampler, weights, Draw.of(keys, numbers, 0, options.seed, asked))
            written.completions.extend(_lines(part, made))
            settings = {**variant.identity, "weights": weights, "sampler": sampler_facts(sampler)}
            written.files.extend(_write_images(part, made, out, options.seed, settings))
            advance(len(part))
    if written.completions:
        written.files.append(out / COMPLETIONS)
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in written.completions)
        write_text(written.files[-1], "".join(lines))
    return written


def prompts_of(words: Sequence[str]) -> list[str | PromptSet]:
    """The prompts of ``--prompt`` options: each is a text, or ``prompts:SPEC`` for a prompt set."""
    found: list[str | PromptSet] = []
    for word in words:
        prefix, colon, spec = word.partition(":")
        found.append(load_prompts(spec) if colon and prefix == "prompts" else word)
    return found


def _prompts(given: str | PromptSet, inputs: Mapping[str, str]) -> Sequence[Prompt]:
    """With the whole paths of the pictures that a pipeline is told (``inputs``). Raises `UserError`."""
    return [Prompt(given, 0)] if isinstance(given, str) else with_pictures(given, inputs.values(), "prompts").prompts


def _request(options: SampleOptions) -> Request:
    return Request(
        options.checkpoint,
        {"": options.decoding},
        base=options.base,
        family=options.family,
        device=options.device,
        model=options.model,
        call=options.call,
    )


def _jobs(prompts: Sequence[Prompt], options: SampleOptions) -> list[_Job]:
    return [
        _Job(Prompt(prompt.text, row, prompt.columns), number, derive(options.seed, "sample", row, number))
        for row, prompt in enumerate(prompts)
        for number in range(options.count)
    ]


def _lines(jobs: Sequence[_Job], made: Generated) -> Iterator[dict[str, Any]]:
    """The lines of completions; none for images."""
    texts = made.samples.completions
    for job, text, tokens in zip(jobs, texts, made.tokens, strict=True) if texts is not None else ():
        yield {"prompt": job.prompt.text, "completion": text, "seed": job.seed, "tokens": tokens}


def _write_images(
    jobs: Sequence[_Job], made: Generated, out: Path, seed: int, settings: Mapping[str, Any]
) -> Iterator[Path]:
    """The files of images, written; none for completions."""
    images = made.samples.images
    for job, image in zip(jobs, images, strict=True) if images is not None else ():
        path = out / f"{job.prompt.id:05d}-{job.number:04d}.png"
        place = {"prompt_number": job.prompt.id, "image_number": job.number, "stream": job.seed}
        chunks = {"prompt": job.prompt.text, "seed": str(seed), "settings": {**settings, **place}}
        write_image(path, image, {**chunks, "Software": f"flowrl {__version__}"})
        yield path
