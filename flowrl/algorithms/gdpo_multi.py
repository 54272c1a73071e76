"""GDPO: several rewards, each normalised by itself before they are added (group reward-decoupled, arXiv:2601.05242)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.several_rewards import RewardDecoupled

PAPER = "arXiv:2601.05242"


def gdpo_multi(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As TRL has it (``multi_objective_aggregation: normalize_then_sum``) and NVlabs/GDPO for TRL: normalised over the
    samples of the batch in the end; its verl code does that over tokens. Not group diffusion policy optimisation."""
    return replace(grpo(clip=clip, kl=0.0, length=length, temperature=temperature), advantage=RewardDecoupled())
