"""LLDS: tokens of good completions are kept from becoming less likely (arXiv:2512.04220)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.trust_regions import LikelihoodDrop

PAPER = "arXiv:2512.04220"


def llds(
    *, drop: float = 0.2, clip: float = 0.2, kl: float = 1e-3, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As released (vengdeng/LLDS) for one action per completion: penalty .2 and GRPO's KL of .001."""
    algorithm = grpo(clip=clip, kl=kl, length=length, temperature=temperature)
    return replace(algorithm, regularizers=(*algorithm.regularizers, LikelihoodDrop(drop)))
