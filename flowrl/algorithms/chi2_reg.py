"""ORPO: PPO with a chi-squared bound to the reference on whole completions (correlated proxies, arXiv:2403.03185)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import ChiSquared

PAPER = "arXiv:2403.03185"


def chi2_reg(*, clip: float = 0.2, weight: float = 0.01, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The language-model form of cassidylaidlaw/llm_optimization (not odds-ratio preferences) with GRPO's advantage:
    the root of the mean over the batch; the weight is ours, the paper tunes it for every task."""
    return replace(grpo(kl=0.0, length=length, temperature=temperature), objective=ChiSquared(clip, weight))
