"""CHORD: GRPO with a share of supervised learning on demonstrations, weighed token by token (arXiv:2508.11408)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import PerSource
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.mixtures import BySource, Demonstrated
from flowrl.parts.schedules import WarmupCosine
from flowrl.samplers.mixed import Mixed

PAPER = "arXiv:2508.11408"


def chord(
    *,
    peak: float = 0.1,
    valley: float = 0.1,
    warmup: int = 0,
    decay: int = 100,
    phi: bool = True,
    columns: tuple[str, ...] = ("completion",),
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """Trinity-RFT: ``(1 - mu) GRPO + mu SFT``, each a mean over its own completions, mu in a line from 0 to ``peak`` in
    ``warmup`` iterations and by half a cosine to ``valley`` in ``decay`` more (.1 and .1 in the code; the paper's
    CHORD-mu starts near 1). ``phi``: each token of a demonstration times ``p (1 - p)``. No KL."""
    mu = WarmupCosine(sets="aggregation.share", peak=peak, valley=valley, warmup=warmup, decay=decay)
    base = grpo(kl=0.0, length=length, temperature=temperature)
    return replace(
        base,
        sampler=Mixed(sampler=base.sampler, columns=columns),
        objective=BySource(base.objective, Demonstrated(tokens="uncertain" if phi else "even")),
        aggregation=PerSource(base.aggregation, mu(0.0, {}, 0)),
        coefficients=(mu,) if warmup or peak != valley else (),
        min_group=len(columns) + 2,
    )
