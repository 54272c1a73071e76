"""diffu-GRPO: GRPO for masked diffusion, with one-step log-probabilities under a randomly masked prompt (d1,
arXiv:2504.12216)."""

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import FullMask
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import KL
from flowrl.samplers.masked import MaskedSampler, Order

PAPER = "arXiv:2504.12216"


def diffu_grpo(
    *,
    clip: float = 0.5,
    kl: float = 0.04,
    corrupt: float = 0.15,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 0.9,
    order: Order = "low_confidence",
) -> Algorithm:
    """As released (dllm-reasoning/d1, code of 4 May 2025): ``max(-A r, -A clip(r, 1 - clip, 1 + clip)) + kl k3`` per
    token, mean over all tokens of the batch; advantage without standard deviation, positions chosen by the drawn token,
    new prompt masks for every epoch.

    Released optimiser: AdamW, rate 3e-6 constant, betas .9/.99, weight decay .1, gradient norm .2; 6 samples a prompt,
    96 an update on 8 devices, 12 epochs (8 for Sudoku), LoRA 128/64 on q, k, v and up projections; Sudoku at
    temperature .3. Differs: tokens behind the end are hidden, not drawn and shown; in the release they are masked as
    well, but were sampled.
    """
    return Algorithm(
        sampler=MaskedSampler(length=length, steps=steps, block=block, temperature=temperature, order=order),
        estimator=MaskedViews(views=FullMask(), per="cell", corrupt=corrupt),
        advantage=GroupCentred(scale="none", clip=None),
        objective=Clipped(clip, clip),
        regularizers=(KL(kl),) if kl else (),
        aggregation=DecisionMean(),
        redraw=True,
        families=("masked",),
    )
