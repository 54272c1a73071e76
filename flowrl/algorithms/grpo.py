"""GRPO: group-normalised advantage, PPO's clip per token, KL to the reference in the loss (arXiv:2402.03300)."""

from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import KL
from flowrl.samplers.causal import CausalSampler

PAPER = "arXiv:2402.03300"


def grpo(*, clip: float = 0.2, kl: float = 0.04, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The paper's defaults; a completion's loss is the mean over its tokens."""
    return Algorithm(
        sampler=CausalSampler(length=length, temperature=temperature),
        estimator=Tokens(),
        advantage=GroupCentred(clip=None),
        objective=Clipped(clip, clip),
        regularizers=(KL(kl),) if kl else (),
        families=("causal",),
    )
