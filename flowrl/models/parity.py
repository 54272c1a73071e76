"""Whether a policy computes what the library that it was loaded with computes."""

from __future__ import annotations

from flowrl.models.control import parity as control
from flowrl.models.control.policy import ControlPolicy
from flowrl.models.diffusion import parity as diffusion
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.text import parity as text
from flowrl.models.text.policy import TextPolicy


def check_parity(policy: DiffusionPolicy | TextPolicy | ControlPolicy) -> float:
    """The largest relative deviation: of a pipeline's replay from the pipeline itself, of a language model's batched
    predictions from its own on single rows, and so of a control policy's.

    Raises:
        UserError: where that is more than rounding.
    """
    if isinstance(policy, ControlPolicy):
        return control.check(policy)
    return diffusion.check(policy) if isinstance(policy, DiffusionPolicy) else text.check(policy)
