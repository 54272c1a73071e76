"""A trained reward model on disk, verified by loading it as the reward ``reward_model`` and transformers do."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from flowrl.models.adapters import peft
from flowrl.models.adapters.verify import check_merged, swapped_in
from flowrl.models.deviation import deviation
from flowrl.models.export_folder import Difference, into_folder
from flowrl.models.lora import Adaptation
from flowrl.models.reward.parity import single_rows
from flowrl.models.reward.policy import RewardPolicy
from flowrl.models.text.export import merged_copy
from flowrl.models.text.network import Network

FORMATS = ("merged",)
"""An adapter alone would lack the head."""


def export(policy: RewardPolicy, directory: Path, to: str) -> float:
    """Write the live weights to ``directory`` (new or empty), verified before it appears: see
    :func:`flowrl.models.export_folder.into_folder`."""
    network = policy.network

    def write(work: Path) -> Difference:
        merged = merged_copy(policy, work)
        check_merged(network.model, merged)
        ours, other = single_rows(policy).cpu(), copy.copy(policy)
        with swapped_in(network.model, merged):
            other.network = Network(merged.eval(), Adaptation({}, None), network.placement)
            theirs = single_rows(other).cpu()

        @torch.no_grad()
        def rounding() -> float:
            with peft.as_merged(network.model):
                return deviation(single_rows(policy).cpu(), ours)

        return Difference(deviation(theirs, ours), rounding)

    return into_folder(directory, to, FORMATS, network.adaptation, policy.dtype, write, policy.origin)
