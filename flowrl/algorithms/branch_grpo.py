"""BranchGRPO: a tree of samples that share their first steps; an edge is compared with all edges of its depth
(arXiv:2509.06040)."""

from dataclasses import replace

from flowrl.algorithms.dance_grpo import dance_grpo
from flowrl.estimators.shared_steps import SharedTransitions
from flowrl.math.flow import DanceSDE
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.tree_advantages import Tree
from flowrl.samplers.branching import TreeSampler
from flowrl.samplers.windows import EveryStep

PAPER = "arXiv:2509.06040"


def branch_grpo(
    *, clip: float = 1e-3, noise: float = 0.3, steps: int = 20, forks: tuple[int, ...] = (0, 3, 6, 9), width: int = 2
) -> Algorithm:
    """The FLUX settings of Fredreic1849/BranchGRPO (ffc3c90): 16 leaves a tree, so ``data.group`` is a multiple of 16;
    a node's reward is the mean of its leaves, normalised over the nodes of its depth; every edge is trained once, so
    deeper levels weigh more (``estimator: {use: transitions}`` trains one for each of its leaves: every level alike).

    Differs: the release multiplies the noise of a fork by 4 and scores it as if it had not; here the tree is sampled
    from the policy. Its fusion by the softmax of mean log-densities is uniform at the size of an image, and left out,
    as is its pruning by width; that by depth is ``loss_weight: {use: without_events, events: [...]}``. Its last step is
    trained too (``sampler: {window: {drop: 0}}``).
    """
    return replace(
        dance_grpo(clip=clip),
        sampler=TreeSampler(
            steps=steps,
            dynamics=DanceSDE(noise),
            window=EveryStep(drop=1),
            forks=forks,
            width=width,
            decode_clean=True,
        ),
        estimator=SharedTransitions(cfg_grad="both"),
        advantage=Tree(against="depth", clip=5.0),
        aggregation=DecisionMean(),
    )
