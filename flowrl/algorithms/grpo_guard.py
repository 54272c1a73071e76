"""GRPO-Guard: a normalised log-ratio and balanced steps against over-optimisation (arXiv:2510.22319)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import FlowSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.emphases import InverseStep
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.types import CfgGrad

PAPER = "arXiv:2510.22319"


def grpo_guard(
    *, clip: float = 2e-6, kl: float = 0.0, noise_level: float = 0.7, steps: int = 10, cfg_grad: CfgGrad = "cond"
) -> Algorithm:
    """`flow_grpo` with log-ratio ``mean(z (mean - old mean))``, whose spread does not depend on the step's noise,
    and each step's
    loss divided by its length. The published script was not available; formulas follow verl-omni's implementation."""
    return replace(
        flow_grpo(clip=clip, kl=kl),
        sampler=FlowSampler(steps=steps, dynamics=FlowSDE(noise_level), window=EveryStep(drop=1), record_mean=True),
        estimator=Transitions(measure="noise", cfg_grad=cfg_grad),
        emphasis=InverseStep(),
    )
