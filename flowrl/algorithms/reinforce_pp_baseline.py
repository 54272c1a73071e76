"""REINFORCE++ with a baseline: rewards less the mean of their group, whitened over all tokens of the batch
(arXiv:2501.03262)."""

from dataclasses import replace

from flowrl.algorithms.reinforce_pp import reinforce_pp
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2501.03262"


def reinforce_pp_baseline(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As verl has it (``adv_estimator: reinforce_plus_plus_baseline``). Its KL is a term of the loss: add
    ``regularizers: [kl]`` with ``estimator: {kl: k2}``."""
    return replace(
        reinforce_pp(clip=clip, kl=0.0, length=length, temperature=temperature),
        advantage=GroupCentred(scale="none", clip=None),
        min_group=2,
    )
