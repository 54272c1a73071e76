"""Pass@k by the best of a group: only the best sample learns, by how much it beats the second (arXiv:2503.19595)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import BestOverSecond

PAPER = "arXiv:2503.19595"


def grpo_passk(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As verl has it (``adv_estimator: grpo_passk``): the difference over the group's standard deviation."""
    return replace(grpo(clip=clip, kl=0.0, length=length, temperature=temperature), advantage=BestOverSecond())
