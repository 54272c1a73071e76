"""HAPO: advantage and clip of a token depend on its entropy, statistics are those of tokens (arXiv:2509.16591)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.advantages import RawReward
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import TokenGroup
from flowrl.parts.surrogates import EntropyClip

PAPER = "arXiv:2509.16591"


def hapo(
    *, clip: float = 0.2, strength: float = 1.0, dual: float = 10.0, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As the paper means it and starriver030515/HAPO nearly has it: see `EntropyClip` for the sign that
    its code loses (``objective: {signed: false}``).

    Deviation: the entropy-dependent temperature of its sampler (5 %) is left out, so that what is sampled is scored.
    """
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        advantage=RawReward(),
        token_advantage=(TokenGroup(),),
        objective=EntropyClip(clip, clip, dual, strength=strength),
        aggregation=DecisionMean(),
    )
