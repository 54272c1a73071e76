"""MARBLE: several rewards, whose gradients are combined to the shortest of their hull, now and then
(arXiv:2605.06507)."""

from dataclasses import replace

from flowrl.algorithms.diffusion_nft import diffusion_nft
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.combinations import MinNorm
from flowrl.parts.controllers import Smoothed
from flowrl.parts.several_rewards import PerReward

PAPER = "arXiv:2605.06507"


def marble(
    *,
    rewards: int = 2,
    refresh: int = 10,
    decay: float = 0.7,
    strength: float = 0.1,
    reference: float = 1e-4,
    steps: int = 25,
    draws: int = 24,
) -> Algorithm:
    """As released (aim-uofa/MARBLE, its ``rho_07``): DiffusionNFT's settings for several rewards, gradients of unit
    length, shares averaged with decay .7, used with one backward pass for nine iterations of ten. ``rewards`` is how
    many have a weight; the weights themselves are not read. Two have a half each, whatever their gradients.

    Deviation: the gradients that are combined are those of the whole batch, in the release those of one time and
    micro-batch, after whose first every other one of that step has the new shares already.
    """
    equal = tuple(1 / rewards for _ in range(rewards))
    return replace(
        diffusion_nft(strength=strength, reference=reference, steps=steps, draws=draws),
        advantage=PerReward(scale="global", ddof=0, eps=1e-4, shares=equal, refresh=refresh),
        combination=MinNorm(normalise=True),
        coefficients=tuple(Smoothed(f"advantage.shares.{c}", f"combination/share_{c}", decay) for c in range(rewards)),
    )
