"""GenEval's include and exclude clauses plus strictness: nothing unasked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.worlds.images.detection import Detection
from flowrl.worlds.images.scenes import Metadata, relation_score


@dataclass(frozen=True)
class Verdict:
    """Whether the image is exactly right, how close it is (1.0 iff strict), and what is wrong."""

    strict: bool
    score: float
    reason: str


@dataclass(frozen=True)
class Word(Detection):
    """A line of letters, which a clause may ask for by its text."""

    text: str


def score(
    images: Tensor, metadata: Sequence[Metadata], detect: Callable[[Tensor], Sequence[Sequence[Detection]]]
) -> tuple[Tensor, Tensor]:
    """Strict 0/1 and graded score per image [N]; NaN where the image is not finite."""
    if len(images) != len(metadata):
        raise ValueError(f"{len(images)} images but {len(metadata)} metadata entries; pass one per image")
    finite = torch.isfinite(images).flatten(1).all(1)
    verdicts = [verify(found, wanted) for found, wanted in zip(detect(images), metadata, strict=True)]
    strict = torch.tensor([float(v.strict) for v in verdicts])
    graded = torch.tensor([v.score for v in verdicts])
    nan = torch.tensor(float("nan"))
    keep = finite.cpu()
    return torch.where(keep, strict, nan), torch.where(keep, graded, nan)


def verify(detections: Sequence[Detection], metadata: Metadata) -> Verdict:
    """All clauses are evaluated; strict also fails on anything extra."""
    shapes = sorted((d for d in detections if d.shape), key=lambda d: -d.quality)
    groups, used, parts, reasons = [], [], [], []
    for item in metadata["include"]:
        group, credit, reason = _clause(item, shapes, used, groups)
        groups.append(group)
        used.extend(group)
        reasons.extend(reason)
        almost = [d for d in detections if not d.shape and d.guess == item["class"]]
        if len(group) < item["count"] and almost:  # a gradient towards shapes that are nearly readable
            credit += 0.3 * max(d.quality for d in almost) / item["count"] / len(metadata["include"])
        parts.append(credit)
    for item in metadata.get("exclude") or ():
        number = sum(d.shape == item["class"] for d in shapes)
        if number >= item["count"]:
            reasons.append(f"found {number} {item['class']}, wanted fewer than {item['count']}")
    wanted = sum(item["count"] for item in metadata["include"])
    extra, junk = max(0, len(shapes) - wanted), len(detections) - len(shapes)
    if len(shapes) > wanted:
        reasons.append(f"{extra} shapes too many")
    if junk:
        reasons.append(f"{junk} unidentifiable blobs")
    if not reasons:
        return Verdict(True, 1.0, "")
    graded = sum(parts) / len(parts) / (1 + 0.5 * extra + 0.5 * junk)
    return Verdict(False, min(0.95, graded), "; ".join(reasons))


def _clause(
    item: Metadata, shapes: list[Detection], used: list[Detection], groups: list[list[Detection]]
) -> tuple[list[Detection], float, list[str]]:
    """The figures matched to one include clause, its credit in [0, 1], and what failed."""
    free = [d for d in shapes if d.shape == item["class"] and d not in used]
    free.sort(key=lambda d: d.color != item.get("color", d.color))  # stable: right colours first
    if item.get("text"):
        free.sort(key=lambda d: -_likeness(d, item["text"]))
    group, reasons = free[: item["count"]], []
    presence = len(group) / item["count"]
    if presence < 1:
        reasons.append(f"found {len(group)} of {item['count']} {item['class']}")
    checks = [presence]
    if item.get("color"):
        right = sum(d.color == item["color"] for d in group)
        checks.append(right / item["count"])
        if right < item["count"]:
            reasons.append(f"{right} of {item['count']} {item['class']} are {item['color']}")
    if item.get("text"):
        checks.append(max((_likeness(d, item["text"]) for d in group), default=0.0))
        if group and checks[-1] < 1:
            reasons.append(f"the text is not {item['text']}")
    if item.get("position"):
        relation, reference = item["position"]
        holds = [relation_score(relation, a.box, b.box) for a in group for b in groups[reference]]
        checks.append(min(holds, default=0.0))
        if min(holds, default=0.0) < 1:
            reasons.append(f"{item['class']} is not {relation} the target")
    return group, sum(checks) / len(checks), reasons


def _likeness(found: Detection, text: str) -> float:
    """1 - edit distance / the longer length."""
    read = found.text if isinstance(found, Word) else ""
    row = list(range(len(text) + 1))
    for i, letter in enumerate(read, 1):
        before, row[0] = row[0], i
        for j, wanted in enumerate(text, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != wanted))
    return 1 - row[-1] / max(len(text), len(read))
