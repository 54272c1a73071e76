"""What a pipeline knows of the world: strict score per tag and conditioning hit rates."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline as Pipeline
from torch import Tensor

from flowrl.worlds.shapes import BASE, CALL
from flowrl.worlds.shapes.prompts import TAGS, prompts
from flowrl.worlds.shapes.scenes import Metadata
from flowrl.worlds.shapes.verifier import Detection, detect, relation_holds, verify


@torch.no_grad()
def sample(
    pipe: Any, rows: Sequence[Metadata], seed: int, guidance: float = 1.0, steps: int = 10, batch: int = 96
) -> Tensor:
    """One image per row [N, 3, 32, 32] by the pipeline's own call."""
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


def report(images: Tensor, rows: Sequence[Metadata]) -> dict[str, float]:
    """Strict and graded means per tag, their mean over tags, and hit rates (`None` images count as misses)."""
    values: dict[str, list[float]] = defaultdict(list)
    for found, row in zip(detect(images), rows, strict=True):
        verdict = verify(found, row)
        values[row["tag"]].append(float(verdict.strict))
        values[f"{row['tag']}/graded"].append(verdict.score)
        for name, hit in _hits(found, row):
            values[name].append(float(hit))
    means = {name: sum(v) / len(v) for name, v in sorted(values.items())}
    tags = [tag for tag in TAGS if tag in means]
    overall = {
        "strict": sum(means[tag] for tag in tags) / len(tags),
        "graded": sum(means[f"{tag}/graded"] for tag in tags) / len(tags),
    }
    return overall | means


def _hits(found: Sequence[Detection], row: Metadata) -> list[tuple[str, bool]]:
    """Conditioning, apart from overall correctness. Names say what is conditioned on what."""
    include, tag = row["include"], row["tag"]
    of = {item["class"]: [d for d in found if d.shape == item["class"]] for item in include}
    hits = [("hit/shape", bool(of[item["class"]])) for item in include]
    hits.append(("hit/clean", all(d.shape for d in found)))
    if tag == "colors":
        hits.append(("hit/color", any(d.color == include[0]["color"] for d in found)))
    if tag == "counting":
        hits.append(("hit/count", len(found) == include[0]["count"]))
    one_each = len(include) == 2 and all(len(group) == 1 for group in of.values())
    if tag == "position" and one_each:
        reference, subject = of[include[0]["class"]][0], of[include[1]["class"]][0]
        hits.append(("hit/relation", relation_holds(include[1]["position"][0], subject, reference)))
    if tag == "color_attr" and one_each:
        hits += [("hit/binding", of[item["class"]][0].color == item["color"]) for item in include]
    return hits


def main() -> None:
    """Print a report per guidance scale as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--repeats", type=int, default=6, help="images per prompt")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = Pipeline.from_pretrained(args.base)
    rows = prompts(args.split) * args.repeats
    for guidance in args.guidance:
        result = report(sample(pipe, rows, args.seed, guidance), rows)
        line = {k: round(v, 3) for k, v in result.items()}
        print(json.dumps({"guidance": guidance, "images": len(rows), **line}), flush=True)


if __name__ == "__main__":
    main()
