"""PPO of a Gaussian policy in an environment, with a critic and GAE, as in CleanRL (arXiv:1707.06347)."""

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.gaussian import GaussianActions
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import ValueLoss
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.gaussian import GaussianSampler

PAPER = "arXiv:1707.06347"


def ppo_gaussian(
    *,
    clip: float = 0.2,
    value: float = 0.5,
    gamma: float = 0.99,
    lam: float = 0.95,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of vwxyzjn/cleanrl's ppo_continuous_action.py: clip .2, value loss .5 clipped at .2, no entropy
    bonus, gamma .99, lambda .95; there also 10 epochs of 32 minibatches, rate 3e-4, Adam eps 1e-5, gradients clipped at
    .5. The mean is the policy's (of a flow its one step from z = 0), the deviation a parameter of its own.

    Deviations: whole episodes instead of 2048 steps that may begin and end within one; time limits are no ends
    (``truncation: terminate`` is CleanRL's); advantages are whitened over an iteration instead of a minibatch;
    observations have the fixed statistics of the model; rewards are not scaled.
    """
    return Algorithm(
        sampler=EpisodeSampler(sampler=GaussianSampler(), environment=environment, decisions=decisions),
        estimator=PerDecision(estimator=GaussianActions()),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam),),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value),),
        aggregation=DecisionMean(),
        min_group=1,
        families=("control",),
    )
