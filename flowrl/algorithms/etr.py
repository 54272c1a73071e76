"""ETR: clip bounds that widen with the advantage and with the spread of the group (arXiv:2601.03723)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import ElasticBounds

PAPER = "arXiv:2601.03723"


def etr(
    *,
    clip: float = 0.2,
    by_advantage: float = 0.5,
    by_variance: float = 0.5,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """Reconstruction from the abstract: both scales are monotone, and `grpo` where they are 0; their form and size are
    ours."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        token_advantage=(ElasticBounds(clip, clip, by_advantage, by_variance),),
    )
