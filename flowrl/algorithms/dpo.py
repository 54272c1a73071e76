"""DPO: preferences between two recorded answers, by a logistic loss of their log-ratios to the reference
(arXiv:2305.18290)."""

from typing import Literal

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.tokens import Tokens
from flowrl.estimators.views import RandomCount
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import PairLoss, Preference
from flowrl.parts.records import RatedPair
from flowrl.parts.selections import NonzeroAdvantage
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.samplers.recorded import Recorded

PAPER = "arXiv:2305.18290"


def dpo(
    *,
    loss: PairLoss = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    sft: float = 0.0,
    tail: float = 1.0,
    weighted: bool = False,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    ratings: tuple[str, ...] = (),
    length: int = 1024,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """Loss and beta of eric-mitchell/direct-preference-optimization and TRL 1.16, whose further losses are options of
    the objective. Masked: likelihoods are bounds of ``draws`` views, the same for policy and reference (VRPO, LLaDA
    1.5, arXiv:2505.19223, whose released setting has eight).

    label_smoothing: conservative DPO, which TRL 1.16 accepts and ignores for this loss. tail: LD-DPO's alpha
    (arXiv:2409.06411), of causal models. weighted: WPO (arXiv:2406.11827), which the authors run at beta .01; likewise.
    """
    causal = family == "causal"
    return Algorithm(
        sampler=Recorded(
            sampler=CausalSampler(length=length) if causal else MaskedSampler(length=length, steps=length, block=None),
            columns=columns,
            ratings=ratings,
        ),
        estimator=Tokens(collision=weighted) if causal else MaskedViews(views=RandomCount(draws=draws)),
        advantage=RatedPair(),
        objective=Preference(
            loss,
            beta,
            label_smoothing,
            per_token=loss == "ipo",
            sft=sft,
            sft_over="batch",
            tail=tail,
            weighting="capped" if weighted else "off",
        ),
        selection=NonzeroAdvantage(),
        families=(family,),
    )
