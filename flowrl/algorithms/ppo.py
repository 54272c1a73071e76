"""PPO: a critic, generalised advantage estimation and clipped ratios per token (arXiv:1707.06347)."""

from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import Plain
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.credits import GAE
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import ValueLoss
from flowrl.samplers.causal import CausalSampler

PAPER = "arXiv:1707.06347"


def ppo(
    *,
    clip: float = 0.2,
    value: float = 0.5,
    gamma: float = 1.0,
    lam: float = 0.95,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """Needs ``model.critic: true``. No KL term; add a regularizer for RLHF's."""
    return Algorithm(
        sampler=CausalSampler(length=length, temperature=temperature),
        estimator=Tokens(),
        advantage=Plain(),
        credit=(GAE(gamma, lam),),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value),),
        aggregation=DecisionMean(),
        min_group=1,
        families=("causal",),
    )
