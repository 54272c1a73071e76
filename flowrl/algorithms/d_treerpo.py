"""d-TreeRPO: completions of a masked model as leaves of a tree, branches compared with their siblings
(arXiv:2512.09675)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.tree_views import TreeLevels
from flowrl.parts.aggregations import RowMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import OncePerNode
from flowrl.parts.tree_advantages import Tree
from flowrl.samplers.masked import Order
from flowrl.samplers.masked_tree import MaskedTreeSampler

PAPER = "arXiv:2512.09675"


def d_treerpo(
    *,
    clip: float = 0.4,
    kl: float = 0.01,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 0.9,
    order: Order = "low_confidence",
    levels: int = 2,
    branches: int = 4,
) -> Algorithm:
    """The settings of THU-BPM/d-TreeRPO (3eb6f21): four branches at two levels, so that ``data.group`` is a multiple
    of 16; a branch's advantage is its value less the mean of its siblings'; the tokens of an edge are scored by one
    forward at its start, clipped, averaged over them and then over all edges, which weighs the deeper level four times
    as much (``loss_weight: uniform`` gives both the same, which is unbiased).

    Released optimiser: 12 epochs, rate 3e-5, LoRA 128/64. Left out: the self-distillation term (at most .003 times the
    divergence to what the better children agree on), and the sampler's avoidance of positions that siblings chose.
    """
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature, "order": order}
    return replace(
        diffu_grpo(clip=clip, kl=kl),
        sampler=MaskedTreeSampler(**sizes, levels=levels, branches=branches),
        estimator=MaskedViews(views=TreeLevels(levels=levels), per="cell"),
        advantage=Tree(against="siblings"),
        loss_weight=OncePerNode(),
        aggregation=RowMean(),
        redraw=False,
    )
