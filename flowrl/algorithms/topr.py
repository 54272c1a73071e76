"""TOPR: good completions are imitated, bad ones are let go once they have become unlikely (arXiv:2503.14286)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import Tapered

PAPER = "arXiv:2503.14286"


def topr(*, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As ported by agentscope-ai/Trinity-RFT: the sum over a completion's tokens, ratio of the whole completion between
    0 and 1. Good is above the group's mean; the paper takes rewards of 1 and -1 as they are."""
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=GroupCentred(scale="none", clip=None),
        objective=Tapered(),
        min_group=2,
    )
