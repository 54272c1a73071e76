"""MixGRPO: SDE and training inside a sliding window, ODE outside (arXiv:2507.21802)."""

from typing import Literal

from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import FlowSDE
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import SlidingWindow

PAPER = "arXiv:2507.21802"


def mix_grpo(
    *,
    clip: float = 1e-4,
    noise_level: float = 0.7,
    steps: int = 25,
    size: int = 4,
    stride: int = 1,
    every: int = 25,
    order: Literal["progressive", "random"] = "progressive",
) -> Algorithm:
    """The FLUX settings of Tencent-Hunyuan/MixGRPO (8 Aug 2025); several rewards are normalised one by one and then
    summed; flat groups stay in the mean. Its Flash variant is ``sampler.solver=dpmpp_2m`` with fewer steps (the
    compressed grid after the window is not built). The release spaces its times by the fixed shift 3
    (``sampler: {shift: 3.0}``); by default the model's own scheduler does."""
    return Algorithm(
        sampler=FlowSampler(
            steps=steps,
            dynamics=FlowSDE(noise_level),
            window=SlidingWindow(size=size, stride=stride, every=every, order=order),
            share_noise=True,
        ),
        estimator=Transitions(cfg_grad="both"),
        advantage=GroupCentred(scale="group", ddof=1, eps=1e-8, merge="advantages"),
        objective=Clipped(clip, clip),
    )
