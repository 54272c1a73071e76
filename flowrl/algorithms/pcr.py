"""PCR: what a divergence would undo is partly taken out of the gradient, where both are in conflict
(arXiv:2602.06453)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.combinations import SoftProjection
from flowrl.parts.several_rewards import AsChannel

PAPER = "arXiv:2602.06453"


def pcr(
    *, share: float = 0.5, clip: float = 0.2, kl: float = 0.04, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """Reconstruction: the paper's share follows from the uncertainty of both gradients, by an estimator that is not
    public; here it is fixed, by default as if both were equally certain, and all weights are combined, not those of the
    MLPs. Without KL it is `grpo`."""
    return replace(
        grpo(clip=clip, kl=kl, length=length, temperature=temperature),
        advantage=AsChannel(clip=None),
        combination=SoftProjection(share),
    )
