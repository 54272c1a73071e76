"""On-policy distillation: the teacher's log-ratio as the reward of every token of the policy's own completions
(arXiv:2306.13649)."""

from typing import Literal

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.tokens import Tokens
from flowrl.estimators.views import Trajectory
from flowrl.parts.advantages import RawReward
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import TEACHER, TeacherReward
from flowrl.parts.objectives import Clipped
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.masked import MaskedSampler

PAPER = "arXiv:2306.13649"


def opd(
    *,
    gamma: float = 0.0,
    task: float = 0.0,
    clip: float = 0.2,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 64,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """As practised, after verl 0.9.1 (``distillation_loss``: ``loss_mode`` k1 with ``use_policy_gradient``): a token is
    rewarded for itself, which follows the token-wise reverse KL; ``gamma=1`` follows that of whole completions.

    Needs ``teachers: {teacher: ...}``. task: weight of the rewards beside the teacher's; at 0 they are only watched.
    Masked models (our form, no release): of each token at the step at which the sampler, of ``steps`` and ``block``,
    fixed it, whose order gamma follows; one network row per step.
    """
    causal = family == "causal"
    sizes = {"steps": steps, "block": block, "order": "max_prob"}
    return Algorithm(
        sampler=CausalSampler(length=length, temperature=temperature)
        if causal
        else MaskedSampler(length=length, temperature=temperature, **sizes),
        estimator=Tokens() if causal else MaskedViews(views=Trajectory(limit=steps), per="cell", tempered=True),
        advantage=RawReward(),
        token_advantage=(TeacherReward(gamma=gamma, task=task),),
        objective=Clipped(clip, clip),
        aggregation=DecisionMean(),
        teachers=(TEACHER,),
        min_group=1,
        families=(family,),
    )
