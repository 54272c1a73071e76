"""LUSPO: GSPO with every completion counted by its length (arXiv:2602.05261)."""

from dataclasses import replace

from flowrl.algorithms.gspo import gspo
from flowrl.parts.aggregations import SampleSum
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2602.05261"


def luspo(*, low: float = 3e-4, high: float = 4e-4, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As TRL has it (``loss_type: luspo``): GSPO's loss times the number of tokens."""
    return replace(gspo(low=low, high=high, length=length, temperature=temperature), aggregation=SampleSum())
