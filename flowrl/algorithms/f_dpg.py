"""f-DPG: the policy gradient of any f-divergence to the reference tilted by the reward (arXiv:2302.08215)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import RawReward
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.divergences import Divergence, FDivergence

PAPER = "arXiv:2302.08215"


def f_dpg(
    *, kind: Divergence = "jensen_shannon", beta: float = 0.1, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """The formula of naver/disco's tuner with the policy itself as proposal. The target is ``reference exp(r / beta) /
    Z``. Differs: Z is each prompt's, estimated from its group, where the release has a running mean of one target; the
    baseline is the mean of the group's other samples, where it has a moving average."""
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=RawReward(baseline="none"),
        token_advantage=(FDivergence(kind, beta),),
        min_group=2,
    )
