"""SFT: maximum likelihood of recorded completions or pictures, prompts left out of the loss (arXiv:2203.02155)."""

from dataclasses import replace
from typing import Literal

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import LogitNormalTimes
from flowrl.estimators.tokens import Tokens
from flowrl.estimators.views import RandomCount
from flowrl.parts.aggregations import DecisionMean, SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import PerToken
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.records import Imitate
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.samplers.recorded import Recorded

PAPER = "arXiv:2203.02155"


def sft(
    *,
    columns: tuple[str, ...] | None = None,
    length: int = 1024,
    draws: int = 1,
    family: Literal["causal", "masked", "diffusion"] = "causal",
) -> Algorithm:
    """Autoregressive: the mean over all completion tokens of an optimiser batch, TRL's (1.16) ``completion_only_loss``;
    defaults of its SFTConfig, without packing: with ``train.micro_tokens`` 5 % of what the network reads is padding.
    Masked: LLaDA's SFT (ML-GSAI/LLaDA, b7e6c35), the bound of every completion per token of its own, mean over
    completions, of ``draws`` mask draws each. Diffusion: the flow-matching error at logit-normal times, as diffusers
    trains SD3.

    Another run goes on from its adapter, as RL from a warm start: ``model.adapter: RUN/checkpoints/step_000100/peft``
    (``lora`` of diffusion models), which is then its reference as well; or ``stages`` of one config.

    columns: ``[completion]``, or ``[image]`` of pictures; of several each is a sample.
    Deviations of the masked form: the number of masked tokens is uniform (same mean, no 1/t weights; the release hides
    each with probability t from .001 to 1), and one end token is trained; the release also trains the padding up to the
    longest completion of its batch (``sampler.ends: all`` fills up to ``length``).
    """
    causal = Algorithm(
        sampler=Recorded(sampler=CausalSampler(length=length), columns=columns or ("completion",)),
        estimator=Tokens(),
        advantage=Imitate(),
        objective=ScoreFunction(),
        aggregation=DecisionMean(),
        min_group=1,
        families=(family,),
    )
    if family == "causal":
        return causal
    if family == "masked":
        masked = MaskedSampler(length=length, steps=length, block=None)
        return replace(
            causal,
            sampler=Recorded(sampler=masked, columns=columns or ("completion",)),
            estimator=MaskedViews(views=RandomCount(draws=draws)),
            aggregation=SampleMean(),
            loss_weight=PerToken(),
        )
    return replace(
        causal,
        sampler=Recorded(sampler=FlowSampler(steps=28), columns=columns or ("image",)),
        estimator=Matching(draws=draws, times=LogitNormalTimes()),
        aggregation=SampleMean(),
    )
