"""What a pipeline knows of the world: strict score per tag and conditioning hit rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.worlds.images.detection import Detection
from flowrl.worlds.images.measuring import measure, scores_by_tag
from flowrl.worlds.images.scenes import Metadata, relation_score
from flowrl.worlds.shapes import BASE, prompts
from flowrl.worlds.shapes.verifier import detect, verify


def report(images: Tensor, rows: Sequence[Metadata]) -> dict[str, float]:
    """`scores_by_tag` and hit rates."""
    detections = detect(images)
    verdicts = [verify(found, row) for found, row in zip(detections, rows, strict=True)]
    strict, graded = (torch.tensor([float(getattr(v, name)) for v in verdicts]) for name in ("strict", "score"))
    values: dict[str, list[float]] = defaultdict(list)
    for found, row in zip(detections, rows, strict=True):
        for name, hit in _hits(found, row):
            values[name].append(float(hit))
    return scores_by_tag(strict, graded, rows) | {name: sum(v) / len(v) for name, v in sorted(values.items())}


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
        hits.append(("hit/relation", relation_score(include[1]["position"][0], subject.box, reference.box) == 1))
    if tag == "color_attr" and one_each:
        hits += [("hit/binding", of[item["class"]][0].color == item["color"]) for item in include]
    return hits


def main() -> None:
    """The command."""
    measure(BASE, prompts, report, repeats=6, steps=10)


if __name__ == "__main__":
    main()
