"""HPT: for every prompt, RL where the policy succeeds and supervised learning on a demonstration where it does not
(arXiv:2509.04419)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.mixtures import BySource, Demonstrated
from flowrl.parts.selections import BySuccess
from flowrl.samplers.mixed import Mixed

PAPER = "arXiv:2509.04419"


def hpt(
    *,
    gate: int = 0,
    weight: float = 1.0,
    threshold: float = 0.5,
    columns: tuple[str, ...] = ("completion",),
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """TsinghuaC3I/Unify-Post-Training: where at most ``gate`` of a group's own samples are right (0 of 8; 2 for Llama),
    the demonstration alone with SFT's loss times ``weight`` (.3 for its 1.5B model), else the group's own samples alone
    with GRPO's, mean over all tokens of both kinds. ``gate`` -1 is GRPO, the group's size SFT. Rewards above
    ``threshold`` are right. Its further gate for off-policy RL on demonstrations is left out."""
    base = grpo(kl=0.0, length=length, temperature=temperature)
    return replace(
        base,
        sampler=Mixed(sampler=base.sampler, columns=columns),
        objective=BySource(base.objective, Demonstrated(weight)),
        selection=BySuccess(gate, threshold),
        aggregation=DecisionMean(),
        min_group=len(columns) + 2,
    )
