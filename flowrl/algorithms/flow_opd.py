"""Flow-OPD: a flow learns from teachers of its domains, which judge every stochastic step that it takes itself
(arXiv:2605.08063)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import TEACHER, ClippedDistance, Distil, TeacherReward
from flowrl.parts.selections import AllSamples

PAPER = "arXiv:2605.08063"


def flow_opd(
    *,
    mode: Literal["kl_only", "mixed", "gkd", "sampled"] = "kl_only",
    clip: float = 1e-4,
    kl: float = 0.04,
    noise_level: float = 0.7,
    steps: int = 10,
    guidance: float | None = None,
) -> Algorithm:
    """As CostaliyA/Flow-OPD (434ab16, 24 Jun 2026) has it, on Flow-GRPO's sampler, KL per unit of time and penalty
    to the reference. Needs ``teachers: {teacher: ...}``; several domains: ``{column: ..., members: {...}}``.

    mode: ``kl_only`` minus the KL of a step as its advantage, whose gradient is not stopped (`ClippedDistance`);
        ``mixed`` added to the rewards' advantage; ``gkd`` the KL itself as the loss, the same without the noise;
        ``sampled``, not of the release: the log-ratio of the step that was drawn, a policy gradient that works.

    Deviations: samples of zero reward advantage are left out there, also where rewards are not learned from, and
    teachers take turns by epoch; here each prompt asks its own. The aesthetic teacher (MAR) would be the reference.
    """
    base = replace(
        flow_grpo(clip=clip, kl=kl, noise_level=noise_level, steps=steps, guidance=guidance),
        selection=AllSamples(),
        teachers=(TEACHER,),
        min_group=2 if mode == "mixed" else 1,
    )
    if mode == "gkd":
        return replace(base, objective=Distil(of="kl"))
    if mode == "sampled":
        return replace(base, token_advantage=(TeacherReward(clip=5.0),))
    return replace(base, objective=ClippedDistance(clip, clip, task=float(mode == "mixed")))
