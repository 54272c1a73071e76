"""SePPO: preferred pictures of a data set against the policy's own of an earlier checkpoint (arXiv:2410.05255)."""

from dataclasses import replace

from flowrl.algorithms.diffusion_dpo import diffusion_dpo
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import TrainingTimes
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.contrasts import DecisionPair
from flowrl.parts.records import BySource
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.mixed import Mixed

PAPER = "arXiv:2410.05255"


def seppo(
    *,
    beta: float = 5000.0,
    refresh: int | None = 100,
    column: str = "chosen",
    draws: int = 1,
    steps: int = 20,
    guidance: float | None = None,
) -> Algorithm:
    """Reconstruction from the abstract, whose released repository has evaluation alone: a picture of the data set and
    one that the reference made for the same prompt (``data.group: 2``). Where the policy fits the data's picture at
    least as well as the reference does, the other one is the rejected one of `diffusion_dpo`; where it fits worse, the
    other one is taken for good, too. The reference is the policy of the last ``refresh`` updates' beginning; the paper
    chooses among several earlier checkpoints, at random where it wants to explore.

    ``beta`` is that of Diffusion-DPO, ``refresh`` ours.
    """
    return replace(
        diffusion_dpo(beta=beta, refresh=refresh),
        estimator=Matching(draws=draws, times=TrainingTimes(), weight="noise", share="group"),
        sampler=Mixed(sampler=FlowSampler(steps=steps, guidance=guidance), columns=(column,)),
        advantage=BySource(),
        objective=DecisionPair(beta / 2, anchor=True),
        behaviour="reference",
    )
