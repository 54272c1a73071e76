"""An adapter as every reader returns it: tensors by layer, with each layer's own strength."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.lora import LoRAOptions

DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter: ``weight + scale * B @ A`` on each of its layers, ``scale`` = alpha / rank, with ``rslora``
    alpha / sqrt(rank) (arXiv:2312.03732); with ``dora`` the sum's columns have the length ``magnitude``
    (arXiv:2402.09353)."""

    origin: str
    """For messages."""
    base: str | None
    """The model it says it was made for."""
    tensors: Mapping[str, Tensor]
    """``LAYER.lora_A.weight`` [rank, in], ``LAYER.lora_B.weight`` [out, rank], ``LAYER.lora_magnitude_vector`` [out];
    convolutions have their kernel's axes at the end."""
    alphas: Mapping[str, float]
    """By layer; none for parameters that are no layers."""
    rslora: bool = False
    dora: bool = False
    lora_options: LoRAOptions | None = None
    """The options in the file's own words, where it adapts parameters that are no layers (the experts of a mixture):
    their tensors do not tell rank and alpha."""
    encoders: Mapping[str, Any] = field(default_factory=dict)
    """What belongs to text encoders, as diffusers takes it; none for language models."""
    parts: tuple[str, ...] = ()
    """The components of a model with several denoisers, with whose names its layers' names begin."""

    @property
    def ranks(self) -> dict[str, int]:
        """By layer."""
        return {name.removesuffix(DOWN): len(value) for name, value in self.tensors.items() if name.endswith(DOWN)}

    def scale(self, layer: str) -> float:
        """The factor of a layer's update, computed as PEFT does."""
        rank = self.ranks[layer]
        return self.alphas[layer] / (math.sqrt(rank) if self.rslora else rank)

    def options(self, dropout: float = 0.0) -> LoRAOptions:
        """The options under which ``model.lora`` has exactly this adapter's shape and strength."""
        if self.parts:
            return self._part(self.parts[0]).options(dropout)
        if self.lora_options is not None:
            return replace(self.lora_options, targets=tuple(sorted(self.alphas)), dropout=dropout)
        ranks, alphas = self.ranks, dict(self.alphas)
        rank = Counter(ranks.values()).most_common(1)[0][0]
        alpha = Counter(alphas.values()).most_common(1)[0][0]
        return LoRAOptions(
            rank=rank,
            alpha=alpha,
            targets=tuple(sorted(ranks)),
            dropout=dropout,
            init="default",
            rslora=self.rslora,
            dora=self.dora,
            rank_pattern={f"^{name}": value for name, value in sorted(ranks.items()) if value != rank},
            alpha_pattern={f"^{name}": value for name, value in sorted(alphas.items()) if value != alpha},
        )

    def _part(self, name: str) -> Adapter:
        """What is on one of several denoisers, by that denoiser's own names."""
        mine = {key.removeprefix(f"{name}."): v for key, v in self.tensors.items() if key.startswith(f"{name}.")}
        alphas = {key.removeprefix(f"{name}."): v for key, v in self.alphas.items() if key.startswith(f"{name}.")}
        return replace(self, tensors=mine, alphas=alphas, parts=())


def joined(origin: str, found: Mapping[str, Adapter]) -> Adapter:
    """One adapter of those of several denoisers, by their components' names. Raises `UserError` where they differ in
    shape or strength: ``model.lora`` is one for all."""
    names = tuple(found)
    first = found[names[0]]
    for name in names[1:]:
        if found[name].options() != first.options() or found[name].encoders:
            raise UserError(f"{origin}: its adapters in {names[0]} and {name} differ in their layers, rank or alpha")
    tensors = {f"{name}.{key}": value for name in names for key, value in found[name].tensors.items()}
    alphas = {f"{name}.{key}": value for name in names for key, value in found[name].alphas.items()}
    return replace(first, origin=origin, tensors=tensors, alphas=alphas, parts=names)


def validated(adapter: Adapter) -> Adapter:
    """The adapter, if its tensors belong together and are finite. Raises `UserError` naming the first that is not."""
    where, tensors = adapter.origin, adapter.tensors
    layers = {name.removesuffix(end) for name in tensors for end in (DOWN, UP, MAGNITUDE) if name.endswith(end)}
    strange = next((name for name in tensors if not name.endswith((DOWN, UP, MAGNITUDE))), None)
    if strange is not None:
        raise UserError(f"{where} holds {strange!r}, which is no part of a low-rank adapter (lora_A, lora_B)")
    if not layers:
        raise UserError(f"{where} holds no LoRA of the network that is trained")
    for layer in sorted(layers):
        for end in (DOWN, UP, *([MAGNITUDE] if adapter.dora else [])):
            if f"{layer}{end}" not in tensors:
                raise UserError(f"{where} lacks {layer}{end}; the file is not whole, save it again")
        down, up = tensors[f"{layer}{DOWN}"], tensors[f"{layer}{UP}"]
        if down.ndim < 2 or up.ndim < 2 or len(down) != up.shape[1] or len(down) < 1:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise UserError(f"{where}: lora_A and lora_B of {layer} have the shapes {shapes}, which share no rank")
        alpha = adapter.alphas.get(layer, 1.0 if adapter.lora_options else math.nan)
        if not (math.isfinite(alpha) and alpha > 0):
            raise UserError(f"{where}: the alpha of {layer} is {alpha}; it should be a number above 0")
    bad = next((name for name, value in tensors.items() if not bool(value.float().isfinite().all())), None)
    if bad is not None:
        raise UserError(f"{where}: {bad} holds values that are not finite; the adapter is broken, take another")
    return adapter
