"""Online DPO: DPO on the best and the worst of the answers that the policy gives itself (OAIF, arXiv:2402.04792)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dpo import dpo
from flowrl.parts.advantages import BestVersusWorst
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import PairLoss, Preference
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2402.04792"


def dpo_online(
    *,
    loss: PairLoss = "sigmoid",
    beta: float = 0.1,
    length: int = 64,
    temperature: float = 0.9,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """As ported by TRL (1.16, OnlineDPOTrainer), with a reward in place of the judge: beta .1, temperature .9, 64
    tokens, scores that are sums (also of ``ipo``, unlike offline). TRL makes two answers of a prompt, ``data.group:
    2``; of more the best and the worst are taken. Pairs of equal reward are left out (TRL prefers the first)."""
    causal, masked = (
        CausalSampler(length=length, temperature=temperature),
        MaskedSampler(length=length, steps=length, block=None, temperature=temperature),
    )
    return replace(
        dpo(length=length, draws=draws, family=family),
        sampler=causal if family == "causal" else masked,
        advantage=BestVersusWorst(),
        objective=Preference(loss, beta),
    )
