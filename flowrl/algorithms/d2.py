"""d2 (StepMerge): clipped token ratios at the states of a trajectory cut into equal segments of steps
(arXiv:2509.21474)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Trajectory
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2509.21474"


def d2(
    *,
    clip: float = 0.5,
    kl: float = 0.04,
    segments: int = 16,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 0.9,
) -> Algorithm:
    """As released (d2, commit 381b9f1, on d1's code): what a segment's steps fixed is scored in one forward at the
    segment's first state; diffu-GRPO's clip, k3 and token mean, with a clean prompt. One segment is diffu-GRPO without
    prompt masks, as many as steps is the exact trajectory. Released: 16 segments for Sudoku and Countdown, 8 for GSM8K
    and MATH; ``p_mask_prompt`` is in its configuration and not applied.

    Left out: AnyOrder, for models trained so that tokens attend in the order in which they are fixed. The sampler's
    settings are d1's.
    """
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    views = Trajectory(limit=segments, merge=-(-steps // max(segments, 1)), through="end", by="steps")
    return replace(diffu_grpo(clip=clip, kl=kl, **sizes), estimator=MaskedViews(views=views, per="cell"), redraw=False)
