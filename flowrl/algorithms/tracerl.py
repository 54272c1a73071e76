"""TraceRL: clipped token ratios at the states that the sampler visited, steps merged into views (arXiv:2509.06949)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Trace
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.emphases import EqualViews
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
    """The released settings for full-attention models, without value model and cache; every view counts the same. The
    released rollouts choose positions by the drawn token, these by the state, whose trajectory gradient is exact.
    Scores have the sampler's temperature (released: 1), tokens behind the end in the last block are scored as they were
    drawn (released: not), and the KL is a mean over a view's tokens as the loss is (released: a sum)."""
    views = -(-steps // max(merge, 1))  # `Trace` says what is wrong with less than 1
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(clip=clip, kl=0.0, **sizes),
        estimator=MaskedViews(plan=Trace(limit=views, merge=merge), per="cell", tempered=True),
        advantage=GroupCentred(ddof=0, clip=None),
        emphasis=EqualViews(),
        regularizers=(KLToOld(kl),) if kl else (),
        aggregation=SampleMean(),
        redraw=False,
    )
