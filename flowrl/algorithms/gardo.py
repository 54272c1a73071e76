"""GARDO: Flow-GRPO whose KL holds only the samples that other rewards doubt, to a reference that is renewed, and whose
advantage favours what is unlike its group (arXiv:2512.24138)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.controllers import Renewal
from flowrl.parts.ema import AtAge, Ema
from flowrl.parts.novelty import NoveltyScaled
from flowrl.parts.penalty_weights import Doubted
from flowrl.parts.regularizers import KL
from flowrl.types import CfgGrad

PAPER = "arXiv:2512.24138"


def gardo(
    *,
    clip: float = 1e-4,
    kl: float = 0.04,
    above: float = 3e-4,
    every: int = 15,
    judges: tuple[str, ...] = (),
    noise_level: float = 0.7,
    steps: int = 10,
    cfg_grad: CfgGrad = "both",
    guidance: float | None = None,
) -> Algorithm:
    """The SD3.5 settings for OCR of tinnerhrhe/GARDO (1cc77fb, also in yifan123/flow_grpo 94e23ee): one trained reward,
    judges that are watched (``train: false``; aesthetic and ImageReward there), and the watched reward ``novelty``.
    Without a judge the KL holds all samples; without ``novelty`` the advantage is the centred reward.

    kl: .04 for OCR, .07 for GenEval, .01 for FLUX. above, every: the reference becomes the live policy when the mean KL
        of the doubted samples is above the one, or after more iterations than the other. judges: see `Doubted`.

    As released, the gate takes the samples that the reward rates *below* the judges, against the paper's and its own
    description: ``penalty_weight: {rated: above}`` holds those that the reward likes too much, which hacking is.

    Differs: the KL is a mean over the doubted samples of an
    optimiser batch, not of nine. Its weight of a step, ``s / mean s``, is one of samples at the same step, so it is 1,
    and is left out. Of DiffusionNFT the release has the same gate on `Prediction`: ``{use: diffusion_nft,
    penalty_weight: {use: doubted, rated: below}}``.
    """
    base = flow_grpo(clip=clip, kl=0.0, noise_level=noise_level, steps=steps, cfg_grad=cfg_grad, guidance=guidance)
    if not kl:
        return replace(base, advantage=NoveltyScaled())
    return replace(
        base,
        advantage=NoveltyScaled(),
        regularizers=(KL(kl, to="anchor"),),
        penalty_weight=Doubted(judges, rated="below"),
        ema_weights=(Ema("anchor", AtAge()),),
        coefficients=(Renewal(above=above, every=every),),
    )
