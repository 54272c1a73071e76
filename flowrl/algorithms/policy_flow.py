"""PolicyFlow: PPO on noise added to a flow's actions, around how far its velocity has moved (arXiv:2602.01156)."""

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.perturbed import Perturbation
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import Brownian, Entropy, ValueLoss
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.perturbed import PerturbedFlowSampler

PAPER = "arXiv:2602.01156"


def policy_flow(
    *,
    steps: int = 10,
    clip: float = 0.2,
    brownian: float = 0.01,
    entropy: float = 0.01,
    gamma: float = 0.99,
    lam: float = 0.95,
    value: float = 0.5,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """A reconstruction: the authors' code was not available, formulas and settings follow the abstract and a fork of
    others (HarriWxy/PolicyFlow_srb): clip .2 of ratio and value, ``brownian`` and ``entropy`` .01, one time of the grid
    per decision, drawn anew in each epoch; there rate 1e-4, 5 epochs of 4 minibatches.

    Deviations: Euler steps instead of the midpoint rule, whose times are drawn from as well there; the rate does not
    follow a desired KL; the deviation starts at 1 standardised action; time limits are no ends; advantages are whitened
    over an iteration. The weight of the value loss, .5, is the project's choice.
    """
    return Algorithm(
        sampler=EpisodeSampler(sampler=PerturbedFlowSampler(steps=steps), environment=environment, decisions=decisions),
        estimator=PerDecision(estimator=Perturbation()),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam),),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value), Entropy(entropy), Brownian(brownian)),
        aggregation=DecisionMean(),
        redraw=True,
        min_group=1,
        families=("control",),
    )
