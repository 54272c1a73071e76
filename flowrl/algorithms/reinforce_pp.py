"""REINFORCE++: per-token KL in the reward, summed over what follows, whitened over the whole batch, PPO's clip
(arXiv:2501.03262)."""

from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import RawReward
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.token_advantages import KLInReward
from flowrl.samplers.causal import CausalSampler

PAPER = "arXiv:2501.03262"


def reinforce_pp(*, clip: float = 0.2, kl: float = 0.01, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """No groups are needed."""
    return Algorithm(
        sampler=CausalSampler(length=length, temperature=temperature),
        estimator=Tokens(),
        advantage=RawReward(),
        token_advantage=(KLInReward(kl),),
        objective=Clipped(clip, clip),
        aggregation=DecisionMean(),
        min_group=1,
        families=("causal",),
    )
