"""DiverseGRPO: Flow-GRPO with a bonus for pictures of small clusters, and a pull to the reference in early steps alone
(arXiv:2512.21514)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.estimators.transitions import Transitions
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.novelty import WithNovelty
from flowrl.parts.regularizers import EarlyKL
from flowrl.types import CfgGrad

PAPER = "arXiv:2512.21514"


def diverse_grpo(
    *,
    bonus: float = 0.2,
    kl: float = 1.0,
    early: float = 0.8,
    clip: float = 1e-4,
    noise_level: float = 0.7,
    steps: int = 10,
    cfg_grad: CfgGrad = "both",
    guidance: float | None = None,
) -> Algorithm:
    """Reconstruction from the paper's abstract and notes on it: no code is released. The forms are the paper's (a bonus
    that falls with the size of a spectral cluster; a Wasserstein distance to the reference in early steps, which of two
    kernels of one variance is the shift of the mean); ``bonus``, ``kl``, ``early`` and all else of the clusters are
    ours, the rest is Flow-GRPO's.

    bonus: times the watched reward ``rarity`` (``{use: rarity, train: false}``); without it there is none.
    kl: of the mean squared shift. early: in steps that begin at this t or above (three to four of ten on SD3.5's grid).
    """
    base = flow_grpo(clip=clip, kl=0.0, noise_level=noise_level, steps=steps, cfg_grad=cfg_grad, guidance=guidance)
    return replace(
        base,
        estimator=Transitions(kl="shift", cfg_grad=cfg_grad),
        advantage=WithNovelty(scale="global", ddof=0, eps=1e-4, bonus=bonus),
        regularizers=(EarlyKL(kl, above=early),) if kl else (),
    )
