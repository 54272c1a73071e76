"""DCPO: clip bounds by how likely a token was, advantages smoothed over a prompt's history (arXiv:2509.02333)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import SmoothStandardised
from flowrl.parts.objectives import Clipped
from flowrl.parts.shaping import PriorBounds

PAPER = "arXiv:2509.02333"


def dcpo_clip(
    *, low: float = 0.16, high: float = 0.2, dual: float = 10.0, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As released (lime-RL/DCPO), no KL.

    Deviation: a completion's mean over tokens is averaged over completions, where the release adds them up; a rate of
    the optimiser takes that in.
    """
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        advantage=SmoothStandardised(),
        token_advantage=(PriorBounds(low, high),),
        objective=Clipped(low, high, dual),
    )
