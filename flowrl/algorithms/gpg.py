"""GPG: group-centred REINFORCE over the groups that differ, without clip, reference or critic (arXiv:2504.02546)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.selections import ReplaceFlatGroups

PAPER = "arXiv:2504.02546"


def gpg(*, length: int = 256, temperature: float = 0.7) -> Algorithm:
    """``-A log p``, mean over all tokens of the batch, A the centred reward. As released (AMAP-ML/GPG, 21 May 2025,
    ``open-r1/src/open_r1/gpg_trainer.py`` with ``train.sh``: ``scale_rewards False, adjust_gd, min_inverse_alpha
    .5``; its 7B recipe: temperature .7, rate 1e-6 constant after a tenth of warm-up, 8 samples a prompt, format .2 and
    accuracy 1.0 as rewards).

    Sampling goes on, up to 20 rounds, until half of the groups differ. The release then fills the batch up with flat
    groups and divides the loss by the share of the others (alpha); here flat groups leave the mean, which is the same
    where both are equally long, and points the same way always. The 21st round is no error.
    """
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        advantage=GroupCentred(scale="none", clip=None),
        objective=ScoreFunction(),
        selection=ReplaceFlatGroups(rounds=20, share=0.5),
        aggregation=DecisionMean(),
    )
