"""Clip-Cov: a few tokens whose log-probability and advantage vary most together are not trained (arXiv:2505.22617)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import LowCovariance

PAPER = "arXiv:2505.22617"


def clip_cov(
    *,
    share: float = 2e-4,
    least: float = 1.0,
    most: float = 5.0,
    clip: float = 0.2,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """As verl has it (``clip_cov``, from PRIME-RL/Entropy-Mechanism-of-RL): .02
    % of the tokens, of covariance 1 to 5. ``share=0`` is the base."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        loss_masks=(LowCovariance(share, least, most, low=clip, high=clip),),
        aggregation=DecisionMean(),
    )
