"""DDRL: clipped steps of the policy's own samples, and the denoising error of a data set in place of a KL
(arXiv:2512.04332)."""

from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import CPS
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import PerSource
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.mixtures import BySource, Denoised
from flowrl.parts.objectives import Clipped
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.mixed import Mixed
from flowrl.samplers.windows import EveryStep

PAPER = "arXiv:2512.04332"


def ddrl(
    *,
    data: float = 0.01,
    columns: tuple[str, ...] = ("image",),
    clip: float = 1e-4,
    noise: float = 0.193,
    steps: int = 20,
    share: float = 0.5,
    guidance: float | None = 1.0,
) -> Algorithm:
    """The settings of nvidia-cosmos/cosmos-rl (89f2e5b, ``cosmos-predict2-5-2b-720-reason-embedding-ddrl``): a group is
    eight samples of the policy and a picture of the data set for their prompt (``data.group: 9``, column ``image``), no
    guidance, no KL, half of 20 steps trained, advantage over the group within 5, ratio of the mean squared deviation
    without its variance. Data may be real, or samples of the base itself.

    data: the weight of the denoising error beside 1 of the policy's loss; both are divided by their sum. At the noise
        levels of the trained steps, on the path from the sample's initial noise (``use_rl_sigma_and_noise``).
    noise: of the kernel CPS, whose churn (``s_churn`` 1 of 20 steps) raises the noise level by 1 / 21: .193.
    share: of the steps, drawn anew for each sample; the release trains every second.

    Differs: single steps instead of the two-step solver; the error of the velocity, without EDM's weight (which is t^2
    + (1 - t)^2 in these terms); one update from all steps of a sample instead of one from each; the paper's map of the
    reward, ``-exp(-A)`` (``exp_reward``, off in the release), is not there.
    """
    own = FlowSampler(steps=steps, dynamics=CPS(noise), window=EveryStep(drop=1), guidance=guidance)
    return Algorithm(
        sampler=Mixed(sampler=own, columns=columns),
        estimator=Transitions(measure="unit", fraction=share, path_error=True),
        advantage=GroupCentred(eps=1e-4),
        objective=BySource(Clipped(clip, clip), Denoised()),  # pyright: ignore[reportArgumentType]  (properties for constants)
        aggregation=PerSource(share=data / (1 + data)),
        min_group=len(columns) + 2,
    )
