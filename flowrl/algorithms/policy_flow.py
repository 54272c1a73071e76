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
    value: float = 2.0,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of a copy of the authors' code with changes of others (HarriWxy/PolicyFlow_srb 1e20dab, whose README
    names MoreInfoy/PolicyFlow, which was not available): 10 steps by the midpoint rule, clip .2 of ratio and value,
    ``brownian`` and ``entropy`` .01, one of the 21 times of the solver per decision, drawn anew in each epoch, squared
    value error; there rate 1e-4, weight decay 1e-5, 5 epochs of 4 minibatches.

    Deviations: the rate does not follow a KL of .01 (after each epoch there; here an algorithm knows no optimiser); a
    value beyond its clip is pulled back where that is worse, as in PPO, and is left alone there; the deviation starts
    at 1 standardised action, or at the model's own; time limits are no ends (there the value before the last decision
    counts); actor and critic have optimisers of their own.
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
