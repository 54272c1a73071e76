"""Reasoning with exploration: advantages are raised by a token's entropy, by at most half of them
(arXiv:2506.14758)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import EntropyBonus

PAPER = "arXiv:2506.14758"


def entropy_advantage(
    *, strength: float = 0.4, share: float = 2.0, clip: float = 0.2, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """Reconstruction from the paper: strength .4 with GRPO, at most half of the advantage."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        token_advantage=(EntropyBonus(strength, share),),
    )
