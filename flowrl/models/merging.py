"""Predictions with the adapter added to the weights it adapts: one product a layer instead of three."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from flowrl.errors import UserError
from flowrl.models.adapters.peft import merged_weight
from flowrl.models.lora import ADAPTER, LoRAOptions
from flowrl.models.weights import WeightSets


def check_merging(
    merge: bool,
    lora: LoRAOptions | None,
    dtype: str,
    *,
    compile: bool = False,
    shard: str = "none",
    quantize: str | None = None,
    offload: str = "none",
) -> None:
    """Raise `UserError` where an adapter (``None``: full fine-tuning) that is to be merged (``merge``) cannot be, or
    predictions would differ from its own by more than float32 rounds."""
    if not merge:
        return
    reasons = {
        "model.full trains every layer, so there is no adapter": lora is None,
        f"model.dtype={dtype} rounds merged weights, so that ratios are not 1 before the first update": (
            dtype != "float32"
        ),
        f"model.quantize={quantize} leaves no room for them": quantize is not None,
        f"model.shard={shard} splits every weight over the processes": shard != "none",
        "model.offload=sequential fetches a layer's own weights": offload == "sequential",
        "model.compile keeps a layer's tensors": compile,
        "model.lora.dora also scales the weights' columns": lora is not None and lora.dora,
    }
    for reason, found in reasons.items():
        if found:
            raise UserError(f"model.merge_adapters adds adapters to float32 weights, and {reason}; set it to false")


class MergedAdapter:
    """Merged weights ``W + s B A`` [out, in] of the layers that a LoRA is on, for calls without gradient.

    ``x (W + s B A)^T`` is what the adapter computes as ``x W^T + s (x A^T) B^T``, but for rounding. Merged weights
    are tensors of their own that stand in the place of the base's parameters while the network is called; nothing is
    written to those. They are made when a set of weights is first asked for a prediction, and again when it has
    changed, of at most one set at a time: memory holds the adapted layers' weights once more. Layers whose B is 0,
    all of them in the reference of a fresh adapter, compute with the base's own. Adapters of parameters that are no
    layers (`LoRAOptions.parameters`) stay as they are.
    """

    def __init__(self, network: nn.Module, weights: WeightSets) -> None:
        from peft.tuners.lora.layer import Conv2d, Linear

        found = [m for m in network.modules() if isinstance(m, (Linear, Conv2d)) and ADAPTER in m.lora_A]
        self._layers: list[Any] = found
        self._weights = weights
        self._made_of: list[tuple[Tensor, int]] = []
        """Tensors of the set that was merged, which are kept so that no other takes their place, and how often each
        had been written to."""
        self._steps = -1
        """Optimiser steps of the process at that time."""
        self._merged: list[nn.Parameter | None] = []

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Call the network inside: with merged weights where no gradient is taken."""
        if torch.is_grad_enabled():
            yield
            return
        self._update()
        held = [layer.base_layer._parameters for layer in self._layers]
        own = [parameters["weight"] for parameters in held]
        try:
            for layer, parameters, weight in zip(self._layers, held, self._merged, strict=True):
                layer.merged_adapters = [ADAPTER]
                parameters["weight"] = parameters["weight"] if weight is None else weight
            yield
        finally:
            for layer, parameters, weight in zip(self._layers, held, own, strict=True):
                layer.merged_adapters = []
                parameters["weight"] = weight

    def _update(self) -> None:
        """Merge the set in use, unless that is what was merged and it has not been written to."""
        stamps = self._weights.stamps()
        steps = _Steps.count if self._weights.learns(self._weights.active) else 0
        fresh = self._steps == steps and len(stamps) == len(self._made_of)
        if fresh and all(a is b and n == m for (a, n), (b, m) in zip(stamps, self._made_of, strict=True)):
            return
        self._made_of, self._merged = [], []  # freed before the others are made
        self._merged = [_merged(layer) for layer in self._layers]
        self._made_of, self._steps = stamps, steps


def _merged(layer: Any) -> nn.Parameter | None:
    """``W + s B A``; ``None`` where that is W."""
    if not layer.lora_B[ADAPTER].weight.any():
        return None
    return merged_weight(layer, layer.base_layer)


class _Steps:
    """Steps that optimisers have made in this process: fused ones write to weights without telling torch."""

    count = 0

    @classmethod
    def add(cls, *_: Any) -> None:
        cls.count += 1


register_optimizer_step_post_hook(_Steps.add)
