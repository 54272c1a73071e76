"""Images or completions for given prompts, from a model or a trained run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation.decoding import Decoding, check_varied, facts, make
from flowrl.evaluation.resolve import Wish as Asked
from flowrl.evaluation.resolve import resolve
from flowrl.math.random import derive
from flowrl.records.sample_files import write_image, write_text
from flowrl.runtime.display import Display
from flowrl.types import Draw, Prompt
from flowrl.version import __version__

ROWS = 8
"""Samples made at once."""
COMPLETIONS = "completions.jsonl"


@dataclass(frozen=True)
class Wish:
    """What the user asked for; None is what the run does in its evaluation, or the model by itself."""

    count: int = 1
    seed: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    checkpoint: str = "best"
    weights: str | None = None
    family: str | None = None
    device: str = "auto"
    model: str | None = None
    call: Mapping[str, Any] | None = None
    """Arguments of the pipeline's call, such as height."""


@dataclass(frozen=True)
class Written:
    """Samples on disk."""

    files: list[Path]
    completions: list[dict[str, Any]]
    """The lines of the file of completions; none for images."""


def sample(source: str, prompts: Sequence[str], out: Path, wish: Wish, shown: Display | None = None) -> Written:
    """Make ``count`` samples per prompt and write them to ``out``: images as ``00000-0000.png`` (prompt, image) whose
    text chunks hold ``prompt``, ``seed`` (of the wish), ``settings`` (JSON) and ``Software``; completions as lines of
    ``completions.jsonl`` with ``prompt``, ``completion``, ``seed`` and ``tokens``.

    A sample follows from its seed, prompt number and sample number alone. Raises `UserError` for an unknown source.
    """
    asked = Asked(
        wish.checkpoint,
        {"": wish.decoding},
        base=False,
        family=wish.family,
        device=wish.device,
        model=wish.model,
        call=wish.call,
    )
    shown = shown or Display(console=Console(quiet=True))
    target, samplers = resolve(source, asked)
    if not target.arms:
        raise UserError(f"{source} holds images; name a model or a run to make more")
    check_varied(samplers.values(), wish.count, "--count")
    arm = target.arms[-1]
    shown.stage(f"loading {source}")
    policy, weights = arm.open(), wish.weights or arm.weights
    out.mkdir(parents=True, exist_ok=True)
    asking = [Prompt(text, row) for row, text in enumerate(prompts)]
    jobs = [(prompt, index) for prompt in asking for index in range(wish.count)]
    files, lines = [], []
    settings = {**arm.identity, "weights": weights, "sampler": facts(samplers[""])}
    with shown.counting(f"making {len(jobs)} {target.medium}", len(jobs)) as advance:
        for start in range(0, len(jobs), ROWS):
            part = jobs[start : start + ROWS]
            seeds = [derive(wish.seed, "sample", prompt.id, index) for prompt, index in part]
            draw = Draw.of(torch.tensor(seeds), torch.tensor([prompt.id for prompt, _ in part]), 0, wish.seed)
            made = make(policy, samplers[""], weights, [prompt for prompt, _ in part], draw)
            advance(len(part))
            if made.samples.completions is not None:
                told = zip(part, made.samples.completions, seeds, made.tokens, strict=True)
                for (prompt, _), text, seed, tokens in told:
                    lines.append({"prompt": prompt.text, "completion": text, "seed": seed, "tokens": tokens})
                continue
            assert made.samples.images is not None
            for (prompt, index), image, seed in zip(part, made.samples.images, seeds, strict=True):
                files.append(out / f"{prompt.id:05d}-{index:04d}.png")
                here = {"prompt_number": prompt.id, "image_number": index, "stream": seed}
                said = {"prompt": prompt.text, "seed": str(wish.seed), "settings": {**settings, **here}}
                write_image(files[-1], image, {**said, "Software": f"flowrl {__version__}"})
    if lines:
        files.append(out / COMPLETIONS)
        write_text(files[-1], "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return Written(files, lines)


def prompts_of(words: Sequence[str]) -> list[str]:
    """The prompts of ``--prompt`` options: each is a text, or ``prompts:SPEC`` for those of a prompt set."""
    texts: list[str] = []
    for word in words:
        prefix, colon, spec = word.partition(":")
        texts += [p.text for p in load_prompts(spec).prompts] if colon and prefix == "prompts" else [word]
    return texts
