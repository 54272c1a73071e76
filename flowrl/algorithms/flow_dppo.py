"""FlowDPPO: steps that have moved too far are left out, by a divergence that means the same at every resolution
(arXiv:2606.11025)."""

from dataclasses import replace

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.math.flow import FlowSDE
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import GaussianDivergence
from flowrl.parts.surrogates import Importance
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import RandomWindow

PAPER = "arXiv:2606.11025"


def flow_dppo(
    *,
    threshold: float = 1e-5,
    kl: float = 0.0,
    noise_level: float = 0.7,
    steps: int = 10,
    size: int = 3,
    guidance: float | None = 1.0,
) -> Algorithm:
    """As released in UniRL (``flowdppo.py``) for SD3.5: no guidance, noise
    level .7, three steps that lie in the first half, standard deviation of the whole batch, no KL; 48 prompts of 16,
    two updates, learning rate 3e-4. The kernel's own deviation is in the divergence (UniRL had that of `FlowSDE` for
    every kernel until its pull request 38).

    Deviation: the window is shared by an iteration, see `RandomWindow`.
    """
    window = RandomWindow(size=size)
    sampler = FlowSampler(
        steps=steps, dynamics=FlowSDE(noise_level), window=window, record_mean=True, guidance=guidance
    )
    return replace(
        flow_grpo(kl=kl), sampler=sampler, objective=Importance(), loss_masks=(GaussianDivergence(threshold),)
    )
