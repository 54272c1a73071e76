"""EPG: importance-weighted policy gradient on the denoising error of ODE samples (arXiv:2602.04663)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.evidence import EvidenceGradient
from flowrl.parts.regularizers import Prediction
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2602.04663"


def epg(
    *, reference: float = 1e-4, draws: int = 10, steps: int = 10, ratio: bool = True, exact: bool = False
) -> Algorithm:
    """The settings of jaemoo-choi/rethinking-diffusion-rl (c257000) for SD3.5: no guidance, second-order ODE rollouts
    of an old policy that follows the live one with decay ``min(0.001 n, 0.5)``, all ten times of the rollout's grid,
    the error of the predicted clean latent over its own size as likelihood, a prediction penalty. The study finds that
    the likelihood and the sampler matter, and hardly which of `epg`, `pepg` and `par` is trained.

    ratio: False is the release's ``_noratio``.
    exact: its "exact" advantage, ``0.1 (r - mean)``, whose factor is that of the reward over the KL's; by default
        ``(r - mean) / std``. That the std is that of all rewards is taken over from DiffusionNFT, on whose code it
        stands; so is ``reference``.
    """
    scaled = {"scale": "none", "clip": 10.0, "scaled_to": 1.0} if exact else {"scale": "global", "clip": None}
    return Algorithm(
        sampler=FlowSampler(steps=steps, solver="dpmpp_2m", guidance=1.0),
        estimator=Matching(draws=draws, times=GridTimes(fraction=1.0), weight="adaptive"),
        advantage=GroupCentred(ddof=0, eps=1e-4, **scaled),
        objective=EvidenceGradient(form="epg", ratio=ratio),
        regularizers=(Prediction(reference),) if reference > 0 else (),
        behaviour="old",
        ema_weights=(Ema("old", Ramp(slope=0.001, most=0.5)),),
    )
