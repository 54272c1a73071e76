"""Dynamic reward weighting by hypervolume: steps count more while the rewards reach new trade-offs
(arXiv:2509.11452)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.several_rewards import HypervolumeScaled

PAPER = "arXiv:2509.11452"


def drw_hv(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """After yining610/dynamic-reward-weighting: factor ``.5 + 1.5 tanh(gain)``.

    Deviations: rewards of the iteration take the place of a validation after every step; the factor is on the
    advantage, because GRPO's standard deviation divides one on the reward away.
    """
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature), advantage=HypervolumeScaled(clip=None)
    )
