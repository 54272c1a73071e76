"""TraceRL: clipped token ratios at the states that the sampler visited, steps merged into views (arXiv:2509.06949)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Trajectory
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import RowMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regularizers import KLToOld

PAPER = "arXiv:2509.06949"


def tracerl(
    *,
    clip: float = 0.2,
    kl: float = 0.01,
    merge: int = 8,
    length: int = 512,
    steps: int = 512,
    block: int | None = 32,
    temperature: float = 0.8,
) -> Algorithm:
    """As released for full-attention models (Gen-Verse/dLLM-RL, 28 Jan 2026, ``train/rl_llada.py`` with
    ``configs/rl_llada.yaml``): the mean over a view's tokens of the clipped loss plus ``kl`` times the *sum* over them
    of k3 to the policy that sampled, then the mean over all views of the batch, so that completions of many views weigh
    more. Scores at temperature 1 though tokens are drawn at .8, the end token and what follows it are not asked for,
    positions are chosen by the drawn token, the advantage is divided by the population's standard deviation.

    Optimiser: AdamW .9/.999, rate 1e-6, no weight decay, gradient norm 1; 32 prompts x 8. Left out: the value model and
    the approximate cache. Options we prefer: ``estimator: {tempered: true, views: {through: all}}`` with ``sampler:
    {order: max_prob}`` scores what was sampled, exactly (see `trajectory_pg`); ``aggregation: sample_mean`` with
    ``loss_weight: equal_views`` lets every completion count the same.
    """
    views = -(-steps // max(merge, 1))  # `Trajectory` says what is wrong with less than 1
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(clip=clip, kl=0.0, **sizes),
        estimator=MaskedViews(views=Trajectory(limit=views, merge=merge, through="before_end"), per="cell"),
        advantage=GroupCentred(ddof=0, clip=None),
        regularizers=(KLToOld(kl, summed=True),) if kl else (),
        aggregation=RowMean(),
        redraw=False,
    )
