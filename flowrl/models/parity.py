"""Whether a policy computes what the library that it was loaded with computes."""

from __future__ import annotations

from flowrl.models.control import parity as control
from flowrl.models.control.policy import ControlPolicy
from flowrl.models.diffusion import parity as diffusion
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.reward import parity as reward
from flowrl.models.reward.policy import RewardPolicy
from flowrl.models.text import parity as text
from flowrl.models.text.policy import TextPolicy


def check_parity(policy: DiffusionPolicy | TextPolicy | ControlPolicy | RewardPolicy) -> float:
    """The largest relative deviation: of a pipeline's replay from the pipeline itself, of a language model's batched
    predictions from its own on single rows, of a reward model's ratings and a control policy's actions likewise.

    Raises:
        UserError: where that is more than rounding.
    """
    if isinstance(policy, ControlPolicy):
        return control.check(policy)
    if isinstance(policy, RewardPolicy):
        return reward.check(policy)
    return diffusion.check(policy) if isinstance(policy, DiffusionPolicy) else text.check(policy)
