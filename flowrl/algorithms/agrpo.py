"""AGRPO: the policy gradient of a masked sampler from some of its steps, drawn by the entropy of what they fixed
(arXiv:2510.04019)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.trajectory_pg import trajectory_pg
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.path_views import SampledSteps
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import ViewWeight
from flowrl.parts.objectives import Clipped
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2510.04019"


def agrpo(
    *,
    clip: float = 0.2,
    draws: int = 24,
    law: Literal["uniform", "entropy"] = "entropy",
    of: Literal["step", "path"] = "step",
    length: int = 384,
    steps: int = 128,
    block: int | None = 12,
    temperature: float = 0.6,
) -> Algorithm:
    """As released (probablyabot/agrpo, ICML 2026 code, ``train.yaml``): clipped ratios of the tokens that a drawn step
    fixed, summed, times its importance weight, mean over ``draws`` and samples; advantage centred without standard
    deviation; positions fixed at random, ``top_p=.99``, ``top_k=150``, scored as they were sampled. It estimates the
    mean over a completion's steps; ``of: path`` the sum, which is the gradient of the expected reward.

    Differs: the draws are stratified within a completion, not over a process's batch; the kept tokens are those of the
    weights in use, not stored masks over the vocabulary; the nucleus is counted among all tokens, not among the top k;
    an end token ends its block.
    Optimiser: AdamW .9/.99, rate 5e-6 with a cosine, weight decay .01, gradient norm 1, LoRA 64/64; 8 samples a prompt.
    """
    return replace(
        trajectory_pg(),
        sampler=MaskedSampler(
            length=length,
            steps=steps,
            block=block,
            order="random",
            temperature=temperature,
            top_p=0.99,
            top_k=150,
            keep_scores=law == "entropy",
        ),
        estimator=MaskedViews(views=SampledSteps(draws=draws, law=law, of=of), per="cell", tempered=True),
        advantage=GroupCentred(scale="none", clip=None),
        objective=Clipped(clip, clip),
        loss_weight=ViewWeight(),
    )
