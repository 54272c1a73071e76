"""G2RPO: one stochastic step at a time, judged by several ends that walk the rest of the grid in strides of their own
(arXiv:2510.01982)."""

from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import FlowSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.tree_advantages import Siblings
from flowrl.samplers.branching import OneStepSampler

PAPER = "arXiv:2510.01982"


def g2rpo(
    *,
    clip: float = 1e-4,
    noise_level: float = 0.7,
    steps: int = 16,
    siblings: int = 12,
    candidates: tuple[int, ...] | None = None,
    merge: tuple[int, ...] = (1,),
    strides: tuple[int, ...] = (1, 2),
) -> Algorithm:
    """As ported by shengjun-zhang/VisualGRPO (809e8f7), the authors' later repository: FLUX, 12 siblings of one start
    at each step of the first half (``candidates``), normalised by their standard deviation for every stride. The ends
    of a step are samples of their own, which share it, so that its advantage is the mean over strides; the release adds
    them. ``data.group`` is a multiple of ``siblings * len(strides)``, 24; so many times the number of candidates has
    each of them once.

    Differs: the release makes an optimiser step for each candidate in turn. The last stride always ends at the clean
    picture, where the release ends at the last time that its stride meets and decodes the prediction there. It spaces
    its times by the fixed shift 3 (``sampler: {shift: 3.0}``); by default the model's own scheduler does.
    """
    return Algorithm(
        sampler=OneStepSampler(
            steps=steps,
            dynamics=FlowSDE(noise_level),
            candidates=candidates,
            stop=0.5,
            siblings=siblings,
            merge=merge,
            strides=strides,
        ),
        estimator=Transitions(cfg_grad="both"),
        advantage=Siblings(scale="group", ddof=1, eps=1e-8),
        objective=Clipped(clip, clip),
    )
