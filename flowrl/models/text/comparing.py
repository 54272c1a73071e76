"""Whole distributions of one language model beside those of another, at the positions that both were read at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.models.text.network import Network, Reading
from flowrl.types import Distributions


def distributions_of(
    network: Network, readings: Sequence[Reading], places: Sequence[Tensor], shape: torch.Size, width: int
) -> tuple[Distributions]:
    """What a model says at the flat ``places`` of its readings, of [N, T] = ``shape``, over ``width`` tokens."""
    where = torch.full((shape.numel(),), -1, dtype=torch.int64)
    if not readings:
        return (Distributions(torch.zeros(0, width, device=network.device), where.view(shape)),)
    flat = torch.cat(list(places))
    where[flat] = torch.arange(len(flat))
    return (network.shown(readings, where.view(shape)),)


def divergences(
    network: Network,
    readings: Sequence[Reading],
    places: Sequence[Tensor],
    others: Sequence[Distributions],
    options: Mapping[str, Any],
) -> list[Tensor]:
    """[k] float32 at the places of each reading, every one of which is in one of ``others``."""
    pairs = zip(readings, places, strict=True)
    return [_divergence(network, reading, place, others, options) for reading, place in pairs]


def _divergence(
    network: Network, reading: Reading, place: Tensor, others: Sequence[Distributions], options: Mapping[str, Any]
) -> Tensor:
    found = torch.zeros(len(place), device=network.device)
    for other in others:
        rows = other.where.flatten()[place]
        if bool((rows >= 0).all()):
            return network.divergence(reading, other, rows, **options)
        some = (rows >= 0).nonzero()[:, 0]
        if len(some):
            there = put(some, network.device)
            found = found.index_copy(0, there, network.divergence(reading.rows(there), other, rows[some], **options))
    return found
