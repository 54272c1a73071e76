"""BRPO: a thought is cut at several budgets and answered after each; its tokens earn what all longer parts do
(AnytimeReasoner, arXiv:2505.13438)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dr_grpo import dr_grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.tree_advantages import BudgetRelative
from flowrl.samplers.budgets import BudgetSampler

PAPER = "arXiv:2505.13438"


def brpo(
    *,
    clip: float = 0.2,
    length: int = 8128,
    temperature: float = 1.0,
    budgets: tuple[int, ...] = (2000, 4000, 6000, 8000),
    answers: int = 4,
    prior: Literal["uniform", "linear", "base"] = "uniform",
    think_end: str = "</think>",
    cut: str = "...\n\n...\n\n</think>",
    bridge: str = "\n\n**Final Answer**\n",
) -> Algorithm:
    """As in sail-sg/AnytimeReasoner, read in the copy wjurayj/AnytimeReasoner (068a38b): four budgets, four answers of
    at most 128 tokens to each, eight thoughts a prompt (``data.group`` 128; a multiple of 16), no standard deviation,
    sums divided by the fixed length. One budget and one answer is `dr_grpo`.

    prior: how likely each budget is: all alike, in proportion to its length, or the last one alone.

    Differs: a thought that says the model's end instead of ``think_end`` ends its samples, which the reward sees as
    they are; in the release they score 0.
    """
    weights = {"uniform": None, "linear": tuple(map(float, budgets)), "base": (*(0.0,) * (len(budgets) - 1), 1.0)}
    sampler = BudgetSampler(
        length=length,
        temperature=temperature,
        budgets=budgets,
        answers=answers,
        think_end=think_end,
        cut=cut,
        bridge=bridge,
    )
    return replace(dr_grpo(clip=clip), sampler=sampler, advantage=BudgetRelative(weights[prior]))
