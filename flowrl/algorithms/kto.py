"""KTO: single recorded answers labelled good or bad, against the policy's distance to the reference
(arXiv:2402.01306)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dpo import dpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import Desirable
from flowrl.parts.records import Labelled
from flowrl.parts.selections import AllSamples
from flowrl.samplers.recorded import Recorded

PAPER = "arXiv:2402.01306"


def kto(
    *,
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    column: str = "completion",
    label: str = "label",
    length: int = 1024,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """Loss and defaults of ContextualAI/HALOs and TRL 1.16. The distance is estimated on the completion of the prompt
    before in the data set, whatever the order in which prompts are drawn (TRL needs sequential sampling for that); its
    mean is over the whole optimiser batch."""
    pairs = dpo(length=length, draws=draws, family=family)
    assert isinstance(pairs.sampler, Recorded)
    return replace(
        pairs,
        sampler=replace(pairs.sampler, columns=(column,), ratings=(label,), mismatched=True),
        advantage=Labelled(),
        objective=Desirable(beta, desirable, undesirable),
        selection=AllSamples(),
    )
