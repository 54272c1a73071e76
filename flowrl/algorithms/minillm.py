"""MiniLLM: reverse KL to a teacher, by policy gradient for later tokens and exactly for each token itself
(arXiv:2306.08543)."""

from dataclasses import replace

from flowrl.algorithms.opd import opd
from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import Divergence, TeacherReward

PAPER = "arXiv:2306.08543"


def minillm(
    *,
    gamma: float = 0.0,
    normalised: bool = True,
    single_step: float = 1.0,
    task: float = 1.0,
    clip: float = 0.2,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """As ported by TRL 1.16.0 (``experimental.minillm``): the teacher's log-ratios, discounted by ``gamma`` (0 there,
    1 in the paper) and divided by the sum of discounts, are added to GRPO's advantage of the rewards (``task``), and
    the reverse KL over the vocabulary to the loss (``single_step``). ``task=0`` learns from the teacher alone.

    Deviations: TRL divides by the discounts from the completion's first token on where ``normalised`` is off, so that
    its sums are gamma^t too small; and it does not detach the advantage, which adds a term of expectation 0. The
    paper's sampling from a mixture with the teacher is left out, as TRL does.
    """
    return replace(
        opd(clip=clip, length=length, temperature=temperature),
        estimator=Tokens(divergence=1.0),
        advantage=GroupCentred(clip=None),
        token_advantage=(TeacherReward(gamma=gamma, normalised=normalised, task=task),),
        regularizers=(Divergence(single_step),) if single_step else (),
        min_group=2,
    )
