"""RL-ZVP: groups that all scored alike teach by the entropy of their tokens (arXiv:2509.21880)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.advantages import RawReward
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import ZeroVarianceEntropy

PAPER = "arXiv:2509.21880"


def rl_zvp(*, strength: float = 0.1, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As ported by others from its equation 5: strength .1; a completion is right if it scores above .5."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        advantage=RawReward(),
        token_advantage=(ZeroVarianceEntropy(strength),),
    )
