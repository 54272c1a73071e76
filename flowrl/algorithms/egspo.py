"""EGSPO: PPO in which tokens of low entropy have an attenuated gradient, after supervised learning of demonstrations
(arXiv:2602.03309)."""

from dataclasses import replace

from flowrl.algorithms.ppo import ppo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import TopEntropy

PAPER = "arXiv:2602.03309"


def egspo(*, share: float = 0.2, attenuation: float = 0.5, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Reconstruction from the abstract: the ``share`` of the batch's tokens with the highest entropy has PPO's
    gradient, the others ``attenuation`` of it, with the same advantages; both numbers are ours. ``attenuation`` 1 is
    `ppo`, 0 has forking tokens alone. Its first stage is a run of `sft`, whose weights this one starts from."""
    base = ppo(length=length, temperature=temperature)
    return replace(base, loss_masks=(TopEntropy(share, rest=attenuation),))
