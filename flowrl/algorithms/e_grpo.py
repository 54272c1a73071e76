"""E-GRPO: one stochastic step at a time, made of several steps of the grid where they explore too little by themselves
(arXiv:2601.00423)."""

from flowrl.algorithms.g2rpo import g2rpo
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2601.00423"


def e_grpo(
    *,
    clip: float = 1e-4,
    noise_level: float = 0.7,
    steps: int = 16,
    siblings: int = 12,
    candidates: tuple[int, ...] = (0, 1, 2, 4),
    merge: tuple[int, ...] = (1, 1, 2, 3),
    strides: tuple[int, ...] = (1,),
) -> Algorithm:
    """The FLUX settings of shengjun-zhang/VisualGRPO (809e8f7, ``finetune_g2rpo_hps_merge``): those of `g2rpo` with
    steps 2 and 4 merged with the one and two that follow. A merged step has more noise: on SD3.5's grid of ten
    steps s = 1.10 instead of .54 for steps 1 and 2 together, so look at decoded samples first.

    Differs: the release goes on from a merged step as if it had not been merged, at a time that its state is not at.
    """
    return g2rpo(
        clip=clip,
        noise_level=noise_level,
        steps=steps,
        siblings=siblings,
        candidates=candidates,
        merge=merge,
        strides=strides,
    )
