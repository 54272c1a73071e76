"""GenEval's colour classifier: CLIP ViT-L/14 on objects cut out of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowrl.detection.objects import COLORS, Detection
from flowrl.errors import UserError
from flowrl.scorers.clip import HuggingFaceClip, unit

WEIGHTS = "openai/clip-vit-large-patch14"
BACKGROUND = "#999"
TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
"""The sentences that stand for a colour of a label."""


class ClipColors:
    """The colour of each of an image's objects, one of ten.

    An object's pixels outside of its mask become grey (#999), then the image is cut to its box: shortest edge to 224
    (bicubic), torchvision's centre crop, so the ends of a long object are not looked at. A colour's prototype is the
    normalised mean of the normalised embeddings of three sentences about this label; the nearest by cosine wins.

    OpenAI's CLIP needs QuickGELU. open_clip 2.20, which GenEval pins, builds it so; later ones only warn and compute
    something else. Here it is read from the weights' configuration; `UserError` where it states another activation.
    """

    def __init__(
        self, path: str = WEIGHTS, *, device: str | None = None, dtype: str = "float32", batch_size: int = 32
    ) -> None:
        self._clip = HuggingFaceClip(path, "geneval", device=device, dtype=dtype, batch_size=batch_size)
        for tower in ("vision_config", "text_config"):
            activation = getattr(self._clip.model.config, tower).hidden_act
            if activation != "quick_gelu":
                raise UserError(
                    f"geneval: the colour classifier is OpenAI's CLIP with hidden_act quick_gelu, but {path} states "
                    f"{activation!r} in its {tower}; give {WEIGHTS}"
                )
        self._side = int(self._clip.model.config.vision_config.image_size)
        self._batch_size = batch_size
        self.version = f"clip-colors:{path}:{dtype}:pil-bicubic-1"

    @torch.inference_mode()
    def __call__(self, image: Tensor, detections: Sequence[Detection]) -> list[str]:
        """The colour of each detection in one image, uint8 [3, H, W]."""
        return [COLORS[int(row.argmax())] for row in self.cosines(image, detections)]

    @torch.inference_mode()
    def cosines(self, image: Tensor, detections: Sequence[Detection]) -> Tensor:
        """[n, 10] cosines of the objects to the prototypes of the ten colours."""
        if not detections:
            return torch.zeros(0, len(COLORS))
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        crops = torch.stack([squared(cut_out(picture, found), self._side) for found in detections])
        seen = torch.cat([self._clip.images(part) for part in crops.split(self._batch_size)])
        prototypes = torch.stack([self._prototypes(found.label) for found in detections])
        return (prototypes @ seen[:, :, None])[:, :, 0]

    def _prototypes(self, label: str) -> Tensor:
        """[10, E]; the sentences' embeddings are remembered."""
        texts = [template.format(color=color, label=label) for color in COLORS for template in TEMPLATES]
        return unit(self._clip.texts(texts).unflatten(0, (len(COLORS), len(TEMPLATES))).mean(dim=1))


def cut_out(picture: Image.Image, found: Detection) -> Image.Image:
    """The object on grey, cut to its box (Pillow rounds the corners); without a mask, the box as it is."""
    if found.mask is not None:
        grey = Image.new("RGB", picture.size, BACKGROUND)
        picture = Image.composite(picture, grey, Image.fromarray(found.mask))
    return picture.crop(found.box)


def squared(picture: Image.Image, side: int) -> Tensor:
    """uint8 [3, side, side] as open_clip prepares images: shortest edge to ``side``, the middle of the longest."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as T

    whole: Any = picture  # torchvision's functions take Pillow's images, their annotations do not
    return T.pil_to_tensor(T.center_crop(T.resize(whole, [side], InterpolationMode.BICUBIC), [side]))
