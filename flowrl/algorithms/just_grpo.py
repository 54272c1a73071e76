"""JustGRPO: a masked model decoded and scored from left to right, one token at a time, with plain GRPO
(arXiv:2601.15165)."""

from typing import Literal

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.path_views import Leftmost
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.selections import NonzeroAdvantage
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2601.15165"


def just_grpo(
    *,
    clip: float = 0.2,
    positions: Literal["all", "random", "low_logp", "entropy"] = "all",
    share: float = 0.25,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """As released (LeapLabTHU/JustGRPO, ``grpo.py`` and ``train.py``, 2026): clipped ratio of every token, its sum over
    the completion over ``length``, mean over the samples whose advantage is not 0; advantage over the group's standard
    deviation + 1e-4. One network row per token, one in memory at a time with ``train: {micro_batch: 1}``.

    ``positions`` other than ``all`` score a ``share`` of them, see `Leftmost`: ``low_logp`` is the "fast" form of
    NVIDIA NeMo-RL (.25), ``entropy`` the authors', both biased; ``random`` is not. What follows the end token is not
    sampled here; the release trains the whole canvas.

    Optimiser: all weights, AdamW .9/.999, rate 5e-6 constant, no weight decay, gradient norm 1; 16 samples a prompt, 64
    prompts an update, one update. The order is part of the policy: weights trained so lose what they learned when
    decoded in another order.
    """
    views = Leftmost(limit=length, positions=positions, share=share)
    return Algorithm(
        sampler=MaskedSampler(
            length=length,
            steps=length,
            block=1,
            order="leftmost",
            temperature=temperature,
            keep_scores=views.needs_scores,
        ),
        estimator=MaskedViews(views=views, tempered=True),
        advantage=GroupCentred(eps=1e-4, clip=None),
        objective=Clipped(clip, clip),
        selection=NonzeroAdvantage(),
        families=("masked",),
    )
