"""IPO-MD: online IPO on pairs that the geometric mixture of policy and reference samples (arXiv:2403.08635)."""

from dataclasses import replace

from flowrl.algorithms.online_ipo import online_ipo
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.rivals import MixtureSampler

PAPER = "arXiv:2403.08635"


def ipo_md(*, tau: float = 0.1, mixture: float = 0.125, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """`online_ipo` but for the sampler; ``mixture`` 0 is it. Reconstruction from the formula: no released code; tau and
    the share of the reference are ours. Mixed token by token."""
    return replace(
        online_ipo(tau=tau, length=length, temperature=temperature),
        sampler=MixtureSampler(length=length, temperature=temperature, mixture=mixture),
    )
