"""GKD: the Jensen-Shannon divergence to a teacher, over the whole vocabulary, at every token of the student's own
completions and of recorded ones (arXiv:2306.13649)."""

from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import RawReward
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import TEACHER, Distil
from flowrl.samplers.alternating import Alternating
from flowrl.samplers.causal import CausalSampler

PAPER = "arXiv:2306.13649"


def gkd(
    *,
    beta: float = 0.5,
    on_policy: float = 0.5,
    columns: tuple[str, ...] = ("completion",),
    seq_kd: bool = False,
    length: int = 128,
    temperature: float = 0.9,
) -> Algorithm:
    """As TRL 1.16.0 has it (``experimental.gkd``): samples at temperature .9, the loss of the distributions at 1.

    Needs ``teachers: {teacher: ...}``, and rewards that are only watched. beta: 0 is ``KL(teacher | policy)``, 1
    ``KL(policy | teacher)``; just inside these ends the loss is ``beta``, or ``1 - beta``, times as large
    (`flowrl.math.divergences`). on_policy: the share of iterations that learn from own samples (``lmbda``); the others
    learn from the prompts' ``columns`` (set ``data.group=1``), or, with ``seq_kd``, from the teacher's samples.
    Deviation: own completions alone are counted in the mean (TRL divides by the number of the data set's tokens).
    """
    sampler = CausalSampler(length=length, temperature=temperature)
    mixed = Alternating(sampler=sampler, columns=columns, share=on_policy, to=TEACHER if seq_kd else "")
    return Algorithm(
        sampler=sampler if on_policy == 1 else mixed,
        estimator=Tokens(tempered=False, divergence=beta),
        advantage=RawReward(),
        objective=Distil(),
        aggregation=DecisionMean(),
        teachers=(TEACHER,),
        min_group=1,
        families=("causal",),
    )
