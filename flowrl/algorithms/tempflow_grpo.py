"""TempFlow-GRPO: siblings that differ in the noise of one step are compared, and the step is weighted by its noise
(arXiv:2508.04324)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.math.flow import FlowSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import StepNoise
from flowrl.parts.tree_advantages import Siblings
from flowrl.samplers.branching import OneStepSampler

PAPER = "arXiv:2508.04324"


def tempflow_grpo(
    *,
    clip: float = 1e-4,
    noise_level: float = 0.7,
    steps: int = 10,
    siblings: int = 6,
    weight: float = 2.25,
    guidance: float | None = None,
) -> Algorithm:
    """As ported by Tencent-Hunyuan/UniRL (``tempflowgrpo.py``, 5e3dfd8): deterministic steps, ``siblings`` noises at
    one of them, deterministic steps again; the loss of step k has the factor ``weight * s_k``, s the kernel's standard
    deviation; no KL. All steps but the last take turns, so a ``data.group`` of ``siblings * (steps - 1)`` has each once
    from one start, and the authors' 4 starts are 216 samples; a smaller multiple of ``siblings`` goes through them over
    the iterations.

    Siblings are compared with each other, as the port's ``advantage_group: seed`` does; its default compares all
    samples of a prompt, whose starts differ too.
    """
    return replace(
        flow_grpo(clip=clip, kl=0.0),
        sampler=OneStepSampler(
            steps=steps, dynamics=FlowSDE(noise_level), siblings=siblings, choice="each", guidance=guidance
        ),
        advantage=Siblings(scale="group", ddof=0, eps=1e-4),
        loss_weight=StepNoise(by="noise", over="none", scale=weight),
    )
