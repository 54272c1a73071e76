"""PEPG: the reward less its own KL, as a policy gradient on the denoising error (arXiv:2602.04663)."""

from dataclasses import replace

from flowrl.algorithms.epg import epg
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.evidence import EvidenceGradient

PAPER = "arXiv:2602.04663"


def pepg(
    *, reference: float = 1e-4, draws: int = 10, steps: int = 10, ratio: bool = True, exact: bool = False
) -> Algorithm:
    """The advantage loses what the likelihood has gained over the old policy, ``A - (log p - log p_old)``: the gradient
    of `epg` and of half the squared log-ratio, under the same weights. Everything else is `epg`'s."""
    base = epg(reference=reference, draws=draws, steps=steps, exact=exact)
    return replace(base, objective=EvidenceGradient(form="pepg", ratio=ratio))
