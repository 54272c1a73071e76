"""Does a detector work at all, before it judges anything?

The checks hold for any detector that works, whatever it was trained on: it finds something, something else in another
picture, inside of the picture, and the same again alone, in a batch and on the CPU; colours that nobody would dispute
are named right. How sure it must be of a drawing is not demanded, because detectors learn from photographs; only that
it does not mistake several drawings by the same step through the list of classes, which is a shifted list. The user's
own pictures with known content decide what drawings cannot.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowrl.detection.drawings import SIDE, drawings, flat
from flowrl.detection.evaluator import Colors, Evaluator
from flowrl.detection.metadata import Metadata
from flowrl.detection.objects import COLORS, OBJECTS, Detection
from flowrl.detection.rules import OFFICIAL

CHANCE = 1 / (len(OBJECTS) + 1)
"""Of a class by a detector that knows nothing: all are alike, "no object" among them."""
OVERLAP = 0.8
"""Intersection over union from which two boxes are of the same object: masks differ by pixels for rounding."""
TOLERANCE = {"float32": 0.02, "bfloat16": 0.1, "float16": 0.1}
"""Difference of a score that rounding explains; convolutions on GPUs round to ten bits by default."""
COLORS_LEAST = 7
"""Colours of ten that must be named right; with red and blue exchanged five are."""
KNOWN_LEAST = 0.5
"""Share of the user's own pictures that must be judged right."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold of a detector."""

    name: str
    passed: bool | None
    """None: the pictures do not decide it."""
    found: str


@dataclass(frozen=True)
class Judge:
    """An evaluator, and what its detector considers when it need not be sure."""

    evaluator: Evaluator
    candidates: Callable[[Tensor], list[list[Detection]]]
    """Every object of images uint8 [N, 3, H, W] that the detector considers, however unsure."""


@dataclass(frozen=True)
class Known:
    """A picture and what is in it."""

    file: Path
    pixels: Tensor
    """uint8 [3, H, W]."""
    metadata: Metadata


def self_test(
    judge: Judge, dtype: str, on_host: Callable[[], Judge] | None = None, known: Sequence[Known] = ()
) -> list[Check]:
    """The checks of a judge that computes in ``dtype``; ``on_host`` opens it on the CPU, where it is not there already.

    The checks of answers are left out where there are none to compare.
    """
    tolerance = TOLERANCE[dtype]
    names, pixels = drawings()
    seen = judge.candidates(pixels)
    checks = [_classes(judge.evaluator.detector.labels), _finite(seen), _finds(seen)]
    if all(check.passed for check in checks):
        rows = sorted(range(len(seen)), key=lambda row: -_best(seen[row]))[:2]  # answers that rounding moves least
        alone = [judge.candidates(pixels[row : row + 1])[0] for row in rows]
        again = judge.candidates(pixels[rows[0] : rows[0] + 1])[0]
        checks += [
            _differs(seen, tolerance),
            _agrees("repeated", [alone[0]], [again], tolerance, "of the same picture, asked again"),
            _agrees("batch", [seen[row] for row in rows], alone, tolerance, "of a picture in a batch and alone"),
            _labelled(names, seen),
        ]
        if on_host is not None:
            host = on_host()
            wanted = [host.candidates(pixels[row : row + 1])[0] for row in rows]
            checks.append(_agrees("device", alone, wanted, tolerance, "of a picture here and on the CPU"))
    colors = judge.evaluator.colors
    if colors is not None:
        checks.append(_colors(colors))
    if known:
        checks.append(_known(judge.evaluator, known))
    return checks


def _classes(labels: Sequence[str]) -> Check:
    wrong = [f"{found!r} for {wanted!r}" for found, wanted in zip(labels, OBJECTS, strict=False) if found != wanted]
    if len(labels) != len(OBJECTS):
        wrong = [f"{len(labels)} classes instead of {len(OBJECTS)}", *wrong]
    return Check("classes", not wrong, wrong[0] if wrong else f"the {len(OBJECTS)} objects of GenEval in COCO's order")


def _finite(seen: Sequence[Sequence[Detection]]) -> Check:
    """Scores in [0, 1], boxes inside of the picture."""
    every = [one for found in seen for one in found]
    scores = [one.score for one in every if not (math.isfinite(one.score) and 0 <= one.score <= 1)]
    boxes = [one.box for one in every if not _inside(one.box)]
    if scores:
        return Check("numbers", False, f"a score of {scores[0]}")
    if boxes:
        return Check("numbers", False, f"a box {boxes[0]} in a picture of {SIDE}x{SIDE}")
    return Check("numbers", True, f"{len(every)} candidates with scores in [0, 1] and boxes inside of their pictures")


