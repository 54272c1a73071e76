"""Dr. GRPO: GRPO without its length and difficulty biases: no std, divided by a fixed length (arXiv:2503.20783)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import FixedLength
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2503.20783"


def dr_grpo(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """No KL, as in the paper; divided by the sampler's ``length``."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        advantage=GroupCentred(scale="none", clip=None),
        aggregation=FixedLength(),
    )
