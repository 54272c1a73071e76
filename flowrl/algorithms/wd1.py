"""wd1: weighted likelihood with positive and negative softmax weights, no ratio, old or reference policy
(arXiv:2507.08838)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.parts.advantages import SoftmaxContrast
from flowrl.parts.aggregations import SampleSum
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction

PAPER = "arXiv:2507.08838"


def wd1(
    *,
    weight_temperature: float = 1.0,
    corrupt: float = 0.15,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 0.9,
) -> Algorithm:
    """diffu-GRPO's one-step log-probabilities, summed over tokens, times ``softmax(a) - softmax(-a)``, summed over a
    group and averaged over groups, ``a`` the centred reward over ``weight_temperature``. As released (xiaohangt/wd1,
    ``rev_grpo_trainer.py``, 8 Jul 2025); its softmax runs over a device's batch, which in its settings (6 samples a
    prompt, 6 a device) is one group. Optimiser and rollouts are diffu-GRPO's."""
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(kl=0.0, corrupt=corrupt, **sizes),
        advantage=SoftmaxContrast(weight_temperature),
        objective=ScoreFunction(),
        aggregation=SampleSum(),
    )
