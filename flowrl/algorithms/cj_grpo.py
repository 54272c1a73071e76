"""CJ-GRPO: clipped token ratios at every state of the rollout, as a mean of per-step means (arXiv:2509.23924)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Trajectory
from flowrl.parts.aggregations import StepMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Every
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2509.23924"


def cj_grpo(
    *,
    clip: float = 0.5,
    kl: float = 0.04,
    sync: int = 64,
    schedule: Literal["even", "doubling"] = "even",
    end_reserve: float = 1.0,
    length: int = 256,
    steps: int = 128,
    block: int | None = 128,
    temperature: float = 1.0,
) -> Algorithm:
    """As released (yjyddq/EOSER-ASS-RL, 30 Sep 2025, ``slurm_scripts/train.yaml``: semi-autoregressive decoding): every
    step of the rollout is scored at its own state, with diffu-GRPO's clip and k3, mean over the tokens that step k
    fixed in all samples, then over steps. Every ``sync`` updates the reference becomes .4 of itself and .6 of the
    policy.

    Its other decodings: ``{end_reserve: 0.01, block: null}`` is EOSER; ``{schedule: doubling, steps: 8, length: 256,
    block: null}`` is ASS, where ``aggregation: decision_mean`` keeps the first tokens from counting more than the last
    ones (`StepMean`). Positions are chosen by the drawn token, so the score is not that of the path. Optimiser and
    group are diffu-GRPO's. Tokens behind the end that a block was filled up with are scored; later blocks are not
    sampled.
    """
    views = Trajectory(limit=steps)
    return replace(
        diffu_grpo(clip=clip, kl=kl),
        sampler=MaskedSampler(
            length=length,
            steps=steps,
            block=block,
            order="low_confidence",
            schedule=schedule,
            end_reserve=end_reserve,
            temperature=temperature,
        ),
        estimator=MaskedViews(views=views, per="cell"),
        aggregation=StepMean(),
        ema_weights=(Ema("reference", Every(sync, 0.4)),) if kl and sync else (),
        redraw=False,
    )
