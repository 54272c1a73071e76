"""DPPO: tokens are left out whose probability has moved too far, instead of a clip of ratios (arXiv:2602.04879)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import TokenDivergence
from flowrl.parts.objectives import ClippedWeight

PAPER = "arXiv:2602.04879"


def dppo_tv(*, threshold: float = 0.2, most: float = 20.0, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As verl and TRL have its binary masks (divergence PPO, not diffusion policies), with the .2 that prime-rl takes:
    the ratio, at most 20, weights the score. ``loss_masks: [{use: token_divergence, kind: kl, threshold: .05}]`` is
    the other divergence. The old policy is the trainer's, as in verl; TRL compares with the sampler."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=ClippedWeight(most - 1),
        loss_masks=(TokenDivergence(threshold),),
        aggregation=DecisionMean(),
    )
