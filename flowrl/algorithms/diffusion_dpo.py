"""Diffusion-DPO: a logistic loss on the denoising errors of a preferred and a rejected sample (arXiv:2311.12908)."""

from typing import Literal

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import LogitNormalTimes
from flowrl.parts.advantages import BestVersusWorst
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.contrasts import DecisionPair
from flowrl.parts.ema import Ema, Every
from flowrl.parts.records import RatedPair
from flowrl.parts.selections import NonzeroAdvantage
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.recorded import Recorded

PAPER = "arXiv:2311.12908"


def diffusion_dpo(
    *,
    beta: float = 100.0,
    refresh: int | None = 40,
    pairs: Literal["sampled", "recorded"] = "sampled",
    columns: tuple[str, ...] = ("chosen", "rejected"),
    weight: Literal["uniform", "noise"] = "uniform",
    draws: int = 1,
    steps: int = 40,
    guidance: float | None = None,
) -> Algorithm:
    """Online, as yifan123/flow_grpo trains SD3.5 (``train_sd3_dpo.py``, ac4c86e): best against worst of 24 samples a
    prompt that are made with guidance, one logit-normal time and one noise for both, no guidance in the loss, a
    reference that becomes the live policy every ``refresh`` updates (``None``: never). A pair's loss stands at both of
    its samples.

    pairs: ``recorded`` takes the pictures of the data set's ``columns``. SalesforceAIResearch/DiffusionDPO (5233e75),
        for SD1.5 and SDXL: ``pairs: recorded, beta: 5000, refresh: null, weight: noise``, an even draw of the 1000
        training times (``estimator: {times: training_times}``), 2048 pairs an update.
    beta: multiplies a mean over the latent's elements, halved as in the paper's code (margin times ``beta / 2``), so
        that larger latents are held less at the same number. Loss near log 2 for hundreds of steps is normal.
    Deviation: groups whose samples all score the same have no best, and are left out; the release pairs the first two.
    """
    sampler = FlowSampler(steps=steps, guidance=guidance)
    own = pairs == "sampled"
    return Algorithm(
        sampler=sampler if own else Recorded(sampler=sampler, columns=columns),
        estimator=Matching(draws=draws, times=LogitNormalTimes(), weight=weight, share="group"),
        advantage=BestVersusWorst() if own else RatedPair(),
        objective=DecisionPair(beta / 2),
        selection=NonzeroAdvantage(),
        ema_weights=() if refresh is None else (Ema("reference", Every(refresh, 0.0)),),
    )
