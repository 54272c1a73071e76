"""DenseGRPO: every step is credited with what the picture that it leads to without further noise gained by it
(arXiv:2601.20218)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.math.flow import FlowSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.step_advantages import Gain
from flowrl.samplers.previews import PreviewSampler
from flowrl.samplers.windows import EveryStep

PAPER = "arXiv:2601.20218"


def dense_grpo(
    *,
    clip: float = 1e-4,
    kl: float = 0.04,
    noise_level: float = 0.7,
    steps: int = 10,
    guidance: float | None = None,
) -> Algorithm:
    """Reconstruction from the abstract (no code was to be had), on the settings of `flow_grpo`: the gain of a step is
    the reward of its state's deterministic completion less that of the state before, normalised over the group for
    every step. The noise that the paper adapts to each time is left out, because its rule is not told. An iteration
    scores ``steps`` pictures a sample.
    """
    return replace(
        flow_grpo(clip=clip, kl=kl),
        sampler=PreviewSampler(steps=steps, dynamics=FlowSDE(noise_level), window=EveryStep(drop=1), guidance=guidance),
        advantage=Gain(scale="group", ddof=0, eps=1e-4),
    )
