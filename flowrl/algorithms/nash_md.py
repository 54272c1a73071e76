"""Nash-MD: policy gradient on preferences against the geometric mixture of policy and reference (arXiv:2312.00886)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.estimators.tokens import Tokens
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.comparisons import WinRate
from flowrl.parts.regularizers import KL
from flowrl.parts.selections import OwnSamples
from flowrl.samplers.rivals import MixtureSampler

PAPER = "arXiv:2312.00886"


def nash_md(*, mixture: float = 0.5, beta: float = 0.1, length: int = 256, temperature: float = 0.9) -> Algorithm:
    """TRL 1.0.0 (``NashMDTrainer``): ``-(P - 1/2) log p + beta sum_t sg(log p / p_reference) log p`` of the policy's
    samples, P against the mixture's by ``sigmoid(r - r')``; here against all of the mixture's samples of the group,
    half of it, where TRL has one of each. The mixture is token by token, and so is the KL, which misses what a token
    does to later ones. Where rewards are wins themselves take the preference ``step``.

    A constant mixture has a biased fixed point: let it shrink for the Nash equilibrium, or use `nash_mp`."""
    return replace(
        reinforce(length=length, temperature=temperature),
        sampler=MixtureSampler(length=length, temperature=temperature, mixture=mixture, opponents=True),
        estimator=Tokens(kl="k2"),  # whose gradient is that of the KL's score function
        advantage=WinRate("sigmoid", "rivals"),
        regularizers=(KL(beta),) if beta else (),
        selection=OwnSamples(),
        min_group=2,
    )
