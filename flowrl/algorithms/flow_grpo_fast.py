"""Flow-GRPO-Fast: noise and training in a short random window, deterministic steps elsewhere (arXiv:2505.05470,
released code)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.math.flow import FlowSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import RandomWindow

PAPER = "arXiv:2505.05470"


def flow_grpo_fast(
    *, clip: float = 1e-5, kl: float = 0.0, noise_level: float = 0.8, steps: int = 10, size: int = 3
) -> Algorithm:
    """`flow_grpo` with a window of ``size`` steps starting in the first half, no guidance and no KL. The window is
    shared by an
    iteration (the window variant of the released code, not the one that branches from a shared prefix)."""
    sampler = FlowSampler(steps=steps, dynamics=FlowSDE(noise_level), window=RandomWindow(size=size), guidance=1.0)
    return replace(flow_grpo(clip=clip, kl=kl), sampler=sampler)
