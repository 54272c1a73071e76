"""FlowCPS: Flow-GRPO with coefficients-preserving sampling and its own density (arXiv:2509.05952)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import CPS
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.types import CfgGrad

PAPER = "arXiv:2509.05952"


def flow_cps(
    *,
    clip: float = 1e-4,
    kl: float = 0.04,
    noise: float = 0.7,
    steps: int = 10,
    cfg_grad: CfgGrad = "both",
    guidance: float | None = None,
) -> Algorithm:
    """The SD3.5 settings of IamCreateAI/FlowCPS (11 Sep 2025): those of `flow_grpo` with the CPS kernel,
    ``-mean (x' - mean)^2`` in place of the log-density, which is an implicit weight ``2 s^2`` per step, and the plain
    squared shift of the mean as its KL. The kernel does not preserve the flow's marginals (`flowrl.math.flow.CPS`).
    `flow_grpo_fast` uses it in a short window, without guidance.
    """
    return replace(
        flow_grpo(clip=clip, kl=kl),
        sampler=FlowSampler(steps=steps, dynamics=CPS(noise), window=EveryStep(drop=1), guidance=guidance),
        estimator=Transitions(measure="unit", kl="shift", cfg_grad=cfg_grad),
    )
