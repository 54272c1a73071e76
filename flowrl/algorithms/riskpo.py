"""RiskPO: bundles of prompts, and a risk measure that looks at the hard ones first (arXiv:2510.00911)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import MixedValueAtRisk

PAPER = "arXiv:2510.00911"


def riskpo(
    *,
    bundle: int = 5,
    low: float = 0.2,
    high: float = 0.8,
    w: float = 1.5,
    clip: float = 0.2,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """As released (RTkenny/RiskPO): bundles of 5, levels .2 and .8, w 1.5, credit by each sample's part of the sum."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        advantage=MixedValueAtRisk(bundle, low, high, w),
    )
