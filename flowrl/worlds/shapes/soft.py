"""A verifier with a gradient: how probable it is that every slot shows what the metadata asks for, and nothing else.

Each of the four slots is compared with figures of every class and colour at a few places and sizes, and with nothing;
the squared differences make a distribution over what it shows. Slots are independent, so that the scenes that satisfy
the metadata have a probability p. The score is ``1 + log p / RANGE``, at least 0: the logarithm has a slope where the
probability itself is flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import torch
from torch import Tensor

from flowrl.worlds.images.scenes import CLASSES, COLORS, SLOT, SUPERSAMPLE, Metadata, inside_shape, relates
from flowrl.worlds.shapes.scenes import SIZE, SLOTS

TEMPERATURE = 1.0
"""Of squared differences, summed over a slot: between two colours of a figure they are about 50."""
RANGE = 60.0
"""A scene of probability exp(-RANGE) scores 0; that of another shape or colour is about exp(-15)."""
RADII, OFFSETS = (4.2, 4.8, 5.4), (-1.0, 0.0, 1.0)
"""In pixels, of the figures that a slot is compared with."""


def soft_score(images: Tensor, metadata: Sequence[Metadata]) -> Tensor:
    """[N] in [0, 1], with a gradient to images [N, 3, 32, 32] in [0, 1]."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
        raise ValueError(f"expected images of shape [N, 3, {SIZE}, {SIZE}] in [0, 1], found {tuple(images.shape)}")
    shown = slot_logs(images)
    logs = torch.stack([_satisfied(found, wanted) for found, wanted in zip(shown, metadata, strict=True)])
    return (1 + logs / RANGE).clamp(min=0)


def slot_logs(images: Tensor) -> Tensor:
    """[N, 4, 1 + K] log-probabilities of nothing, and of the K = 24 figures of a class and colour, class by class."""
    ring = torch.ones(SIZE, SIZE, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    background = images.detach()[:, :, ring].median(dim=2).values  # [N, 3], as the exact verifier estimates it
    offset = images - background[:, :, None, None]
    corners = [(SLOT * column, SLOT * row) for column, row in SLOTS]
    slots = torch.stack([offset[:, :, y : y + SLOT, x : x + SLOT] for x, y in corners], dim=1).flatten(3)
    masks = _masks().to(slots)  # [K', M, P]
    color = torch.tensor(list(COLORS.values())).to(slots)[None] - background[:, None]  # [N, 6, 3]
    along = torch.einsum("nqcp,kmp,nlc->nqklm", slots, masks, color)
    energy = masks.square().sum(dim=2)[None, None, :, None] * color.square().sum(dim=2)[:, None, None, :, None]
    gain = (2 * along - energy) / TEMPERATURE  # how much less is left unexplained than by nothing
    places = torch.tensor(float(masks.shape[1]))
    figures = (gain.logsumexp(dim=4) - places.log()).flatten(2)
    return torch.cat([torch.zeros_like(figures[..., :1]), figures], dim=2).log_softmax(dim=2)


@cache
def _masks() -> Tensor:
    """[classes, M, SLOT * SLOT] coverage of figures at a slot's middle and around it."""
    axis = (torch.arange(SLOT * SUPERSAMPLE) + 0.5) / SUPERSAMPLE - SLOT / 2
    found = []
    for shape in CLASSES:
        for radius, dx, dy in product(RADII, OFFSETS, OFFSETS):
            covered = inside_shape(shape, axis[None, :] - dx, axis[:, None] - dy, torch.tensor(radius))
            found.append(torch.nn.functional.avg_pool2d(covered.float()[None], SUPERSAMPLE).flatten())
    return torch.stack(found).view(len(CLASSES), -1, SLOT * SLOT)


def _satisfied(shown: Tensor, metadata: Metadata) -> Tensor:
    """[] log-probability of a scene as asked for, from those of what the slots show [4, 1 + K]."""
    include = metadata["include"]
    if any(item.get("text") for item in include):
        raise ValueError("the soft score reads figures, and the metadata asks for a text; use the reward scenes")
    figures = [(shape, color) for shape in CLASSES for color in COLORS]
    of_clause = []
    for item in include:
        fits = [s == item["class"] and c == item.get("color", c) for s, c in figures]
        of_clause.append(shown[:, 1:][:, torch.tensor(fits)].logsumexp(dim=1))
    known = torch.stack([shown[:, 0], *of_clause], dim=1)  # [4, 1 + clauses]
    patterns = _patterns(len(include), tuple(item["count"] for item in include), _relations(include))
    if not len(patterns):
        return known[0, 0] * 0 - RANGE
    each = torch.stack([known[slot, patterns[:, slot]] for slot in range(len(SLOTS))], dim=1)
    return each.sum(dim=1).logsumexp(dim=0)


def _relations(include: Sequence[Metadata]) -> tuple[tuple[int, str, int], ...]:
    return tuple((i, *item["position"]) for i, item in enumerate(include) if item.get("position"))


@cache
def _patterns(clauses: int, counts: tuple[int, ...], relations: tuple[tuple[int, str, int], ...]) -> Tensor:
    """[M, 4]: the clauses (from 1) or nothing that the slots may show."""
    found = []
    for pattern in product(range(clauses + 1), repeat=len(SLOTS)):
        cells = [[SLOTS[q] for q, shows in enumerate(pattern) if shows == clause + 1] for clause in range(clauses)]
        right = all(len(cell) == count for cell, count in zip(cells, counts, strict=True))
        if right and all(_holds(relation, cells[i], cells[j]) for i, relation, j in relations):
            found.append(pattern)
    return torch.tensor(found, dtype=torch.long).reshape(-1, len(SLOTS))


def _holds(relation: str, cells: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> bool:
    return all(relates(relation, (a[0] - b[0], a[1] - b[1])) for a in cells for b in others)
