"""Flow-GRPO-Fast: noise and training in a short random window, deterministic steps elsewhere (arXiv:2505.05470,
released code)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import CPS, FlowSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import RandomWindow

PAPER = "arXiv:2505.05470"


def flow_grpo_fast(
    *,
    clip: float = 1e-5,
    kl: float = 0.0,
    noise: float = 0.8,
    steps: int = 10,
    size: int = 3,
    guidance: float | None = 1.0,
    kernel: Literal["cps", "sde"] = "cps",
) -> Algorithm:
    """The settings without guidance of yifan123/flow_grpo (4 Nov 2025, ``geneval_sd3_fast_nocfg`` and
    ``pickscore_sd3_fast_nocfg``): FlowCPS's kernel and measure, three steps that lie in the first half, no KL.

    kernel: ``cps``, or ``sde``, the kernel of `flow_grpo`, of which ``noise`` is then the noise level.
    Its guided configuration (``pickscore_sd3_fast``) is ``guidance: 4.5, size: 2, kernel: sde``; the first code of it
    (July 2025) branched nine samples from a shared prefix, which is not built.

    Deviation: the window is shared by an iteration, see `RandomWindow`.
    """
    kind = CPS(noise) if kernel == "cps" else FlowSDE(noise)
    return replace(
        flow_grpo(clip=clip, kl=kl),
        sampler=FlowSampler(steps=steps, dynamics=kind, window=RandomWindow(size=size), guidance=guidance),
        estimator=Transitions(measure="unit" if kernel == "cps" else "gaussian"),
    )
