"""LUFFY: groups that hold a demonstration, whose probability is shaped in place of a ratio (arXiv:2504.14945)."""

from dataclasses import replace

from flowrl.algorithms.dr_grpo import dr_grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.comparisons import AllSources
from flowrl.parts.mixtures import BySource, ShapedProbability
from flowrl.parts.objectives import Clipped
from flowrl.samplers.mixed import Mixed

PAPER = "arXiv:2504.14945"

UNCLIPPED = 1e9


def luffy(
    *,
    gamma: float = 0.1,
    clip: float | None = None,
    columns: tuple[str, ...] = ("completion",),
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """As ported by others (the authors' repository was not readable): one demonstration in a group of eight, in the
    group's mean; ``-A p / (p + .1)`` for its tokens, the ratio for the others, without a clip, a standard deviation or
    a KL, sums over tokens divided by a fixed length. ``clip`` is PPO's for the policy's own samples. The entropy bonus
    of .001 of its script is left out."""
    base = dr_grpo(length=length, temperature=temperature)
    own = Clipped(1.0, UNCLIPPED) if clip is None else Clipped(clip, clip)
    return replace(
        base,
        sampler=Mixed(sampler=base.sampler, columns=columns),
        advantage=AllSources(base.advantage),
        objective=BySource(own, ShapedProbability(gamma)),
        min_group=len(columns) + 2,
    )
