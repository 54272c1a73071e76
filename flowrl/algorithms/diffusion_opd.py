"""DiffusionOPD: a flow is drawn to its teachers' predictions at the states that it visits itself (arXiv:2605.15055)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.estimators.states import VisitedStates
from flowrl.estimators.transitions import Transitions
from flowrl.parts.advantages import RawReward
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import TEACHER, Distil
from flowrl.parts.selections import AllSamples
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps
from flowrl.types import CfgGrad

PAPER = "arXiv:2605.15055"


def diffusion_opd(
    *,
    form: Literal["ode", "sde"] = "ode",
    of: Literal["next", "velocity", "clean"] = "next",
    noise_level: float = 0.7,
    steps: int = 10,
    guidance: float | None = None,
    cfg_grad: CfgGrad = "both",
) -> Algorithm:
    """As ported by verl-omni (a1139ba): on the student's own trajectory the KL of the kernels of every step but the
    last, ``|mean - teacher's|^2 / 2 s^2``, or, of deterministic sampling, half the square alone. The authors'
    release was not to be had; its ODE form and ten steps are those of a re-uploaded configuration of theirs.

    Needs ``teachers: {teacher: ...}``; several domains: ``{column: ..., members: {...}}``, with ``guidance`` of each.
    Rewards are only watched. of: what of the ODE form is compared, as Flow-Factory offers: the next state, the
    velocity or the clean latent, whose squares are ``(t' - t)^2``, 1 and ``t^2`` times that of the velocity.
    """
    sde = replace(
        flow_grpo(kl=0.0, noise_level=noise_level, steps=steps, guidance=guidance),
        estimator=Transitions(kl="exact", cfg_grad=cfg_grad),
        advantage=RawReward(),
        objective=Distil(of="kl"),
        selection=AllSamples(),
        teachers=(TEACHER,),
        min_group=1,
    )
    if form == "sde":
        return sde
    return replace(
        sde,
        sampler=FlowSampler(steps=steps, window=LastSteps(), guidance=guidance),
        estimator=VisitedStates(of=of, drop=1, cfg_grad=cfg_grad),
        objective=Distil(of="prediction", scale=0.5),
    )
