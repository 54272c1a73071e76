"""Likeness of an image to a reference image: DINO embeddings for its subject, LPIPS for its pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowrl.errors import UserError
from flowrl.media import picture
from flowrl.scorers.clip import unit
from flowrl.scorers.images import read_preprocessing, score_images
from flowrl.scorers.loading import device_and_dtype, find_safetensors, load_pretrained, load_strictly, read_safetensors

RANGE = {"dino_similarity": "[-1, 1], seldom below 0", "lpips_similarity": "at most 0 (minus the distance)"}
NEEDS = {
    "dino_similarity": ("column reference", "weights facebook/dinov2-base"),
    "lpips_similarity": ("column reference", "AlexNet and LPIPS weights, converted to safetensors"),
}
TAPS = (1, 4, 7, 9, 11)
"""Layers of torchvision's AlexNet that LPIPS compares: every rectifier but the classifier's."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS's own normalisation of images in [-1, 1]."""


class dino_similarity:  # noqa: N801 - the name a config uses
    """Cosine of the DINO embeddings (last state of the class token) of an image and its reference image.

    The column `reference` holds an image file's path, a Pillow image or a tensor [3, H, W] in [0, 1] per prompt;
    without one the score is NaN. Each different reference is embedded once per call.

    Weights: `facebook/dinov2-base` (87 M parameters, Apache-2.0), or a DINO ViT such as `facebook/dino-vits16`, which
    DreamBooth's DINO score used; a folder in transformers' layout or a hub name, safetensors only. Preprocessing:
    quantised to uint8 (references are files), then resize, filter, crop, mean and std as the model's
    `preprocessor_config.json` states them (DINOv2: shortest edge 256, bicubic, crop 224; DINO: squeezed to 224 x 224,
    bilinear), by Pillow.
    """

    TYPES = ("dinov2", "dinov2_with_registers", "vit")

    def __init__(
        self,
        path: str = "facebook/dinov2-base",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        from transformers import AutoModel

        self._place = device_and_dtype(device, dtype)
        self._model = load_pretrained(AutoModel, path, "dino_similarity", self.TYPES, unused="pooler.").to(*self._place)
        self._preprocess = read_preprocessing(path, "dino_similarity")
        self._batch_size = batch_size
        self.version = f"dino_similarity:{path}:{dtype}:pil-1"

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Sequence[Any], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN without a reference, or for an image that is not finite."""
        known: dict[int | str, Tensor] = {}

        def embed(given: Any) -> Tensor:
            key = str(given) if isinstance(given, str | Path) else id(given)
            if key not in known:
                known[key] = self.embed(read_reference(given)[None])[0]
            return known[key]

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return _where_given(reference[rows], pixels, lambda some, given: _cosines(self.embed(some), embed, given))

        return score_images(images, prompts, self._batch_size, score)

    def embed(self, pixels: Tensor) -> Tensor:
        """Unit embeddings [n, E] of images uint8 [n, 3, H, W]."""
        answer = self._model(pixel_values=self._preprocess(pixels).to(*self._place))
        return unit(answer.last_hidden_state[:, 0])


class lpips_similarity:  # noqa: N801 - the name a config uses
    """Minus the LPIPS distance (AlexNet, version 0.1; Zhang et al., arXiv:1801.03924) to the reference image.

    Distance: over five layers, the mean over positions of `sum_c w_c (a_c - b_c)^2`, where a and b are the features of
    the two images, scaled to length 1 over the channels. The column `reference` is as for `dino_similarity`; it is
    scaled (Pillow, bicubic) and cut from its centre to the image's size where that differs.

    Weights: `path` is torchvision's `alexnet-owt-7be5be79.pth` (BSD-3-Clause), `heads` is `weights/v0.1/alex.pth` of
    the package lpips (BSD-2-Clause), both pickles: convert each once with `python -m flowrl.scorers.convert SRC
    DST.safetensors`. Preprocessing: quantised to uint8 (as the reference), scaled to [-1, 1], LPIPS's own mean and
    scale; no resizing, so images need at least 63 x 63 pixels.
    """

    def __init__(
        self, path: str, heads: str, device: str | None = None, dtype: str = "float32", batch_size: int = 16
    ) -> None:
        self._place = device_and_dtype(device, dtype)
        self._layers = _alexnet(find_safetensors(path, "lpips_similarity")).to(*self._place)
        self._heads = _heads(find_safetensors(heads, "lpips_similarity"), self._layers, self._place[0])
        self._batch_size = batch_size
        self.version = f"lpips_similarity:{path}:{heads}:{dtype}:alex-v0.1-1"

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Sequence[Any], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN without a reference, or for an image that is not finite."""
        if min(images.shape[-2:]) < 63:
            raise UserError(
                f"lpips_similarity needs images of at least 63 x 63 pixels, found {tuple(images.shape[-2:])}"
            )

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return _where_given(reference[rows], pixels, self._distances)

        return score_images(images, prompts, self._batch_size, score)

    def _distances(self, pixels: Tensor, given: Sequence[Any]) -> Tensor:
        size = (pixels.shape[-1], pixels.shape[-2])
        others = torch.stack([read_reference(one, size) for one in given])
        total = torch.zeros(len(pixels), device=self._place[0])
        for ours, theirs, head in zip(self._features(pixels), self._features(others), self._heads, strict=True):
            total += ((ours - theirs).square() * head).sum(dim=1).mean(dim=(1, 2))
        return -total

    def _features(self, pixels: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor(SHIFT).view(3, 1, 1), torch.tensor(SCALE).view(3, 1, 1)
        x = ((pixels.cpu().float() / 127.5 - 1 - shift) / scale).to(*self._place)
        found = []
        for index, layer in enumerate(self._layers):
            x = layer(x)
            if index in TAPS:
                values = x.float()
                found.append(values / (values.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found


def read_reference(given: Any, size: tuple[int, int] | None = None) -> Tensor:
    """uint8 [3, H, W] of an image file, a Pillow image or a tensor [3, H, W] in [0, 1]; cut to `size` (width, height).

    Raises `UserError` for a file that is missing or no image, and for anything else.
    """
    if isinstance(given, Tensor) and given.ndim == 3 and given.shape[0] == 3:
        image = picture(given)
    elif isinstance(given, Image.Image):
        image = given.convert("RGB")
    elif isinstance(given, str | Path):
        try:
            with Image.open(Path(given).expanduser()) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"reference image {str(given)!r} cannot be read: {error}") from error
    else:
        raise UserError(
            f"a reference is an image file, a Pillow image or a tensor [3, H, W], found {type(given).__name__}"
        )
    if size is not None and image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _where_given(reference: Sequence[Any], pixels: Tensor, score: Callable[[Tensor, list[Any]], Tensor]) -> Tensor:
    """Scores of the rows that have a reference, NaN for the others."""
    have = [row for row, one in enumerate(reference) if one is not None]
    scores = torch.full((len(pixels),), torch.nan)
    if have:
        scores[have] = score(pixels[have], [reference[row] for row in have]).float().cpu()
    return scores


def _cosines(embeddings: Tensor, embed: Callable[[Any], Tensor], given: Sequence[Any]) -> Tensor:
    return (embeddings * torch.stack([embed(one) for one in given])).sum(dim=1)


def _alexnet(file: Path) -> torch.nn.Sequential:
    """The convolutional layers of torchvision's AlexNet up to the last that is compared."""
    from torchvision.models import alexnet

    layers = alexnet(weights=None).features[: max(TAPS) + 1]
    for layer in layers:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False  # features are kept while the next layers run
    state = read_safetensors(file, "lpips_similarity")
    convolutions = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    load_strictly(layers, convolutions, "lpips_similarity", file)
    return layers.eval().requires_grad_(False)


def _heads(file: Path, layers: torch.nn.Sequential, device: torch.device) -> list[Tensor]:
    """Weights [C, 1, 1] per compared layer, from keys `lin<i>.model.1.weight` [1, C, 1, 1]."""
    state = read_safetensors(file, "lpips_similarity")
    widths = [layer.out_channels for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    found = []
    for index, width in enumerate(widths):
        weight = state.get(f"lin{index}.model.1.weight")
        if weight is None or tuple(weight.shape) != (1, width, 1, 1):
            raise UserError(f"lpips_similarity: {file} holds no LPIPS heads for AlexNet (lin{index}.model.1.weight)")
        found.append(weight[0].float().to(device))
    return found
