"""SPO: preferences between next states of the same denoising state (step-aware preference optimisation,
arXiv:2406.04314)."""

from dataclasses import replace

from flowrl.algorithms.d3po import d3po
from flowrl.math.flow import DDIM
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.tree_advantages import SiblingPair
from flowrl.samplers.branching import OneStepSampler

PAPER = "arXiv:2406.04314"


def spo_step(
    *,
    beta: float = 10.0,
    clip: float | None = 0.1,
    siblings: int = 4,
    least: float = 0.0,
    first: int = 4,
    steps: int = 20,
    guidance: float | None = None,
) -> Algorithm:
    """Loss and numbers of RockeyCoss/SPO (27a8642, SD1.5; SDXL: two siblings, LoRA 64), as in a mirror of it: several
    DDIM steps with full noise from one state, from the fifth of 20 on; the best against the worst of them, the ratio to
    the reference cut inside the logarithm as in `d3po`.

    least: pairs whose rewards are closer, after a softmax, are left out; .3 in the release (SDXL .4), whose rewards are
        a preference model's logits.
    Deviations: each group (``data.group: 4``) branches at one step, drawn anew, and ends without noise, and the reward
    of the picture judges the step; the release branches at every step, goes on from one of the states at random, and
    judges the clean latents they predict by a model trained on noisy ones, which is not built. The step before the last
    does not branch either: its noise is negligible on a flow model's grid.
    """
    return replace(
        d3po(beta=beta, clip=clip),
        sampler=OneStepSampler(
            steps=steps,
            dynamics=DDIM(1.0),
            candidates=tuple(range(first, steps - 2)),
            choice="group",
            siblings=siblings,
            guidance=guidance,
        ),
        advantage=SiblingPair(least),
    )
