"""diffu-GRPO: GRPO for masked diffusion, with one-step log-probabilities under a randomly masked prompt (d1,
arXiv:2504.12216)."""

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import FullMask
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import KL
from flowrl.samplers.masked import MaskedSampler

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
) -> Algorithm:
    """The released settings, but for positions chosen by the state (``max_prob``) instead of by the drawn token. New
    prompt masks for every epoch; credit without standard deviation, as the code has it."""
    return Algorithm(
        sampler=MaskedSampler(length=length, steps=steps, block=block, temperature=temperature),
        estimator=MaskedViews(plan=FullMask(), per="cell", corrupt=corrupt),
        advantage=GroupCentred(scale="none", clip=None),
        objective=Clipped(clip, clip),
        regularizers=(KL(kl),) if kl else (),
        aggregation=DecisionMean(),
        redraw=True,
        families=("masked",),
    )
