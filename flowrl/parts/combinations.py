"""Several gradients made one, from their inner products alone: [C] weights of [C, C] (`flowrl.types.Combination`)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from flowrl.types import IncompatibleError

MOST = 12
"""Channels, of which the shortest combination is found by trying all subsets."""


class OfTerms:
    """A combination that is also given the gradient of all regularizers together, as its last channel; others leave
    that as it is."""


@dataclass(frozen=True)
class FixedShares:
    """Weights that are given, in the order of the rewards."""

    shares: tuple[float, ...]

    def __call__(self, gram: Tensor) -> Tensor:
        return _known(self.shares, gram)


@dataclass(frozen=True)
class MinNorm:
    """The shortest vector of the gradients' convex hull, ``min |sum_c a_c g_c|`` with ``a >= 0, sum a = 1``: no channel
    is worsened by a step along it (MGDA, Desideri 2012; Sener & Koltun, arXiv:1810.04650).

    normalise: of unit vectors instead, times their mean length: ``w_c = a_c mean|g| / |g_c|``, so that long gradients
        are not left out. MARBLE (arXiv:2605.06507), whose release leaves out channels without a gradient. The share of
        a channel in the log is its a.

    Of several solutions the one with most channels, so equal gradients share equally.
    """

    normalise: bool = False

    def __call__(self, gram: Tensor) -> Tensor:
        lengths = gram.diagonal().clamp(min=0).sqrt()
        if not self.normalise:
            return shortest(gram)
        weights, some = torch.zeros_like(lengths), (lengths > 1e-12).nonzero()[:, 0]
        if len(some):
            unit = gram[some][:, some] / (lengths[some, None] * lengths[some])
            weights[some] = shortest(unit) * lengths[some].mean() / lengths[some]
        return weights


@dataclass(frozen=True)
class ProjectConflicts:
    """Every channel's gradient less its part against each other channel's, ``g_i - (g_i g_j / |g_j|^2) g_j`` where
    ``g_i g_j < 0``, and all of them added. PCGrad (arXiv:2001.06782), whose random order of the others is here the next
    channel first, so that a step is a function of its samples."""

    def __call__(self, gram: Tensor) -> Tensor:
        count = len(gram)
        every = torch.eye(count, dtype=gram.dtype)
        for i in range(count):
            for j in (*range(i + 1, count), *range(i)):
                inner = every[i] @ gram[:, j]
                if inner < 0:
                    every[i, j] -= inner / gram[j, j]
        return every.sum(dim=0)


@dataclass(frozen=True)
class Influence:
    """``w = softmax(log shares + rate sum_n g_m g_n)``: a reward counts more that agrees with all of them. The
    gradient-based form of dynamic reward weighting (arXiv:2509.11452); ``rate`` is its learning rate over its mu.

    ``shares`` are where it starts; coefficients make them the weights of the iteration before.
    """

    shares: tuple[float, ...]
    rate: float = 0.1

    def __call__(self, gram: Tensor) -> Tensor:
        return (_known(self.shares, gram).log() + self.rate * gram.sum(dim=1)).softmax(dim=0)


@dataclass(frozen=True)
class SoftProjection(OfTerms):
    """Objective and regularizers: ``g - a (g s / |s|^2) s + s`` where their gradients g and s are in conflict, ``g s <
    0``, else ``g + s``: a share ``a`` of what would undo the other is taken away, so that the product falls to ``(1 -
    a) g s``. PCR (arXiv:2602.06453) has ``a = l_s / (l_g + l_s)`` with the precisions of both gradients, whose
    estimator is not public: 1/2 where they are equally certain, 1 is PCGrad's projection.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} of a conflict is taken away: give a number from 0 to 1")

    def __call__(self, gram: Tensor) -> Tensor:
        weights = torch.ones(len(gram), dtype=gram.dtype)
        conflict, length = gram[:-1, -1].sum(), gram[-1, -1]
        if len(gram) > 1 and conflict < 0:
            weights[-1] -= self.share * conflict / length
        return weights


def shortest(gram: Tensor) -> Tensor:
    """[C] ``a >= 0`` that sums to 1 and makes ``a G a`` smallest, exactly: the stationary point of every subset."""
    count = len(gram)
    if count > MOST:
        raise IncompatibleError(
            f"MinNorm tries all subsets of the rewards, and {count} are too many; use at most {MOST}"
        )
    scale = gram.diagonal().max().clamp(min=1e-300)
    best, least = torch.full((count,), 1 / count, dtype=gram.dtype), float("inf")
    for size in range(count, 0, -1):
        for chosen in combinations(range(count), size):
            rows = torch.tensor(chosen)
            part = gram[rows][:, rows] / scale
            solved = torch.linalg.lstsq(_bordered(part), _one(size)).solution[:size, 0]
            if bool((solved < -1e-9).any()) or abs(float(solved.sum()) - 1) > 1e-6:
                continue
            value = float(solved @ part @ solved)
            if value < least - 1e-12:
                least, best = value, torch.zeros(count, dtype=gram.dtype).index_copy(0, rows, solved.clamp(min=0))
    return best / best.sum()


def _bordered(part: Tensor) -> Tensor:
    """[S + 1, S + 1] of the stationarity ``G a = l 1`` and the constraint ``sum a = 1``; the least squares solution of
    least length is taken where several are."""
    size = len(part)
    whole = torch.zeros(size + 1, size + 1, dtype=part.dtype)
    whole[:size, :size], whole[:size, size], whole[size, :size] = part, -1.0, 1.0
    return whole


def _one(size: int) -> Tensor:
    return torch.cat([torch.zeros(size, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)])


def _known(shares: tuple[float, ...], gram: Tensor) -> Tensor:
    if len(shares) != len(gram):
        raise IncompatibleError(
            f"algorithm.combination has {len(shares)} shares, and there are {len(gram)} rewards; set algorithm.rewards"
        )
    return torch.tensor(shares, dtype=torch.float64)
