"""Nash-MP: mirror prox for preferences, a policy that plays against a slow copy of itself (arXiv:2505.19731)."""

from dataclasses import replace

from flowrl.algorithms.nash_md import nash_md
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Ramp
from flowrl.samplers.rivals import MixtureSampler

PAPER = "arXiv:2505.19731"


def nash_mp(*, decay: float = 0.9, beta: float = 0.1, length: int = 256, temperature: float = 0.9) -> Algorithm:
    """`nash_md` with opponents of an average of the weights: the live policy is the extrapolated point, the slow copy
    the one that moves towards it. Its fixed point is the equilibrium itself. Reconstruction of the practical form from
    the abstract and notes: the decay, once an iteration, and beta are ours; exact prox steps are not taken."""
    sampler = MixtureSampler(length=length, temperature=temperature, mixture=1.0, to="slow", opponents=True)
    return replace(
        nash_md(beta=beta, length=length, temperature=temperature),
        sampler=sampler,
        ema_weights=(Ema("slow", Ramp(1.0, decay)),),
    )
