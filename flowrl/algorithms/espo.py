"""ESPO: one clipped ratio per completion from its likelihood bound, estimated on masks and their complements
(arXiv:2512.03759)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.bound_views import CountPairs
from flowrl.estimators.masked import MaskedViews
from flowrl.parts.advantages import LeaveOneOut
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Every
from flowrl.parts.objectives import ClippedMean
from flowrl.parts.regularizers import BoundKL

PAPER = "arXiv:2512.03759"


def espo(
    *,
    clip: float = 0.2,
    kl: float = 1e-3,
    pairs: int = 2,
    sync: int = 64,
    length: int = 256,
    steps: int = 256,
    block: int | None = 32,
    temperature: float = 1.0,
) -> Algorithm:
    """As released (ML-GSAI/ESPO, ``espo_trainer.py``, ``run_gsm8k_llada.sh``, Dec 2025): ``r = exp((B - B_old) / L)``,
    B from ``pairs`` of complementary masks (`CountPairs`), new ones for every epoch; clipped, mean over completions;
    leave-one-out advantage; ``kl (B - B_ref)^2 / (2 L)``. Every ``sync`` updates the reference becomes .4 of itself and
    .6 of the policy.

    Its scripts differ in ``kl`` (3e-3 Countdown, 1e-2 Sudoku and code) and ``clip`` (0 for Countdown, which is not "no
    clip": at ratio 1 half of the gradient passes, later the correcting side alone). Optimiser: AdamW .9/.99, rate
    3e-6, gradient norm .2, LoRA 128/64; 6 samples a prompt (16 MATH, 10 code), 8 epochs. Differs: L and the masks are
    those of the completion through its end token, not of the canvas.
    """
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(kl=0.0, **sizes),
        estimator=MaskedViews(views=CountPairs(pairs=pairs)),
        advantage=LeaveOneOut(),
        objective=ClippedMean(clip, clip, by_length=True),
        regularizers=(BoundKL(kl),) if kl else (),
        aggregation=SampleMean(),
        ema_weights=(Ema("reference", Every(sync, 0.4)),) if kl and sync else (),
    )
