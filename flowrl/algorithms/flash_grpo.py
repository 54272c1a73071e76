"""Flash-GRPO: one stochastic step per sample, the same for a whole group, weighted so that every step gains alike
(arXiv:2605.15980)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.math.flow import LinearSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import StepNoise
from flowrl.samplers.branching import OneStepSampler

PAPER = "arXiv:2605.15980"


def flash_grpo(
    *, clip: float = 1e-3, noise: float = 0.98, steps: int = 20, stop: float = 0.51, guidance: float | None = 4.5
) -> Algorithm:
    """The settings of Shredded-Pork/Flash-GRPO (2375974, ``wan2_1_flash``): the step is drawn for every prompt from the
    first .51 of the grid, its loss weighted by ``s / |B|`` of its kernel over the batch's mean, no KL.

    noise: ``g`` of the kernel at t = 1, from where it falls to 0 in a line; the release takes the second time of its
        grid, .983 with 20 steps and shift 3. Differs: its weights are a table for that grid (reproduced to .2 %), which
        is wrong on any other; here they are computed.
    """
    return replace(
        flow_grpo(clip=clip, kl=0.0),
        sampler=OneStepSampler(
            steps=steps, dynamics=LinearSDE(0.0, noise), stop=stop, choice="group", siblings=1, guidance=guidance
        ),
        loss_weight=StepNoise(by="equal", over="decisions"),
    )
