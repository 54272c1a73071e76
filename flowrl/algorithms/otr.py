"""OTR: one-token rollouts, supervised fine-tuning as a policy gradient of single tokens that match the demonstration
(arXiv:2509.26313)."""

from dataclasses import replace

from flowrl.algorithms.sft import sft
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.mixtures import Demonstrated

PAPER = "arXiv:2509.26313"


def otr(*, wrong: float = 0.0, columns: tuple[str, ...] = ("completion",), length: int = 1024) -> Algorithm:
    """The expectation of the paper's estimator over its candidates instead of a sample of them: tokens drawn at every
    position of a demonstration, rewarded 1 if they are the demonstration's and ``wrong`` else, have the expected
    gradient ``(1 - wrong) p grad log p`` of the demonstration's token, so none are drawn. Reconstruction from the
    abstract and notes: the paper's number of candidates, temperature and negative reward were not confirmed."""
    if not wrong < 1:
        raise ValueError(
            f"wrong={wrong} rewards other tokens at least as much as the demonstration's; give less than 1"
        )
    return replace(sft(columns=columns, length=length), objective=Demonstrated(1 - wrong, tokens="likely"))
