"""XPO: online DPO against samples of the reference, with a bonus for leaving what the reference says
(arXiv:2405.21046)."""

from dataclasses import replace

from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.advantages import RawReward
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regressions import ExploringPairs
from flowrl.samplers.rivals import MixtureSampler

PAPER = "arXiv:2405.21046"


def xpo(*, beta: float = 0.1, alpha: float = 1e-5, length: int = 256, temperature: float = 0.9) -> Algorithm:
    """TRL 1.0.0 (``XPOTrainer``): one half of a group from the policy, the other from the reference; DPO on pairs of
    one of each, labelled by reward, and ``alpha log p`` of the reference's. TRL has one pair a prompt; all pairs of
    the two halves here."""
    return replace(
        gvpo(length=length, temperature=temperature),
        sampler=MixtureSampler(length=length, temperature=temperature, mixture=1.0, opponents=True),
        advantage=RawReward(baseline="none"),
        objective=ExploringPairs(beta=beta, optimism=alpha),
    )
