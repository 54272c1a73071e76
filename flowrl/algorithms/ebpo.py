"""EBPO: one clipped ratio per completion from the sum of its blocks' likelihood bounds (LLaDA 2.1,
arXiv:2602.08676)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.bound_views import EveryBlock
from flowrl.estimators.masked import MaskedViews
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ClippedMean
from flowrl.parts.regularizers import BoundKL

PAPER = "arXiv:2602.08676"


def ebpo(
    *,
    clip: float = 0.2,
    kl: float = 0.0,
    draws: int = 16,
    length: int = 256,
    steps: int = 128,
    block: int = 32,
    temperature: float = 0.6,
) -> Algorithm:
    """As re-implemented in DARE (yjyddq/DARE 83ae8a3, 2026); the authors' code and constants are not public: clip and
    sampler are placeholders. ``r = exp(B - B_old)``, not divided by the length, B the mean of ``draws`` composites in
    which every block hides its own number of positions (`EveryBlock`), the same masks for new, old and reference.

    A port to models with full attention: each block is a view of its own, so a draw costs as many rows as there are
    blocks (128 by default; lower ``draws``), where a block-diffusion model takes one of twice the length. Both have the
    same mean, the bound of a sampler that decodes block by block. Blocks begin at the completion, not at the prompt.
    """
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(kl=0.0, **sizes),
        estimator=MaskedViews(views=EveryBlock(length=length, block=block, repeats=draws)),
        objective=ClippedMean(clip, clip),
        regularizers=(BoundKL(kl, by_length=False),) if kl else (),
        aggregation=SampleMean(),
        redraw=False,
    )
