"""Flow-GRPO: clipped steps of an SDE with the flow's marginals, group credit, KL to the reference
(arXiv:2505.05470)."""

from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import FlowSDE
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import KL
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.types import CfgGrad

PAPER = "arXiv:2505.05470"


def flow_grpo(
    *,
    clip: float = 1e-4,
    kl: float = 0.04,
    noise_level: float = 0.7,
    steps: int = 10,
    cfg_grad: CfgGrad = "cond",
    guidance: float | None = None,
) -> Algorithm:
    """The released SD3.5 defaults: all steps stochastic, the last not trained, std over the whole batch."""
    return Algorithm(
        sampler=FlowSampler(steps=steps, dynamics=FlowSDE(noise_level), window=EveryStep(drop=1), guidance=guidance),
        estimator=Transitions(cfg_grad=cfg_grad),
        advantage=GroupCentred(scale="global", ddof=0, eps=1e-4),
        objective=Clipped(clip, clip),
        regularizers=(KL(kl),) if kl else (),
    )
