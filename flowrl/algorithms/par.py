"""PAR: a regression of the log-ratio on the advantage, by denoising errors (arXiv:2602.04663)."""

from dataclasses import replace

from flowrl.algorithms.epg import epg
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.evidence import EvidenceGradient

PAPER = "arXiv:2602.04663"


def par(
    *, reference: float = 1e-4, draws: int = 10, steps: int = 10, ratio: bool = True, exact: bool = False
) -> Algorithm:
    """``rho (A - (log p - log p_old))^2 / 2``, whose gradient is that of `pepg` everywhere, so that they are one
    method. Everything else is `epg`'s."""
    base = epg(reference=reference, draws=draws, steps=steps, exact=exact)
    return replace(base, objective=EvidenceGradient(form="par", ratio=ratio))
