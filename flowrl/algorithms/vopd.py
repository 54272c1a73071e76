"""vOPD: on-policy distillation whose reward has its own expectation, minus the KL over the vocabulary, as baseline
(arXiv:2605.07865)."""

from dataclasses import replace

from flowrl.algorithms.opd import opd
from flowrl.estimators.tokens import Tokens
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import TeacherReward

PAPER = "arXiv:2605.07865"


def vopd(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Reconstruction from the paper's formula; no release. The expected gradient is that of `opd`, minus that of the
    token-wise KL; its variance is lower in most cases, not in all: a state's value is not the best baseline."""
    return replace(
        opd(clip=clip, length=length, temperature=temperature),
        estimator=Tokens(divergence=1.0),
        token_advantage=(TeacherReward(baseline=True),),
    )
