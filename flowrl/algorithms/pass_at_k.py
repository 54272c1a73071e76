"""Pass@k training: the exact advantage of one right answer among k (arXiv:2508.10751)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import PassAtK

PAPER = "arXiv:2508.10751"


def pass_at_k(*, k: int = 4, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The analytical form of RUCAIBox/Passk_Training. ``k=1`` is GRPO."""
    return replace(grpo(clip=clip, kl=0.0, length=length, temperature=temperature), advantage=PassAtK(k))
