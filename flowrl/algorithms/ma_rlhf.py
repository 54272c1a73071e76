"""MA-RLHF: PPO whose advantages are those of macro actions of several tokens (arXiv:2410.02743)."""

from dataclasses import replace

from flowrl.algorithms.ppo import ppo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import MacroGAE

PAPER = "arXiv:2410.02743"


def ma_rlhf(
    *,
    n: int = 5,
    clip: float = 0.2,
    value: float = 0.5,
    gamma: float = 1.0,
    lam: float = 0.95,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """The fixed five-grams of ernie-research/MA-RLHF, ratios and clips of single tokens. ``n=1`` is `ppo`. Its KL in
    the reward is left out, as in `ppo`."""
    return replace(
        ppo(clip=clip, value=value, length=length, temperature=temperature),
        token_advantage=(MacroGAE(n, gamma, lam),),
    )
