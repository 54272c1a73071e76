"""Images for given prompts, from a model or a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowrl.algorithms import build
from flowrl.config import Config
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation.layout import write_image
from flowrl.math.random import derive
from flowrl.models import load_policy
from flowrl.runtime.directory import RunDirectory
from flowrl.runtime.preflight import check_model
from flowrl.runtime.restore import evaluated, policy_of_run
from flowrl.samplers.flow import FlowSampler
from flowrl.types import Draw

STEPS = 28
"""Sampling steps of a model without a run; SD3's own default."""
ROWS = 8
"""Images made at once."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for; None is what the run does in its evaluation, or the model by itself."""

    count: int = 1
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    checkpoint: str = "best"
    weights: str | None = None
    device: str = "auto"


def sample_images(source: str, prompts: Sequence[str], out: Path, wish: Wish) -> list[Path]:
    """Write ``count`` images per prompt to ``out`` as ``00000-0000.png`` (prompt, image). Returns the files.

    An image follows from its seed, prompt number and image number alone. Raises `UserError` for an unknown source.
    """
    policy, sampler, weights = _open(source, wish)
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(row, index) for row in range(len(prompts)) for index in range(wish.count)]
    paths = []
    for start in range(0, len(jobs), ROWS):
        part = jobs[start : start + ROWS]
        seeds = torch.tensor([derive(wish.seed, "sample", row, index) for row, index in part])
        draw = Draw.of(seeds, torch.tensor([row for row, _ in part]), 0, wish.seed)
        with torch.no_grad(), policy.using(weights):
            rollout = sampler(policy, policy.condition([prompts[row] for row, _ in part]), draw)
            images = policy.decode(rollout.final)
        for (row, index), image in zip(part, images, strict=True):
            paths.append(out / f"{row:05d}-{index:04d}.png")
            write_image(paths[-1], image)
    return paths


def _open(source: str, wish: Wish) -> tuple[Any, FlowSampler, str]:
    run = RunDirectory(Path(source))
    if not run.exists():
        if (run.path / "manifest.json").is_file():
            raise UserError(f"{source} is a checkpoint; name its run, and --checkpoint {source}")
        check_model(source)
        policy = load_policy(source, device=wish.device)
        return policy, FlowSampler(steps=wish.steps or STEPS, guidance=wish.guidance), "live"
    config = Config.load(run.config_path)
    trained = build(config.algorithm).sampler
    assert isinstance(trained, FlowSampler)
    choices = (wish.guidance, config.eval.guidance, trained.guidance)
    guidance = next((value for value in choices if value is not None), None)
    sampler = FlowSampler(steps=wish.steps or config.eval.steps or trained.steps, guidance=guidance)
    return policy_of_run(run.path, wish.checkpoint), sampler, wish.weights or evaluated(config)


def prompts_of(words: Sequence[str]) -> list[str]:
    """The prompts of ``--prompt`` options: each is a text, or ``prompts:SPEC`` for those of a prompt set."""
    texts: list[str] = []
    for word in words:
        prefix, colon, spec = word.partition(":")
        texts += [p.text for p in load_prompts(spec).prompts] if colon and prefix == "prompts" else [word]
    return texts
