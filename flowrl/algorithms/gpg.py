"""GPG: group-centred REINFORCE over the groups that differ, without clip, reference or critic (arXiv:2504.02546)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.selections import DropFlatGroups

PAPER = "arXiv:2504.02546"


def gpg(*, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Dividing by the fraction of groups with a spread, as the paper does, is the mean over those groups."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        advantage=GroupCentred(scale="none", clip=None),
        objective=ScoreFunction(),
        selection=DropFlatGroups(),
    )
