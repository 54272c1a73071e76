"""PPO: a critic, generalised advantage estimation and clipped ratios per token (arXiv:1707.06347)."""

from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import RawReward
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import ValueLoss
from flowrl.parts.token_advantages import GAE
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
    """The critic is a network of its own, a copy of the policy's with a value head that starts at 0 (``model.critic:
    network``, the default here; ``head`` is a linear layer on the policy's states alone). Its learning rate is ten
    times the policy's unless ``optimizer.critic_lr`` says another, its gradient is clipped by itself, and for
    ``optimizer.critic_warmup`` iterations it may learn alone.

    verl 0.9.1: a network of its own, rates 1e-5 and 1e-6, values clipped at .5, gamma = lambda = 1, no warm-up, no KL
    by default. TRL 1.0 (later ones have no PPO): a network of its own in one optimiser with the policy at 3e-6,
    ``value`` .1, values clipped at .2, lambda .95, a KL of .05 in the reward. Here there is no KL; `kl` as a further
    regularizer adds one to the loss.
    """
    return Algorithm(
        sampler=CausalSampler(length=length, temperature=temperature),
        estimator=Tokens(),
        advantage=RawReward(),
        token_advantage=(GAE(gamma, lam),),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value),),
        aggregation=DecisionMean(),
        min_group=1,
        families=("causal",),
    )
