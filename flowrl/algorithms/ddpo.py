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
    """The settings of kvablack/ddpo-pytorch (16 Nov 2023) for JPEG compressibility: all 50 steps, gradient through both
    guidance branches, and the last step ends at the first training time instead of 0, so that it has noise too.

    Steps whose noise is negligible are not trained (``window: {drop: null}``): none on Stable Diffusion's grid, the
    last ones on the grid of a flow model, where the release has no counterpart. Trained nevertheless, they spoil the
    rest: a step from 0.144 to 0.001 has standard deviation 0.001, and its ratio is 0 after the first update.
    ``buffer`` is 32 for the aesthetic reward. Deviation: the release puts the steps of a sample in random order, one
    optimiser step after all of them; the order does not change that step.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, dynamics=DDIM(eta), window=EveryStep(drop=None), end="first_trained"),
        estimator=Transitions(cfg_grad="both"),
        advantage=PromptTracker(buffer=buffer, min_count=16),
        objective=Clipped(clip, clip),
        min_group=1,
    )
