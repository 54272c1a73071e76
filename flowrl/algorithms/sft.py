"""SFT: maximum likelihood of recorded completions, prompts left out of the loss (arXiv:2203.02155)."""

from typing import Literal

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.tokens import Tokens
from flowrl.estimators.views import RandomCount
from flowrl.parts.aggregations import DecisionMean, SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import PerToken, Uniform
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.records import Imitate
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.samplers.recorded import Recorded

PAPER = "arXiv:2203.02155"


def sft(
    *,
    columns: tuple[str, ...] = ("completion",),
    length: int = 1024,
    draws: int = 1,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """Autoregressive: the mean over all completion tokens of an optimiser batch, TRL's (1.16) ``completion_only_loss``;
    defaults of its SFTConfig, without packing. Masked: LLaDA's SFT (ML-GSAI/LLaDA, b7e6c35), the bound of every
    completion per token of its own, mean over completions, of ``draws`` mask draws each.

    Deviations of the masked form: the number of masked tokens is uniform (same mean, no 1/t weights; the release hides
    each with probability t from .001 to 1), and one end token is trained; the release also trains the padding up to the
    longest completion of its batch (``sampler.ends: all`` fills up to ``length``).
    """
    causal = family == "causal"
    return Algorithm(
        sampler=Recorded(
            sampler=CausalSampler(length=length) if causal else MaskedSampler(length=length, steps=length, block=None),
            columns=columns,
        ),
        estimator=Tokens() if causal else MaskedViews(views=RandomCount(draws=draws)),
        advantage=Imitate(),
        objective=ScoreFunction(),
        aggregation=DecisionMean() if causal else SampleMean(),
        loss_weight=Uniform() if causal else PerToken(),
        min_group=1,
        families=(family,),
    )
