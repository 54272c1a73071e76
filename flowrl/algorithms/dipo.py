"""DiPO (DiRL): TraceRL's token ratios at every step of a rollout, with a wider upper clip and a reference
(arXiv:2512.22234)."""

from dataclasses import replace

from flowrl.algorithms.tracerl import tracerl
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Trajectory
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import KL
from flowrl.parts.selections import DropFlatGroups
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2512.22234"


def dipo(
    *,
    low: float = 0.2,
    high: float = 0.28,
    kl: float = 0.1,
    threshold: float | None = 0.9,
    length: int = 256,
    steps: int = 256,
    block: int | None = 4,
    temperature: float = 1.0,
) -> Algorithm:
    """A port of DiRL (commit ec4bfb3, for block-diffusion models, SDAR) to any masked model: every step of the rollout
    is a view, where a block model scores the r-th steps of all blocks together. Clip 1.28 above, fixed in its code;
    mean over all tokens, k3 to the reference, groups without spread left out. Tokens are drawn from the 50 most likely
    and scored among all, as released; ``estimator: {tempered: true}`` scores what was sampled.

    Left out: its bounds of a group's accuracy, .1 to .9, and the clamp of log-ratios at 10. Optimiser: rate 1e-6; 128
    prompts x 8. ``threshold`` fixes whatever is sure, ``steps`` counts without it.
    """
    sampler = MaskedSampler(
        length=length,
        steps=steps,
        block=block,
        order="low_confidence",
        threshold=threshold,
        temperature=temperature,
        top_k=50,
    )
    limit = steps if threshold is None else length
    return replace(
        tracerl(),
        sampler=sampler,
        estimator=MaskedViews(views=Trajectory(limit=limit, through="end"), per="cell"),
        objective=Clipped(low, high),
        regularizers=(KL(kl),) if kl else (),
        aggregation=DecisionMean(),
        selection=DropFlatGroups(),
    )
