"""Online mirror descent of Kimi k1.5: REINFORCE with a centred reward and a square of the log-ratio
(arXiv:2501.12599)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.trust_regions import SquaredLogRatio

PAPER = "arXiv:2501.12599"


def kimi_opmd(*, tau: float = 0.1, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Reconstruction from section 2.3.2: ``-A log p + tau / 2 (sum of d)^2`` of whole completions with the group's mean
    as baseline. tau is not printed; the optimiser is to be reset every iteration there."""
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=GroupCentred(scale="none", clip=None),
        regularizers=(SquaredLogRatio(tau),),
        min_group=2,
    )
