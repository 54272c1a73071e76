"""DeepSeek-V3.2's GRPO: the KL estimate weighted by the ratio, and bad completions that have drifted left out
(arXiv:2512.02556)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import SequenceDrift
from flowrl.parts.trust_regions import WeightedKL

PAPER = "arXiv:2512.02556"


def grpo_v32(
    *, clip: float = 0.2, kl: float = 1e-3, drift: float = 0.1, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As TRL has both (``use_bias_correction_kl``, ``off_policy_mask_threshold``). The report prints neither the weight
    of the KL nor the threshold: .001 is TRL's suggestion, .1 is ours. Routers and sampling masks are not replayed."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        regularizers=(WeightedKL(kl),) if kl else (),
        loss_masks=(SequenceDrift(drift),),
    )
