"""LOOP: DDPO's clipped steps with leave-one-out advantage (arXiv:2503.00897)."""

from dataclasses import replace

from flowrl.algorithms.ddpo import ddpo
from flowrl.parts.advantages import LeaveOneOut
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2503.00897"


def loop(*, clip: float = 1e-4, eta: float = 1.0, steps: int = 50) -> Algorithm:
    """No critic and no standard deviation, so the learning rate depends on the scale of the reward. K = ``data.group``.
    No code was released: the paper's own clip and learning rate are not known here, and DDPO's sampler, trained steps
    and clip are used."""
    return replace(ddpo(clip=clip, eta=eta, steps=steps), advantage=LeaveOneOut(), min_group=2)
