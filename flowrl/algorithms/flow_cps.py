"""FlowCPS: coefficients-preserving sampling in a window, with its own density (arXiv:2509.05952)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo_fast import flow_grpo_fast
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import CPS
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import RandomWindow

PAPER = "arXiv:2509.05952"


def flow_cps(*, clip: float = 1e-5, noise: float = 0.8, steps: int = 10, size: int = 3) -> Algorithm:
    """`flow_grpo_fast` with the CPS kernel and ``-|x' - mean|^2`` in place of the log-density, which is an implicit
    weight
    ``2 s^2`` per step. The kernel does not preserve the flow's marginals (`flowrl.math.flow.CPS`)."""
    sampler = FlowSampler(steps=steps, dynamics=CPS(noise), window=RandomWindow(size=size), guidance=1.0)
    return replace(flow_grpo_fast(clip=clip), sampler=sampler, estimator=Transitions(measure="unit"))
