"""IcePop: GRPO without the tokens on which sampler and trainer disagree (arXiv:2510.18855)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.token_advantages import TruncatedImportance

PAPER = "arXiv:2510.18855"


def icepop(
    *, floor: float = 0.5, cap: float = 5.0, clip: float = 0.2, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """The paper's objective with the bounds of its first report, .5 and 5: the loss is weighted by
     ``p_old / p_sampler``, and 0 outside. For a sampler whose probabilities are not the trainer's
    ."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        token_advantage=(TruncatedImportance(cap, beyond="mask", floor=floor),),
    )
