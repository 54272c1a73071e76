"""Images in, GenEval's verdicts out: detector, colour classifier and rules together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from flowrl.detection.metadata import Metadata, check
from flowrl.detection.objects import COLORS, Detection
from flowrl.detection.rules import OFFICIAL, Kept, Rules, Verdict, keep, to_color, verify


class Detector(Protocol):
    """Finds objects in images of one size, uint8 [N, 3, H, W]."""

    version: str
    labels: Sequence[str]
    """What it can find."""

    def __call__(self, pixels: Tensor) -> list[list[Detection]]: ...


class Colors(Protocol):
    """Names the colours of objects in one image, uint8 [3, H, W]."""

    version: str

    def __call__(self, image: Tensor, detections: Sequence[Detection]) -> list[str]: ...


@dataclass(frozen=True)
class ImageResult:
    """A verdict and the detections it rests on."""

    verdict: Verdict
    kept: Kept


@dataclass(frozen=True)
class Evaluator:
    """GenEval with a detector and a colour classifier of choice; None where detections have colours already."""

    detector: Detector
    colors: Colors | None
    rules: Rules = OFFICIAL
    palette: Sequence[str] = COLORS
    """Colours that prompts may ask for."""

    @property
    def version(self) -> str:
        """Everything that the numbers depend on."""
        colors = self.colors.version if self.colors else "colors-by-detector"
        rules = self.rules
        return (
            f"{self.detector.version}+{colors}:{rules.threshold:g}-{rules.counting_threshold:g}-{rules.max_objects}"
            f"-{rules.max_overlap:g}-{rules.margin:g}"
        )

    def __call__(self, pixels: Tensor, metadata: Sequence[Metadata]) -> list[ImageResult]:
        """A result per image; ``pixels`` uint8 [N, 3, H, W]. Raises `UserError` for metadata it cannot verify."""
        for wanted in metadata:
            check(wanted, self.detector.labels, self.palette)
        found = self.detector(pixels)
        return [self._verify(*job) for job in zip(pixels, found, metadata, strict=True)]

    def _verify(self, image: Tensor, found: Sequence[Detection], metadata: Metadata) -> ImageResult:
        kept = keep(found, metadata, self.rules)
        needed = to_color(kept, metadata) if self.colors else []
        if needed and self.colors:
            named = dict(zip(map(id, needed), self.colors(image, needed), strict=True))
            kept = {
                label: [replace(one, color=named.get(id(one), one.color)) for one in group]
                for label, group in kept.items()
            }
        every = [one for group in kept.values() for one in group]
        return ImageResult(verify(every, metadata, self.rules), kept)


def details(kept: Kept) -> dict[str, list[list[float]]]:
    """``{label: [[x0, y0, x1, y1, score], ...]}``, as official GenEval writes them."""
    return {label: [[*one.box, one.score] for one in group] for label, group in kept.items()}


def line(filename: str, metadata: Metadata, result: ImageResult) -> dict[str, Any]:
    """One line of ``results.jsonl`` in the official schema; ``metadata`` and ``details`` are JSON within JSON."""
    return {
        "filename": filename,
        "tag": metadata["tag"],
        "prompt": metadata["prompt"],
        "correct": result.verdict.correct,
        "reason": "\n".join(result.verdict.reasons),
        "metadata": json.dumps(dict(metadata)),
        "details": json.dumps(details(result.kept)),
    }


def load(
    detector: str | None = None,
    clip: str | None = None,
    *,
    rules: Rules = OFFICIAL,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 4,
) -> Evaluator:
    """GenEval with Mask2Former and CLIP of transformers, from folders or the hub. Raises `UserError`."""
    from flowrl.detection.colors import WEIGHTS as CLIP
    from flowrl.detection.colors import ClipColors
    from flowrl.detection.mask2former import WEIGHTS, Mask2Former

    least = min(rules.threshold, rules.counting_threshold)
    finder = Mask2Former(detector or WEIGHTS, device=device, dtype=dtype, batch_size=batch_size, least=least)
    return Evaluator(finder, ClipColors(clip or CLIP, device=device, dtype=dtype), rules)
