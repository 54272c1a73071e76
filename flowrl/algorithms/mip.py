"""MIP, minimal iterative policy: regression in two evaluations instead of a distribution (arXiv:2512.01809)."""

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.imitation import TwoEvaluations
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.records import Imitate
from flowrl.samplers.demonstrations import Demonstrations
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2512.01809"


def mip(*, environment: str = "avoid", decisions: int = 40, length: int = 200) -> Algorithm:
    """`diffusion_policy` with another loss and a model of kind ``mip``, which answers the chunk itself: at first from
    nothing, then once more from its first answer, learned at ``a + .1 e``. As
    simchowitzlabpublic/much-ado-about-noising (26 Mar 2026): squared errors over tau^2 and (1 - tau)^2, tau = .9, both
    for every step of the demonstrations; rate 1e-4, weight decay 1e-5, gradient norm 10, average .995.

    The paper has ``tau a + (1 - tau) e`` and ``tau a_1`` where the release has ``a + (1 - tau) e`` and ``a_1``, and
    weighs both errors the same; here it is as released. Deviation: means over numbers and errors, where there are sums
    (a constant factor). It makes no distribution: where demonstrations go two ways, it answers their mean.
    """
    acting = EpisodeSampler(sampler=FlowSampler(steps=2, guidance=1.0), environment=environment, decisions=decisions)
    return Algorithm(
        sampler=Demonstrations(sampler=acting, length=length),
        estimator=PerDecision(estimator=TwoEvaluations()),
        advantage=Imitate(),
        objective=ScoreFunction(),
        aggregation=DecisionMean(),
        redraw=True,
        min_group=1,
        families=("control",),
    )
