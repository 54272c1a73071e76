"""APO: good samples are held less to the reference the harder the prompt, bad ones are blamed for length
(arXiv:2506.21655)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import AsymmetricPenalties

PAPER = "arXiv:2506.21655"


def apo_asym(
    *, clip: float = 0.2, kl: float = 1e-3, growth: float = 1.00001, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As released (Indolent-Kawhi/View-R1; asymmetric policy optimisation, not the anchored one of
    TRL), with the rule that its code has in use.

    Deviation: good samples are those above their group's mean, where the release looks at the whole part of the reward.
    """
    return replace(
        grpo(clip=clip, kl=kl, length=length, temperature=temperature),
        token_advantage=(AsymmetricPenalties(growth),),
    )