def _inside(box: Sequence[float]) -> bool:
    x0, y0, x1, y1 = box
    return all(map(math.isfinite, box)) and 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE


def _finds(seen: Sequence[Sequence[Detection]]) -> Check:
    best = max(map(_best, seen))
    found = f"the best score is {best:.4f}, of a detector that knows nothing {CHANCE:.4f}"
    return Check("finds", best > 2 * CHANCE, found)


def _best(found: Sequence[Detection]) -> float:
    return max((one.score for one in found), default=0.0)


def _differs(seen: Sequence[Sequence[Detection]], tolerance: float) -> Check:
    """Twice the same answer would be a detector that does not look."""
    same = [row for row in range(1, len(seen)) if deviation(seen[0], seen[row]) <= tolerance / 10]
    found = f"{len(same)} of {len(seen) - 1} further pictures are answered as the first"
    return Check("differs", len(same) < len(seen) - 1, found)


def _agrees(
    name: str, ours: Sequence[Sequence[Detection]], theirs: Sequence[Sequence[Detection]], tolerance: float, what: str
) -> Check:
    most = max(deviation(a, b) for a, b in zip(ours, theirs, strict=True))
    found = "an object is missing" if most >= 1 else f"scores differ by {most:.2g}"
    return Check(name, most <= tolerance, f"{what}: {found} (at most {tolerance:g})")


def deviation(a: Sequence[Detection], b: Sequence[Detection]) -> float:
    """How far two answers about one picture are apart: the largest difference of the scores of one object, 1 where an
    object of one is not in the other. Objects with less than half of the best score do not count."""
    least = _best([*a, *b]) / 2
    distances = [_nearest(one, others) for some, others in ((a, b), (b, a)) for one in some if one.score >= least]
    return max(distances, default=0.0)


def _nearest(one: Detection, others: Sequence[Detection]) -> float:
    same = [abs(one.score - o.score) for o in others if o.label == one.label and overlap(one.box, o.box) >= OVERLAP]
    return min(same, default=1.0)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either > 0 else 0.0


def _labelled(names: Sequence[str], seen: Sequence[Sequence[Detection]]) -> Check:
    """How far from its own name in the list of classes each drawing's surest object is."""
    steps = Counter[int]()
    words = []
    for name, found in zip(names, seen, strict=True):
        best = max(found, key=lambda one: one.score, default=None)
        if best is not None and best.score > OFFICIAL.threshold:
            steps[(OBJECTS.index(best.label) - OBJECTS.index(name)) % len(OBJECTS)] += 1
            words.append(f"{name}: {best.label} {best.score:.2f}")
    right = steps.pop(0, 0)
    step, count = steps.most_common(1)[0] if steps else (0, 0)
    told = f"{right} of {len(names)} drawings are recognised ({', '.join(words) or 'nothing is seen with confidence'})"
    if count >= 2 and count > right:
        shift = step if step <= len(OBJECTS) // 2 else step - len(OBJECTS)
        return Check("labels", False, f"{told}; {count} are {shift:+d} classes off, so the list of classes is shifted")
    return Check("labels", True if right else None, told)


def _colors(colors: Colors) -> Check:
    """The colour classifier on flat pictures of an object that has any colour."""
    whole = Detection("vase", 1.0, (0.0, 0.0, 64.0, 64.0))
    named = {color: colors(flat(color), [whole])[0] for color in COLORS}
    wrong = {color: found for color, found in named.items() if color != found}
    words = ", ".join(f"{color} is called {found}" for color, found in wrong.items())
    passed = len(COLORS) - len(wrong) >= COLORS_LEAST and not wrong.keys() & {"red", "blue"}
    return Check("colors", passed, words or "all ten colours are named right")


def _known(evaluator: Evaluator, known: Sequence[Known]) -> Check:
    wrong = []
    with torch.inference_mode():
        for one in known:
            if not evaluator(one.pixels[None], [one.metadata])[0].verdict.correct:
                wrong.append(one.file.name if one.file.parent.name != "samples" else str(Path(*one.file.parts[-3:])))
    right = len(known) - len(wrong)
    words = f" (wrong: {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})" if wrong else ""
    return Check(
        "known pictures", right >= KNOWN_LEAST * len(known), f"{right} of {len(known)} are judged right{words}"
    )
