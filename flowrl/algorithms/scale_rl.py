"""ScaleRL: CISPO with the standard deviation of the batch, groups that scored alike left out (arXiv:2510.13786)."""

from dataclasses import replace

from flowrl.algorithms.cispo import cispo
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.selections import DropFlatGroups

PAPER = "arXiv:2510.13786"


def scale_rl(*, high: float = 4.0, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As TRL reproduces its loss (``loss_type: cispo``, cap 5, ``scale_rewards: batch``), with the paper's filter of
    prompts without spread.

    Deviation: a mean over all tokens; the paper takes that of each prompt first. Curriculum and forced ends of long
    completions belong to its data and sampler.
    """
    return replace(
        cispo(high=high, length=length, temperature=temperature),
        advantage=GroupCentred(scale="global", clip=None),
        selection=DropFlatGroups(),
    )
