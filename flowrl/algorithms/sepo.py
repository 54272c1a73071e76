"""SEPO: score-entropy policy optimisation, on the neighbours that differ in one position (arXiv:2502.01384)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import EachAlone
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2502.01384"


def sepo(
    *,
    clip: float = 0.2,
    draws: int = 4,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 1.0,
) -> Algorithm:
    """For a masked model the scores of all neighbours of a position are one softmax, so the sum over them is exact
    where the released code (for ratio models) estimates it. The restriction to one position biases the gradient
    of log p(y)."""
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(clip=clip, kl=0.0, order="max_prob", **sizes),
        estimator=MaskedViews(views=EachAlone(draws=draws), per="cell"),
        advantage=GroupCentred(clip=None),
    )
