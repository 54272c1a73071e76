"""SPO: one sample per prompt against a value of the prompt that is kept over iterations (single-stream,
arXiv:2509.13232)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import BetaTracker
from flowrl.parts.objectives import Clipped

PAPER = "arXiv:2509.13232"


def spo_stream(
    *, keep: float = 0.96, low: float = 0.2, high: float = 0.28, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """Port of verl's recipe/spo, for ``data.group: 1``: clip .2 and .28, no KL.

    Deviation: see `BetaTracker` for how a prompt's value begins and is forgotten; prompts are drawn as the data has
    them, not by how uncertain their value is.
    """
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        advantage=BetaTracker(keep),
        objective=Clipped(low, high),
        min_group=1,
    )
