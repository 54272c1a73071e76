"""GRPO-Guard: a normalised log-ratio and balanced steps against over-optimisation (arXiv:2510.22319)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import FlowSDE
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import InverseStep
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.types import CfgGrad

PAPER = "arXiv:2510.22319"


def grpo_guard(
    *,
    clip: float = 2e-6,
    kl: float = 0.0,
    noise_level: float = 0.7,
    steps: int = 10,
    cfg_grad: CfgGrad = "both",
    guidance: float | None = None,
) -> Algorithm:
    """`flow_grpo` with log-ratio ``mean(z (mean - old mean))``, whose spread does not depend on the step's noise, each
    step's loss divided by its length, and the standard deviation of the group. The settings of
    ``scripts/train_sd3_GRPO_Guard.py`` in yifan123/flow_grpo (4 Nov 2025): learning rate 1e-4 (``optimizer.lr``),
    clip 2e-6 for OCR and GenEval, 4e-6 for PickScore.

    Deviation: the release averages the squared shift of the mean over all samples of a batch before it enters each
    one's ratio; here each has its own, as the formula is written (gradients agree to a cosine of 1 - 1e-5).
    """
    return replace(
        flow_grpo(clip=clip, kl=kl),
        sampler=FlowSampler(
            steps=steps, dynamics=FlowSDE(noise_level), window=EveryStep(drop=1), record_mean=True, guidance=guidance
        ),
        estimator=Transitions(measure="noise", cfg_grad=cfg_grad),
        advantage=GroupCentred(scale="group", ddof=0, eps=1e-4),
        loss_weight=InverseStep(),
    )
