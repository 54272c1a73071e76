"""coupled-GRPO: token scores from a random mask and its complement, so that every token is asked (DiffuCoder,
arXiv:2506.20639)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Coupled
from flowrl.parts.advantages import LeaveOneOut
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Every
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2506.20639"


def coupled_grpo(
    *,
    clip: float = 0.5,
    kl: float = 0.01,
    sync: int = 64,
    length: int = 256,
    steps: int = 256,
    block: int | None = None,
    temperature: float = 1.0,
    top_p: float = 0.95,
) -> Algorithm:
    """As released (apple/ml-diffucoder, ``coupled_grpo.py`` and ``recipes/config_coupled_code.yaml``, 8 Jul 2025):
    leave-one-out advantage; a token's score is half its log-probability under the full mask and half 1 / t (or 1 / (1 -
    t)) times that under the partial mask that hides it, t uniform on [.2, .8]; clipped ratio plus ``kl`` k3 to the
    reference, mean over all tokens of the batch. Rollouts by Dream's sampler, the most certain (by entropy) positions
    first, at temperature 1.0 and top-p .95. Every ``sync`` optimiser steps the reference becomes .4 of itself and .6 of
    the policy (TRL's default mixture); 0 keeps it.

    Optimiser: all weights, AdamW .9/.99, rate 1e-6 with a cosine to a tenth, weight decay .1, gradient norm .2; 10
    samples a prompt, 80 an update, two updates on the same samples with new masks (``train: {epochs: 2}``). The
    recipe's answers end at ``<|im_end|>``. t is one number a completion here, one a batch there. Its scores are about
    1.5 times a log-likelihood, which its wide clip absorbs, and are those of the untruncated model at temperature 1.
    """
    sampler = MaskedSampler(
        length=length,
        steps=steps,
        block=block,
        order="neg_entropy",
        schedule="time",
        temperature=temperature,
        top_p=top_p,
        tempered_order=True,
    )
    return replace(
        diffu_grpo(clip=clip, kl=kl),
        sampler=sampler,
        estimator=MaskedViews(views=Coupled(), per="token"),
        advantage=LeaveOneOut(),
        ema_weights=(Ema("reference", Every(sync, 0.4)),) if kl and sync else (),
    )
