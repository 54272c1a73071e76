"""How much a run computes at once, and what networks hold while they compute it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flowrl.models.held_bytes import fetched_layers, forward_bytes, training_bytes
from flowrl.models.lora_preview import told
from flowrl.models.placement import DTYPES

PROBES = 2
"""Prompts of the checks when a model is loaded, and of those of an export."""
PROBE_TOKENS = 16
"""Of a language model's."""


@dataclass(frozen=True)
class Portions:
    """How much a run computes at once, and how."""

    sampled: int
    """Samples."""
    updated: int
    """Network rows of an update, a pair of guidance's branches being one."""
    groups: int = 1
    """Of those samples: prompts that are read once for all of a group."""
    decoded: int = 1
    """Images."""
    prompts: int = 1
    """Of an iteration."""
    prompt: int = 0
    """Tokens of a language model's prompt."""
    length: int = 0
    """Of its completion."""
    drawn: int = 0
    """Positions of a completion that are predicted at once while it is made."""
    sampled_guidance: float | None = None
    """Scale of guidance; ``None`` is the pipeline's own."""
    updated_guidance: float | None = None
    both: bool = True
    """Whether an update has gradient through both branches of guidance."""
    dtype: str = "float32"
    trained_dtype: str = "float32"
    checkpointed: bool = False
    fetched: bool = False
    """Whether frozen layers wait on the host."""
    slicing: bool = False
    tiling: bool = False
    valued: bool = False
    """Whether a critic of its own reads what the policy reads."""
    widened: bool = True
    """Whether the vocabulary's weights are converted to float32 before they are used, as everywhere but on CUDA."""

    @property
    def frozen(self) -> torch.dtype:
        """Of the parts that are not trained."""
        return DTYPES[self.dtype]

    @property
    def lower(self) -> torch.dtype | None:
        """That autocast casts to, if it is on."""
        return None if self.dtype == "float32" else self.frozen

    @property
    def trained(self) -> torch.dtype:
        """Of trained weights."""
        return DTYPES[self.trained_dtype]


@dataclass(frozen=True)
class Computing:
    """Bytes of a device that are held beside weights, gradients and the optimiser's state, at most; 0 where a network
    cannot be run without its weights."""

    probing: int = 0
    """In the checks when a model is loaded or exported."""
    encoding: int = 0
    sampling: int = 0
    decoding: int = 0
    updating: int = 0
    """A forward with gradient and its backward."""

    @property
    def known(self) -> bool:
        return self.updating > 0


def tried(run: Callable[[], int]) -> int:
    """Bytes, or 0 where a network wants other inputs, or looks at numbers."""
    return told(run) or 0


def in_training(network: nn.Module, run: Callable[[], Any], at: Portions) -> int:
    """Bytes of a forward and a backward, recomputed and fetched as the run has it."""
    with fetched_layers(network) if at.fetched else nullcontext():
        trained = [p for p in network.parameters() if p.requires_grad]
        return tried(lambda: training_bytes(run, trained, at.lower))


def without_gradient(network: nn.Module, run: Callable[[], Any], at: Portions) -> int:
    """Bytes of a forward alone."""
    with fetched_layers(network) if at.fetched else nullcontext():
        return tried(lambda: forward_bytes(run, at.lower))
