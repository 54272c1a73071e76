"""GTPO: tokens that good and bad completions share are not pushed down, and count twice (arXiv:2508.03772)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import ConflictTokens

PAPER = "arXiv:2508.03772"


def gtpo(*, most: float = 0.7, entropy: float = 0.1, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As released (winstonsmith1897/GTPO), no ratio and no KL.

    Deviations: a token that is shared from both ends counts twice, not four times, and a completion's loss is not
    divided by its number of shared tokens, which made it depend on how far the group agrees.
    """
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=GroupCentred(clip=None),
        token_advantage=(ConflictTokens(most, entropy),),
        aggregation=SampleMean(),
        min_group=2,
    )
