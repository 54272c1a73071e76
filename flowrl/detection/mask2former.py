"""Mask2Former (arXiv:2112.01527) through transformers as GenEval's detector, with mmdet's post-processing.

GenEval's published numbers come from mmdet's own checkpoint of this architecture. transformers has Meta's, another
training run: same classes in the same order, slightly other scores. Hence results are called ``geneval[mask2former]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowrl.detection.objects import ALIASES, OBJECTS, Detection
from flowrl.errors import UserError
from flowrl.scorers.images import Preprocessing
from flowrl.scorers.loading import device_and_dtype, load_pretrained

WEIGHTS = "facebook/mask2former-swin-small-coco-instance"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, for channels in the order red, green, blue."""
DIVISOR = 32
MAX_DETECTIONS = 100


class Mask2Former:
    """Calling it finds the objects in images of one size.

    Preprocessing (of the training recipe, and mmdet's for testing; what the weights' ``preprocessor_config.json``
    states, a squash to a square, is not used): RGB, shortest edge to ``shortest`` pixels but the longest to at most
    ``longest``, Pillow's bilinear filter on uint8, ImageNet's mean and deviation, zeros to a multiple of 32 on the
    right and at the bottom.

    Post-processing is mmdet's, not transformers' (which works at 384 x 384, resizes by nearest neighbour and lets masks
    overwrite each other): the softmax without "no object"; the best 100 pairs of query and class; mask logits
    bilinearly to the padded input, cropped, bilinearly to the image; the mask is where the logit is positive, the score
    is the class probability times the mean sigmoid inside of the mask, the box is the mask's. Masks may overlap, and
    one query may count for two classes. Detections with a score up to ``least`` are dropped at once.

    Raises `UserError` for weights that are missing, pickled, of another architecture or of other classes than COCO's.
    """

    def __init__(
        self,
        path: str = WEIGHTS,
        *,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 4,
        shortest: int = 800,
        longest: int = 1333,
        least: float = 0.3,
    ) -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        self._place = device_and_dtype(device, dtype)
        model = load_pretrained(
            Mask2FormerForUniversalSegmentation, path, "geneval", ("mask2former",), unused="criterion."
        )
        _check_labels(model.config.id2label, path)
        self.model: Any = model.to(*self._place)
        self._batch_size, self._shortest, self._longest, self._least = batch_size, shortest, longest, least
        self.labels: Sequence[str] = OBJECTS
        self.version = f"mask2former:{path}:{dtype}:{shortest}-{longest}-pil-bilinear-1"

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> list[list[Detection]]:
        """Detections of each of N images, uint8 [N, 3, H, W] in RGB, most confident first."""
        return self._above(pixels, self._least)

    @torch.inference_mode()
    def candidates(self, pixels: Tensor) -> list[list[Detection]]:
        """The same, of everything that is considered, however unsure."""
        return self._above(pixels, 0.0)

    def _above(self, pixels: Tensor, least: float) -> list[list[Detection]]:
        parts = pixels.split(self._batch_size) if len(pixels) else ()
        return [found for part in parts for found in self._detect(part, least)]

    def _detect(self, pixels: Tensor, least: float) -> list[list[Detection]]:
        image = (pixels.shape[-2], pixels.shape[-1])
        size = input_size(*image, self._shortest, self._longest)
        prepare = Preprocessing(None, size, MEAN, STD, Image.Resampling.BILINEAR)
        values = F.pad(prepare(pixels), (0, -size[1] % DIVISOR, 0, -size[0] % DIVISOR))
        found = self.model(pixel_values=values.to(*self._place))
        padded = (values.shape[-2], values.shape[-1])
        pairs = zip(found.class_queries_logits.float(), found.masks_queries_logits.float(), strict=True)
        return [instances(classes, masks, padded, size, image, least) for classes, masks in pairs]


def input_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """(height, width) with the same proportions: as large as both bounds allow, rounded half up."""
    scale = min(longest / max(height, width), shortest / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def instances(
    classes: Tensor,
    masks: Tensor,
    padded: tuple[int, int],
    size: tuple[int, int],
    image: tuple[int, int],
    least: float = 0.0,
) -> list[Detection]:
    """Detections of one image from class logits [Q, C + 1] and mask logits [Q, h, w], scores above ``least``.

    ``padded`` is the network's input, ``size`` the part of it that holds the image, ``image`` the image itself, each
    (height, width). As in mmdet's `MaskFormerFusionHead.instance_postprocess`.
    """
    chances = classes.softmax(dim=-1)[:, :-1]
    best, index = chances.flatten().topk(min(MAX_DETECTIONS, chances.numel()))
    sure = best > least  # a mask's mean sigmoid is at most 1, so the others cannot come out above
    best, index = best[sure], index[sure]
    queries, position = (index // chances.shape[1]).unique(return_inverse=True)
    if not len(queries):
        return []
    logits = F.interpolate(masks[queries][None], padded, mode="bilinear", align_corners=False)
    logits = F.interpolate(logits[..., : size[0], : size[1]], image, mode="bilinear", align_corners=False)[0]
    inside = logits > 0
    quality = (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores = (best * quality[position]).tolist()
    labels = (index % chances.shape[1]).tolist()
    areas = inside.cpu().numpy()
    found = [
        Detection(OBJECTS[label], score, _box(areas[query]), areas[query])
        for label, score, query in zip(labels, scores, position.tolist(), strict=True)
        if score > least
    ]
    return sorted(found, key=lambda detection: -detection.score)


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Of a mask with at least one pixel; the upper ends are exclusive."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _check_labels(labels: dict[int, str], path: str) -> None:
    named = [ALIASES.get(labels[index], labels[index]) for index in sorted(labels)]
    if named != list(OBJECTS):
        wrong = next((a for a, b in zip(named, OBJECTS, strict=False) if a != b), f"{len(named)} classes")
        raise UserError(
            f"geneval: {path} does not detect COCO's 80 classes in their order (found {wrong!r}); give {WEIGHTS}"
        )
