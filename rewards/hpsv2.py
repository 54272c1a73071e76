"""Human Preference Score v2 and v2.1: CLIP ViT-H/14 tuned on people's choices. Wu et al., arXiv:2306.09341."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowrl.scorers.clip import OpenClip
from flowrl.scorers.images import CLIP_MEAN, CLIP_STD, judge_images, score_images

RANGE = "about 0.2 to 0.35 (papers print 100 times that)"
NEEDS = ("weights xswu/HPSv2, converted to safetensors",)


class hpsv2:  # noqa: N801 - the name a config uses
    """Cosine of the embeddings of an image and its prompt, without a logit scale; v2 and v2.1 differ in their weights.

    Weights: `xswu/HPSv2` on the hub, files `HPS_v2_compressed.pt` and `HPS_v2.1_compressed.pt` (ViT-H/14 in open_clip's
    layout, 986 M parameters, 3.9 GB in float32; Apache-2.0). They are pickles; convert the one you want once with
    `python -m flowrl.scorers.convert HPS_v2.1_compressed.pt hpsv2.1.safetensors` and give that file (or its folder) as
    `path`. Scores of v2 and v2.1 do not compare.

    Preprocessing, as the published code does it: quantised to uint8 (it reads files), then a float tensor; the longest
    edge to 224 with torchvision's bicubic filter on that tensor (no rounding afterwards); black bars to a square; mean
    and std of OpenAI's CLIP. `antialias: false` is torchvision before 0.17, which did not antialias tensors: try
    it when comparing with tables of 2023. The published code runs under automatic mixed precision, this one in float32.
    Tokenizer: open_clip's, cut at 77 tokens. Raises `UserError` for weights that are missing, pickled or of another
    architecture.
    """

    def __init__(
        self,
        path: str,
        antialias: bool = True,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        self._clip = OpenClip(path, "hpsv2", architecture="ViT-H-14", device=device, dtype=dtype, batch_size=batch_size)
        size, where = self._clip.size, self._clip.device
        self._clip.preprocess = lambda pixels: letterbox(pixels.to(where).float() / 255, size, antialias)
        self._clip.smooth = lambda images: letterbox(images.to(where).clamp(0, 1), size, antialias)
        self._batch_size = batch_size
        self.version = f"hpsv2:{path}:{dtype}:letterbox-{'antialias' if antialias else 'plain'}-1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN for an image that is not finite."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return (self._clip.images(pixels) * self._clip.texts(prompts[rows])).sum(dim=1)

        return score_images(images, prompts, self._batch_size, score)

    def gradient(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """The same scores with a gradient to the images: not quantised."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return (self._clip.smooth_images(pixels) * self._clip.texts(prompts[rows])).sum(dim=1)

        return judge_images(images, prompts, self._batch_size, score)


def letterbox(values: Tensor, size: int, antialias: bool) -> Tensor:
    """Normalised [N, 3, size, size] of values [N, 3, H, W] in [0, 1]: longest edge to `size`, black bars around."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    height, width = values.shape[-2:]
    scale = size / max(height, width)
    inner = [round(height * scale), round(width * scale)]
    if scale != 1:
        values = transform.resize(values, inner, InterpolationMode.BICUBIC, antialias=antialias)
    high, wide = size - inner[0], size - inner[1]
    values = transform.pad(values, [wide // 2, high // 2, wide - wide // 2, high - high // 2], fill=0)
    return transform.normalize(values, list(CLIP_MEAN), list(CLIP_STD))
