"""TreeGRPO: a tree that forks at a few stochastic steps; the normalised rewards of its leaves are averaged back to the
edges (arXiv:2512.08153)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.math.flow import FlowSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.tree_advantages import Tree
from flowrl.samplers.branching import TreeSampler

PAPER = "arXiv:2512.08153"


def tree_grpo(
    *,
    clip: float = 1e-4,
    noise_level: float = 0.7,
    steps: int = 10,
    forks: tuple[int, ...] = (0, 1, 2),
    width: int = 3,
    guidance: float | None = None,
) -> Algorithm:
    """Reconstruction from the abstract and the project page (treegrpo.github.io; no code was to be had): all leaves
    start from one noise, the steps of ``forks`` are stochastic and trained, the others deterministic; the leaves'
    rewards are normalised in their tree and an edge has the mean of those below it. Width, forks, clip and kernel are
    ours. ``data.group`` is a multiple of ``width ** len(forks)``, 27.
    """
    return replace(
        flow_grpo(clip=clip, kl=0.0),
        sampler=TreeSampler(steps=steps, dynamics=FlowSDE(noise_level), forks=forks, width=width, guidance=guidance),
        advantage=Tree(against="tree", clip=5.0),
    )
