"""StableDRL: SPG's bounds with clipped importance weights that sum to one over the batch (arXiv:2603.06743)."""

from dataclasses import replace

from flowrl.algorithms.spg import spg
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.bounds import SelfNormalised
from flowrl.parts.loss_weights import Uniform

PAPER = "arXiv:2603.06743"


def stable_drl(
    *,
    high: float = 5.0,
    low: float = 0.0,
    omega: float = 0.5,
    power: float = 1.5,
    draws: int = 2,
    corrupt: float = 0.15,
    length: int = 256,
    steps: int = 128,
    block: int = 32,
    temperature: float = 0.9,
) -> Algorithm:
    """As released (JianyuanZhong/StableDRL, ``networks/llada_svpo.py`` and ``math_spg_snis.yaml``, 2026): ``-sum_i w_i
    A_i S_i`` with SPG's score S per token and ``w = softmax(min(log r, log high))``, r the ratio of the lower bounds
    per token, over the batch; clipped from above alone. The paper's text clips on both sides: ``{low: 0.8, high:
    1.2}``.

    Differs: new and old are scored on the same masks, so that w is 1/n before the first update; the release draws
    others, whose noise is in its weights. The sum is over the optimiser batch of all processes, there over a process's.
    Optimiser: all weights, AdamW .9/.99, rate 1e-6 (MATH 2e-6) falling to 0, weight decay .1, gradient norm .2; 16
    samples a prompt, 2 epochs; a further reward against bare boxed answers.
    """
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        spg(draws=draws, corrupt=corrupt, **sizes),
        objective=SelfNormalised(omega, power, high=high, low=low),
        loss_weight=Uniform(),
    )
