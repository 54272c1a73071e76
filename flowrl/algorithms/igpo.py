"""IGPO: where a whole group fails, samples that were led by parts of a solution take the place of some of its own
(arXiv:2509.10396)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import RandomTime
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import RescuedCentred
from flowrl.parts.objectives import Clipped
from flowrl.parts.selections import RescuedGroups
from flowrl.parts.token_advantages import GivenTokens
from flowrl.samplers.hinted import HintedSampler

PAPER = "arXiv:2509.10396"


def igpo(
    *,
    low: float = 0.2,
    high: float = 0.28,
    hints: int = 4,
    most: int = 4,
    correct: float = 1.0,
    column: str = "solution",
    length: int = 256,
    steps: int = 128,
    block: int | None = 64,
    temperature: float = 1.2,
) -> Algorithm:
    """A port of facebookresearch/igpo (e85eaea, ``trainer_igpo.py``): token ratios on one random mask, clipped to [.8,
    1.28], mean over the tokens that count; of hints, the fifth of which the policy was least certain; advantage without
    standard deviation over the mixed group. ``correct`` is the total reward of a solved prompt.

    The release samples hinted completions only for groups that fail; here the first ``hints`` of every ``data.group``
    are such, and unused where an own one is right. It spreads the chunks out to the canvas' length, here they stand at
    their own places. It takes its masks' rates from an even grid over 8 updates, here each epoch draws one. Its ratio
    of whole completions (GSPO) and the fine-tuning before are left out. Optimiser: AdamW .9/.99, rate 5e-7, gradient
    norm .2, LoRA 128/64.
    """
    return replace(
        diffu_grpo(kl=0.0),
        sampler=HintedSampler(
            length=length,
            steps=steps,
            block=block,
            order="low_confidence",
            temperature=temperature,
            column=column,
            hints=hints,
        ),
        estimator=MaskedViews(views=RandomTime(draws=1, low=0.12, weight="mean"), per="cell"),
        advantage=RescuedCentred(correct, most),
        selection=RescuedGroups(correct, most),
        token_advantage=(GivenTokens(),),
        objective=Clipped(low, high),
    )
