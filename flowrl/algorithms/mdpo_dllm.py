"""MDPO of masked diffusion: every step's prediction of the whole completion is rewarded, and trained where that tells
most (arXiv:2508.13148)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.path_views import RecordedSteps
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import ViewWeight
from flowrl.parts.objectives import ConfidentClipped
from flowrl.parts.regularizers import KL
from flowrl.parts.step_advantages import Outlook
from flowrl.parts.token_advantages import LargestSteps
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2508.13148"


def mdpo_dllm(
    *,
    clip: float = 0.2,
    kl: float = 0.0,
    keep: int = 16,
    length: int = 512,
    steps: int = 128,
    temperature: float = 0.1,
) -> Algorithm:
    """As released (autonomousvision/mdpo e6ae439; not `mdpo`, mirror descent): the advantage of a step is what its
    prediction gained plus the mean reward of later ones, over the deviation + 1e-4 of the group's at that step; of the
    ``keep`` steps with the largest, all predictions, also rejected ones, are trained with a clipped ratio, times length
    over number masked and their probability when drawn, over the number of them. No gradient of the sampler's path.

    Every reward is called once a step. The centring is within groups, where the release's is right for one group a
    batch alone. The old log-probabilities of all steps are measured once, one more forward each; the release's are
    the live ones. Optimiser: all weights, rate 1e-5; 4 samples a prompt; prompts chosen for answers that get worse.
    """
    sampler = MaskedSampler(
        length=length,
        steps=steps,
        block=None,
        order="low_confidence",
        temperature=temperature,
        keep_steps=True,
    )
    return replace(
        diffu_grpo(kl=0.0),
        sampler=sampler,
        estimator=MaskedViews(views=RecordedSteps(limit=steps, weight="hidden"), per="cell", kl="k2"),
        advantage=Outlook(),
        token_advantage=(LargestSteps(keep),),
        loss_weight=ViewWeight(),
        objective=ConfidentClipped(clip, clip),
        regularizers=(KL(kl),) if kl else (),
        redraw=False,
    )
