"""80/20: only the fifth of the tokens with the highest entropy is trained (arXiv:2506.01939)."""

from dataclasses import replace

from flowrl.algorithms.dapo import dapo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import TopEntropy

PAPER = "arXiv:2506.01939"


def forking_tokens(
    *, share: float = 0.2, low: float = 0.2, high: float = 0.28, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """The paper's setting: `dapo` with its overlong filtering, and TRL's ``top_entropy_quantile``:
    the quantile is that of the whole optimiser batch, and the tokens left out stay in the mean. ``share=1`` is the
    base."""
    return replace(
        dapo(low=low, high=high, length=length, temperature=temperature),
        loss_masks=(TopEntropy(share),),
        mask_truncated_completions=True,
    )
