"""What a pipeline knows of the world: strict and graded score and share of solved prompts per tag."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowrl.worlds.images.measuring import measure, scores_by_tag
from flowrl.worlds.images.scenes import Metadata
from flowrl.worlds.scenes import BASE, prompts
from flowrl.worlds.scenes.verifier import score


def report(images: Tensor, rows: Sequence[Metadata]) -> dict[str, float]:
    """`scores_by_tag` by the pixel verifier."""
    return scores_by_tag(*score(images, rows), rows)


def main() -> None:
    """The command."""
    measure(BASE, prompts, report, repeats=16, steps=8)


if __name__ == "__main__":
    main()
