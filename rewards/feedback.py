"""What a data set or an environment says of a sample: a rating, a label, a return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.errors import UserError

RANGE = "as the data set has it"
NEEDS = ("samples of a data set or an environment, which say something of them",)


def feedback(prompts: Sequence[str], feedback: Sequence[float | Sequence[float]] | None = None) -> Tensor:
    """[N] float64: the number said of each sample, 0 where nothing is said; of several events their sum.

    Algorithms on recorded samples read it themselves: as a reward it is for those that compare rewards. Samples that
    the policy makes in evaluations have none. Raises `UserError` for them.
    """
    if feedback is None:
        raise UserError(
            "reward feedback: nobody says anything of samples that the policy makes itself; set eval.every=0, or score"
            " them by another reward"
        )
    values = torch.tensor(feedback, dtype=torch.float64).nan_to_num(0.0)
    return values if values.dim() < 2 else values.sum(dim=1)
