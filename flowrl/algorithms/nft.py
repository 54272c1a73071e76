"""NFT: negative-aware fine-tuning, in which wrong answers train an implicit negative policy (arXiv:2505.18116)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dr_grpo import dr_grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.comparisons import Labels
from flowrl.parts.labels import NegativeAware
from flowrl.parts.selections import ReplaceFlatGroups

PAPER = "arXiv:2505.18116"


def nft(
    *,
    prompts: Literal["hard", "balanced", "even"] = "hard",
    wrong: float = 1.0,
    threshold: float = 0.5,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """NVlabs/NFT (``dp_actor.py``, ed8e5b0), the method for text, not DiffusionNFT: token ratios, wrong samples at full
    weight (.5 for its 32B model; 0 is rejection fine-tuning), groups that are all right or all wrong sampled anew,
    no KL. Rewards above ``threshold`` are right. Its sums over tokens are divided by 1000, here by ``length``."""
    return replace(
        dr_grpo(length=length, temperature=temperature),
        advantage=Labels(threshold, centred=True),
        objective=NegativeAware(prompts, wrong),
        selection=ReplaceFlatGroups(by="advantage"),
    )
