"""Diffusion-DPO: a logistic loss on the denoising errors of a preferred and a rejected sample (arXiv:2311.12908)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import LogitNormalTimes
from flowrl.parts.advantages import BestVersusWorst
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.contrasts import DecisionPair
from flowrl.parts.ema import Ema, Every
from flowrl.parts.selections import NonzeroAdvantage
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2311.12908"


def diffusion_dpo(
    *, beta: float = 100.0, refresh: int | None = 40, draws: int = 1, steps: int = 40, guidance: float | None = None
) -> Algorithm:
    """Online, as yifan123/flow_grpo trains SD3.5 (``train_sd3_dpo.py``, ac4c86e): best against worst of 24 samples a
    prompt that are made with guidance, one logit-normal time and one noise for both, no guidance in the loss, a
    reference that becomes the live policy every ``refresh`` updates (``None``: never). A pair's loss stands at both of
    its samples.

    beta: multiplies a mean over the latent's elements, halved as in the paper's code (margin times ``beta / 2``), so
        that larger latents are held less at the same number. Loss near log 2 for hundreds of steps is normal.
    Deviation: groups whose samples all score the same have no best, and are left out; the release pairs the first two.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=guidance),
        estimator=Matching(draws=draws, times=LogitNormalTimes(), share="group"),
        advantage=BestVersusWorst(),
        objective=DecisionPair(beta / 2),
        selection=NonzeroAdvantage(),
        ema_weights=() if refresh is None else (Ema("reference", Every(refresh, 0.0)),),
    )
