"""RPD: refined policy distillation, PPO with an imitation term towards a teacher's actions in the states that the
policy visits (arXiv:2503.05833)."""

from dataclasses import replace

from flowrl.algorithms.ppo import ppo
from flowrl.estimators.tokens import Tokens
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import TEACHER, Divergence

PAPER = "arXiv:2503.05833"


def rpd(*, weight: float = 1.0, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Reconstruction for language models from the abstract: the paper's is for robots, whose teacher's action is one
    vector and the term a squared error. Here it is ``weight KL(teacher | policy)`` over the vocabulary at every token
    that the policy says, the expected negative log-likelihood of the teacher's actions but for a constant; the weight
    is ours. ``weight`` 0 is `ppo`. Needs ``teachers: {teacher: ...}``."""
    base = ppo(length=length, temperature=temperature)
    if not weight:
        return base
    return replace(
        base,
        estimator=Tokens(divergence=0.0),
        regularizers=(*base.regularizers, Divergence(weight)),
        teachers=(TEACHER,),
    )
