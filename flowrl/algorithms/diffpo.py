"""DiFFPO: clipped token ratios of a two-state surrogate, corrected to the sampler by importance weights
(arXiv:2510.02212)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.path_views import TwoStates
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.token_advantages import SurrogateImportance
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2510.02212"


def diffpo(
    *,
    clip: float = 0.5,
    cap: float = 2.0,
    kl: float = 0.0,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 0.9,
) -> Algorithm:
    """Reconstruction from notes of third parties; the authors' code is not public, and neither ``cap``, the law of the
    state nor the sampler's own training are confirmed (the sampler is not trained here). Tokens fixed before a random
    step are scored with everything hidden, later ones in that step's state (`TwoStates`); the loss of a token is
    diffu-GRPO's times ``min(p_surrogate / p_sampler, cap)`` of the policy that sampled.
    """
    sampler = MaskedSampler(length=length, steps=steps, block=block, temperature=temperature, keep_scores=True)
    return replace(
        diffu_grpo(clip=clip, kl=kl),
        sampler=sampler,
        estimator=MaskedViews(views=TwoStates(), per="cell", tempered=True),
        token_advantage=(SurrogateImportance(cap),),
        redraw=False,
    )
