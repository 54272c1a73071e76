"""GKD: the Jensen-Shannon divergence to a teacher, over the whole vocabulary, at every token of the student's own
completions (arXiv:2306.13649)."""

from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import RawReward
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import TEACHER, Distil
from flowrl.samplers.causal import CausalSampler

PAPER = "arXiv:2306.13649"


def gkd(*, beta: float = 0.5, length: int = 128, temperature: float = 0.9) -> Algorithm:
    """As TRL 1.16.0 has it (``experimental.gkd``): samples at temperature .9, the loss of the distributions at 1.

    Needs ``teachers: {teacher: ...}``. beta: 0 is ``KL(teacher | policy)``, 1 ``KL(policy | teacher)``; just inside
    these ends the loss is ``beta``, or ``1 - beta``, times as large (`flowrl.math.divergences`). Rewards are only
    watched. Deviation: all completions are the policy's own (TRL's ``lmbda=1``; its default draws half of the batches
    from the data set).
    """
    return Algorithm(
        sampler=CausalSampler(length=length, temperature=temperature),
        estimator=Tokens(tempered=False, divergence=beta),
        advantage=RawReward(),
        objective=Distil(),
        aggregation=DecisionMean(),
        teachers=(TEACHER,),
        min_group=1,
        families=("causal",),
    )
