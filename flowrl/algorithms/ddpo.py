"""DDPO with importance sampling: PPO on the steps of a DDIM chain. Training Diffusion Models with RL
(arXiv:2305.13301)."""

from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import DDIM
from flowrl.parts.advantages import PromptTracker
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep

PAPER = "arXiv:2305.13301"


def ddpo(*, clip: float = 1e-4, eta: float = 1.0, steps: int = 50, buffer: int = 16) -> Algorithm:
    """The released defaults. The last step is not trained: in these coordinates it has no noise (the released code
    gives it some by ending at the first training time instead of 0). Both guidance branches carry gradient."""
    return Algorithm(
        sampler=FlowSampler(steps=steps, dynamics=DDIM(eta), window=EveryStep(drop=1)),
        estimator=Transitions(cfg_grad="both"),
        advantage=PromptTracker(buffer=buffer, min_count=16),
        objective=Clipped(clip, clip),
        min_group=1,
    )
