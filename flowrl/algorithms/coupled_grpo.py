"""coupled-GRPO: token scores from a random mask and its complement, so that every token is asked (DiffuCoder,
arXiv:2506.20639)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Coupled
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2506.20639"


def coupled_grpo(
    *,
    clip: float = 0.5,
    kl: float = 0.01,
    length: int = 256,
    steps: int = 256,
    block: int | None = None,
    temperature: float = 1.2,
) -> Algorithm:
    """The released settings. Its scores are about 1.5 times a log-likelihood (half the full mask's, half the pair's),
    which its wide clip absorbs."""
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(clip=clip, kl=kl, **sizes),
        estimator=MaskedViews(plan=Coupled(), per="token"),
    )
