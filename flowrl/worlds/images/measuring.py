"""What a pipeline knows of its world."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline as Pipeline
from torch import Tensor

from flowrl.worlds.images import CALL
from flowrl.worlds.images.scenes import Metadata

Report = Callable[[Tensor, Sequence[Metadata]], dict[str, float]]


@torch.no_grad()
def sample(
    pipe: Any, rows: Sequence[Metadata], seed: int, guidance: float = 1.0, steps: int = 10, batch: int = 96
) -> Tensor:
    """One image per row [N, 3, H, W] by the pipeline's own call."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    images = []
    for i in range(0, len(rows), batch):
        texts = [row["prompt"] for row in rows[i : i + batch]]
        images.append(
            pipe(
                texts,
                num_inference_steps=steps,
                generator=generator,
                output_type="pt",
                **(CALL | {"guidance_scale": guidance}),
            ).images
        )
    return torch.cat(images)


def scores_by_tag(strict: Tensor, graded: Tensor, rows: Sequence[Metadata]) -> dict[str, float]:
    """Strict and graded means per tag and over tags, and the share of prompts that any of their images satisfies
    (`rows` may repeat a prompt)."""
    values: dict[str, list[float]] = defaultdict(list)
    solved: dict[tuple[str, str], float] = defaultdict(float)
    for right, close, row in zip(strict.tolist(), graded.tolist(), rows, strict=True):
        values[row["tag"]].append(right)
        values[f"{row['tag']}/graded"].append(close)
        solved[row["tag"], row["prompt"]] = max(right, solved[row["tag"], row["prompt"]])
    tags = list(dict.fromkeys(row["tag"] for row in rows))
    for (tag, _), passed in solved.items():
        values[f"{tag}/pass"].append(passed)
    means = {name: sum(v) / len(v) for name, v in sorted(values.items())}
    overall = {"strict": "", "graded": "/graded", "pass": "/pass"}
    return {name: sum(means[tag + end] for tag in tags) / len(tags) for name, end in overall.items()} | means


def measure(base: Path, prompts: Callable[[Any], list[Metadata]], report: Report, repeats: int, steps: int) -> None:
    """Prints a report per guidance scale as JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, default=base)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--repeats", type=int, default=repeats, help="images per prompt")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = Pipeline.from_pretrained(args.base, dtype=torch.float32)
    rows = prompts(args.split) * args.repeats
    for guidance in args.guidance:
        result = report(sample(pipe, rows, args.seed, guidance, args.steps), rows)
        line = {k: round(v, 3) for k, v in result.items()}
        print(json.dumps({"guidance": guidance, "images": len(rows), **line}), flush=True)
