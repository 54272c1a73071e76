"""ADORA: groups count a tenth unless long answers are of use in them (arXiv:2602.10019)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import LengthGate

PAPER = "arXiv:2602.10019"


def adora(*, factor: float = 0.1, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As released (ShadeCloak/ADORA) for language models; its form for images weighs by difficulty."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature), token_advantage=(LengthGate(factor),)
    )
