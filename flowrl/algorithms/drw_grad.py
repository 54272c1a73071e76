"""Dynamic reward weighting by gradients: rewards count more whose gradient agrees with all of them
(arXiv:2509.11452)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.combinations import Influence
from flowrl.parts.controllers import Smoothed
from flowrl.parts.several_rewards import PerReward

PAPER = "arXiv:2509.11452"


def drw_grad(
    *, rewards: int = 2, rate: float = 0.1, clip: float = 0.2, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As released (yining610/dynamic-reward-weighting) with centred rewards, of which a weighted sum of gradients is
    the gradient of the weighted reward; ``rate`` is its learning rate over its mu, and is ours. ``rewards`` is how many
    have a weight; the weights themselves are not read.

    Deviation: the gradient of all trained weights, not that of chosen layers.
    """
    equal = tuple(1 / rewards for _ in range(rewards))
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        advantage=PerReward(scale="none", clip=None, shares=equal),
        combination=Influence(equal, rate),
        coefficients=tuple(Smoothed(f"combination.shares.{c}", f"combination/weight_{c}", 0.0) for c in range(rewards)),
    )
