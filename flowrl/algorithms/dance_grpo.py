"""DanceGRPO: constant-noise SDE, one initial noise per group, a random share of the steps (arXiv:2505.07818)."""

from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import DanceSDE
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep

PAPER = "arXiv:2505.07818"


def dance_grpo(*, clip: float = 1e-4, noise: float = 0.3, steps: int = 16, fraction: float = 0.6) -> Algorithm:
    """The FLUX settings of XueZeyue/DanceGRPO (16 Oct 2025). The last step's predicted clean latent is decoded, because
    at few steps the constant noise does not die out; no KL; standard deviation of the group; flat groups stay in the
    mean. For UNet models the paper uses DDIM(1): set ``sampler.dynamics``. The release
    spaces its times by the fixed shift 3 (``sampler: {shift: 3.0}``); by default the model's own scheduler does."""
    return Algorithm(
        sampler=FlowSampler(
            steps=steps, dynamics=DanceSDE(noise), window=EveryStep(drop=1), share_noise=True, decode_clean=True
        ),
        estimator=Transitions(fraction=fraction, cfg_grad="both"),
        advantage=GroupCentred(scale="group", ddof=1, eps=1e-8),
        objective=Clipped(clip, clip),
    )
