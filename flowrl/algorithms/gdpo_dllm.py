"""GDPO, group *diffusion* policy optimisation: one ratio per completion from a bound integrated by quadrature
(arXiv:2510.08554)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Quadrature
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.emphases import ByLength
from flowrl.parts.objectives import ClippedMean

PAPER = "arXiv:2510.08554"


def gdpo_dllm(
    *,
    clip: float = 0.2,
    kl: float = 0.0,
    nodes: int = 3,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 1.0,
) -> Algorithm:
    """Gauss-Legendre nodes, one random mask each; the loss of a completion is divided by its relative length. Clip and
    KL weight are not published (unverified). Not to be confused with GDPO for several rewards
    (arXiv:2601.05242)."""
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(kl=kl, **sizes),
        estimator=MaskedViews(plan=Quadrature(nodes=nodes), kl="k2"),
        objective=ClippedMean(clip, clip),
        emphasis=ByLength(-1.0),
        aggregation=SampleMean(),
    )
