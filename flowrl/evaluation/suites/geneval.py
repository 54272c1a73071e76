"""GenEval's protocol (arXiv:2310.11513): does the image show the objects, counts, colours and relations asked for?

Prompts, tags, metadata and result lines are GenEval's; the overall is the unweighted mean of the tags' image
accuracies. The detector here is the exact pixel verifier of the shapes world, which its title says: these numbers
compare with each other, not with published GenEval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation.suites import Verdicts
from flowrl.evaluation.target import Target
from flowrl.types import Prompt, Samples
from flowrl.worlds.shapes import verifier
from flowrl.worlds.shapes.prompts import TAGS
from flowrl.worlds.shapes.scenes import CLASSES, COLORS, SIZE

MEDIA = ("images",)
WORLD = "shapes"
SOURCE = "shapes:test"


@dataclass(frozen=True)
class ShapesGenEval:
    """GenEval on the shapes world."""

    prompts: Sequence[Prompt]
    source: str = SOURCE
    name: str = "geneval"
    title: str = "geneval[shapes]"
    version: str = "1"
    primary: str = "correct"
    tags: Sequence[str] = TAGS
    size: int = field(default_factory=lambda: len(load_prompts(SOURCE)))

    def judge(self, samples: Samples) -> Verdicts:
        """``correct`` (0 or 1) and continuous ``score`` of [n, 3, 32, 32] images; UserError for other sizes."""
        images = samples.images
        assert images is not None
        if tuple(images.shape[-2:]) != (SIZE, SIZE):
            height, width = images.shape[-2:]
            raise UserError(
                f"geneval[shapes] judges {SIZE}x{SIZE} images, found {width}x{height}; make them at that size"
            )
        detections = verifier.detect(images)
        verdicts = [
            verifier.judge(found, dict(prompt.columns))
            for found, prompt in zip(detections, samples.prompts, strict=True)
        ]
        return Verdicts(
            {
                "correct": torch.tensor([float(verdict.strict) for verdict in verdicts]),
                "score": torch.tensor([verdict.score for verdict in verdicts]),
            },
            [verdict.reason.split("; ") if verdict.reason else [] for verdict in verdicts],
            [{"detections": [asdict(detection) for detection in found]} for found in detections],
        )

    def close(self) -> None:
        """Nothing is held."""


def build(target: Target) -> ShapesGenEval:
    """Raises UserError for a target that is not of the shapes world: there is no detector for photographs yet."""
    if target.entries:
        prompts = target.prompts()
        if not all(_of_the_world(prompt) for prompt in prompts):
            raise UserError(_no_detector(target))
        return ShapesGenEval(prompts, source=target.text)
    if target.world != WORLD:
        raise UserError(_no_detector(target))
    return ShapesGenEval(load_prompts(SOURCE).prompts)


def _of_the_world(prompt: Prompt) -> bool:
    include = prompt.columns.get("include")
    if not isinstance(include, list):
        return False
    return all(
        isinstance(item, dict) and item.get("class") in CLASSES and item.get("color", "red") in COLORS
        for item in include
    )


def _no_detector(target: Target) -> str:
    taken = "" if Path(target.text).exists() else " (there is no such folder here, so it was taken for a hub name)"
    return (
        f"suite geneval has a detector for the shapes world only, and {target.text!r} is not of it{taken}; "
        "choose --suite rewards, or score the images with the official GenEval tool"
    )
