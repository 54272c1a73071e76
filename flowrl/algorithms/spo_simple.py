"""SPO: a quadratic pull back to a ratio of 1 instead of a clip (simple policy optimization, arXiv:2401.16025)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import Quadratic

PAPER = "arXiv:2401.16025"


def spo_simple(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As released (MyRepositories-hub/Simple-Policy-Optimization), on tokens with GRPO's advantage; the paper has a
    critic and games."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Quadratic(clip),
        aggregation=DecisionMean(),
    )
