"""How far two sets of pictures are apart, and how different the pictures of one prompt are, from their features.

Features are rows of length 1, such as CLIP's embeddings. All in float64: the kernel's values differ from 1 by 1 %.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIGMA, SCALE = 10.0, 1000.0
"""CMMD's width of the Gaussian kernel and factor."""
ROWS = 1024
"""Rows of a kernel matrix at a time: 80 MB against ten thousand pictures."""


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians with the means and covariances of features [N, E] and [M, E].

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)``, covariances over N - 1: FID's formula (Heusel et
    al., arXiv:1706.08500) with other features than Inception's. It is biased upwards by the number of pictures, so only
    distances of equally many compare. NaN for fewer than two of either.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    a, b = a.double(), b.double()
    root = _root(torch.cov(a.T))
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp(min=0).sqrt().sum()
    spread = torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * cross
    return float((a.mean(dim=0) - b.mean(dim=0)).square().sum() + spread)


def cmmd(a: Tensor, b: Tensor, paired: bool = False) -> tuple[float, float]:
    """``(released, unbiased)`` squared maximum mean discrepancy of features [N, E] and [M, E], times 1000.

    Gaussian kernel ``exp(-|x - y|^2 / (2 * 10^2))``: CMMD (Jayasumana et al., arXiv:2401.09603) where the features are
    CLIP ViT-L/14@336's. The release takes means over all pairs, a picture with itself among them, which is never
    negative and 0 for equal sets; the unbiased one leaves those out, and is 0 in the mean for sets of one distribution.
    ``paired`` says that row i of both was made from one noise: the unbiased one then also leaves out such pairs, and is
    0 for equal sets. Source: Gretton et al. 2012, equations 3 to 5. NaN for fewer than one, and two, of either.
    """
    n, m = len(a), len(b)
    if min(n, m) < 1:
        return math.nan, math.nan
    own, other, cross = _kernel_sum(a, a), _kernel_sum(b, b), _kernel_sum(a, b) / (n * m)
    released = own / n**2 + other / m**2 - 2 * cross
    if min(n, m) < 2:
        return SCALE * released, math.nan
    if paired:
        cross = (cross * n * m - float(_kernel((a.double() - b.double()).square().sum(dim=1)).sum())) / (n * (n - 1))
    unbiased = (own - n) / (n * (n - 1)) + (other - m) / (m * (m - 1)) - 2 * cross
    return SCALE * released, SCALE * unbiased


def diversity(features: Tensor) -> float:
    """Mean of one minus the cosine over all pairs of different rows of unit features [n, E]; NaN for fewer than two."""
    n = len(features)
    if n < 2:
        return math.nan
    total = features.double().sum(dim=0).square().sum() - features.double().square().sum()
    return float(1 - total / (n * (n - 1)))


def vendi(features: Tensor) -> float:
    """How many different rows unit features [n, E] are worth, from 1 (all equal) to n (all orthogonal); NaN for none.

    The exponential of the entropy of the eigenvalues of ``K / n``, K the cosines (Friedman & Dieng, arXiv:2210.02410).
    """
    if not len(features):
        return math.nan
    rows = features.double()
    values = torch.linalg.eigvalsh(rows @ rows.T / len(rows)).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Sum of the kernel over all pairs."""
    b = b.double()
    total = 0.0
    for part in a.double().split(ROWS):
        squares = part.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * part @ b.T
        total += float(_kernel(squares.clamp(min=0)).sum())
    return total


def _kernel(squares: Tensor) -> Tensor:
    return (squares / (-2 * SIGMA**2)).exp()


def _root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric matrix without negative eigenvalues but for rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
