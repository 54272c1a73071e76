"""LENS: wrong answers are penalised by how sure they were, so groups without a right one teach (arXiv:2510.08696)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.advantages import RawReward
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import ConfidencePenalty

PAPER = "arXiv:2510.08696"


def lens(*, difficulty: float = 1.0, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Reconstruction from sections 4.1 to 4.3: the probability of a completion is taken per token, and every prompt is
    as hard as one with a single right answer; the paper's estimates of both are not public."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        advantage=RawReward(),
        token_advantage=(ConfidencePenalty(difficulty),),
    )
