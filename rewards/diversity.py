"""How unlike the other pictures of its prompt a picture is: numbers to watch, and what parts against mode collapse read
(`flowrl.parts.novelty`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.media import quantise
from rewards.similarity import dino_similarity

RANGE = {"novelty": "[0, 2]", "rarity": "(0, 1]"}
NEEDS = {
    "novelty": ("several samples of a prompt", "weights facebook/dinov2-base, or path=pixels"),
    "rarity": ("several samples of a prompt", "weights facebook/dinov2-base, or path=pixels"),
}
SIDE = 8
"""Of the thumbnails that `pixels` compares."""


class novelty:  # noqa: N801 - the name a config uses
    """Cosine distance to the nearest other picture of the same prompt, in the features of an encoder.

    path: a DINO of transformers, as of `dino_similarity`; GARDO (arXiv:2512.24138) has DINOv3's class token.
        ``pixels`` compares thumbnails of 8 x 8 pixels, without their mean colour, and loads nothing.
    """

    def __init__(
        self,
        path: str = "facebook/dinov2-base",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        self._embed, self._batch = _encoder(path, device, dtype, batch_size), batch_size
        self.version = f"{type(self).__name__}:{path}:{dtype}:1"

    def __call__(self, images: Tensor, prompts: Sequence[str], *, group: Sequence[int], **columns: Any) -> Tensor:
        """[N]; NaN for a picture that is not finite, or that is the only finite one of its group."""
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        scores = torch.full((len(images),), torch.nan, dtype=torch.float64)
        of = torch.tensor(list(group))
        for key in of.unique():
            rows = ((of == key) & finite.cpu()).nonzero()[:, 0]
            if len(rows) > 1:
                scores[rows] = self.compare(self.features(images[rows]))
        return scores

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Unit features [n, E], float64 on the host, of images [n, 3, H, W] in [0, 1]."""
        return torch.cat([self._embed(part) for part in images.split(self._batch)]).double().cpu()

    def compare(self, features: Tensor) -> Tensor:
        """[n], of the pictures of a prompt."""
        return 1 - (features @ features.T).clamp(-1, 1).fill_diagonal_(-1).max(dim=1).values


class rarity(novelty):  # noqa: N801 - the name a config uses
    """One over the number of pictures in the cluster of the same prompt's pictures that a picture is in: 1 for one that
    is alone, 1 / n where all n are alike.

    Spectral clustering (Ng, Jordan & Weiss 2001) of the cosines of the features, negative ones taken as 0, into as
    many clusters as the largest gap of the Laplacian's eigenvalues says, at most half of the pictures; one cluster
    where no cosine is below ``alike``. DiverseGRPO (arXiv:2512.21514) gives a bonus by the size of spectral clusters;
    its constants are not published in what could be read, so this is a reconstruction. ``path`` is as of `novelty`.
    """

    def __init__(
        self,
        path: str = "facebook/dinov2-base",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
        alike: float = 0.95,
    ) -> None:
        super().__init__(path, device, dtype, batch_size)
        self._alike = alike

    def __call__(self, images: Tensor, prompts: Sequence[str], *, group: Sequence[int], **columns: Any) -> Tensor:
        """[N]; NaN for a picture that is not finite, or that is the only finite one of its group."""
        return super().__call__(images, prompts, group=group, **columns)

    def compare(self, features: Tensor) -> Tensor:
        """[n], of the pictures of a prompt."""
        cosines = features @ features.T
        if float(cosines.min()) >= self._alike:
            return torch.full((len(features),), 1 / len(features), dtype=torch.float64)
        label = clusters(cosines.clamp(min=0))
        return 1 / (label[:, None] == label[None]).sum(dim=1).double()


def clusters(affinity: Tensor) -> Tensor:
    """[n] the cluster of each of n things, from how alike they are [n, n]: non-negative and symmetric."""
    scale = affinity.sum(dim=1).clamp(min=1e-12).rsqrt()
    values, vectors = torch.linalg.eigh(torch.eye(len(affinity)).to(affinity) - scale[:, None] * affinity * scale)
    most = max(1, len(affinity) // 2)
    count = int((values[1 : most + 1] - values[:most]).argmax()) + 1
    points = torch.nn.functional.normalize(vectors[:, :count], dim=1)
    return _nearest_means(points, count)


def _nearest_means(points: Tensor, count: int) -> Tensor:
    """[n] labels of k-means, begun with points that are far from one another, so that equal points give equal
    labels."""
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int(torch.cdist(points, points[chosen]).min(dim=1).values.argmax()))
    centres = points[chosen]
    label = torch.zeros(len(points), dtype=torch.long)
    for _ in range(100):
        before, label = label, torch.cdist(points, centres).argmin(dim=1)
        members = [points[label == k] for k in range(count)]
        centres = torch.stack([of.mean(dim=0) if len(of) else centres[k] for k, of in enumerate(members)])
        if torch.equal(before, label):
            break
    return label


def _encoder(path: str, device: str | None, dtype: str, batch_size: int) -> Callable[[Tensor], Tensor]:
    """Unit features [n, E] of images [n, 3, H, W] in [0, 1]."""
    if path == "pixels":
        return _thumbnails
    embed = dino_similarity(path, device, dtype, batch_size).embed
    return lambda images: embed(quantise(images))


def _thumbnails(images: Tensor) -> Tensor:
    if images.ndim != 4 or min(images.shape[-2:]) < SIDE:
        raise UserError(f"path=pixels compares images of at least {SIDE} x {SIDE} pixels, found {tuple(images.shape)}")
    small = torch.nn.functional.adaptive_avg_pool2d(images.double(), SIDE)
    offset = (small - small.mean(dim=(2, 3), keepdim=True)).flatten(1)
    return offset / offset.norm(dim=1, keepdim=True).clamp(min=1e-6)
