"""DYPO: solved prompts left out, unsolved ones learned from several teachers' answers, the others by GRPO and an
alignment loss on the group's own pairs (arXiv:2604.08926)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.mixtures import BySource, Demonstrated, GroupAlignment
from flowrl.parts.selections import BySuccess, OwnSamples
from flowrl.samplers.mixed import Mixed

PAPER = "arXiv:2604.08926"


def dypo(
    *,
    alpha: float = 0.5,
    beta: float = 1.0,
    gamma: float = 1.0,
    gate: bool = True,
    threshold: float = 0.5,
    columns: tuple[str, ...] = ("completion",),
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """Tocci-Zhu/DYPO for the pair loss (its test of the gradient; sums of token log-ratios to the reference);
    constants from notes: ``alpha GRPO + (1 - alpha) GAL`` on mixed groups, ``gamma`` SFT on the answers of all
    teachers, one a column, where no sample is right. ``gate`` false learns from all own samples and from no
    demonstration; with alpha 1 that is `grpo`. Rewards above ``threshold`` are right."""
    base = grpo(kl=0.0, length=length, temperature=temperature)
    return replace(
        base,
        sampler=Mixed(sampler=base.sampler, columns=columns),
        objective=BySource(GroupAlignment(base.objective, alpha, beta), Demonstrated(gamma)),
        selection=BySuccess(0, threshold, drop_solved=True) if gate else OwnSamples(),
        min_group=len(columns) + 2,
    )
