"""LAION's aesthetic predictor V2: how people would rate the image's looks, whatever it shows. LAION-5B's filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from flowrl.scorers.clip import HuggingFaceClip
from flowrl.scorers.images import judge_images, score_images
from flowrl.scorers.loading import find_safetensors, linear_stack, read_safetensors

RANGE = "about 2 to 8"
NEEDS = ("weights sac+logos+ava1-l14-linearMSE, converted to safetensors", "weights openai/clip-vit-large-patch14")


class aesthetic:  # noqa: N801 - the name a config uses
    """Rating (about 1 to 10) that five linear layers give to the normalised CLIP embedding of an image; no prompt.

    Weights: the head `sac+logos+ava1-l14-linearMSE.pth` from github.com/christophschuhmann/improved-aesthetic-predictor
    (3.7 MB, Apache-2.0), a pickle: convert it once with
    `python -m flowrl.scorers.convert HEAD.pth aesthetic.safetensors` and give that file as `path`. The backbone `clip`
    is `openai/clip-vit-large-patch14` as a folder or hub name (transformers'
    layout, QuickGELU, 1.7 GB in float32; MIT code). Only safetensors are read.

    The layers 768-1024-128-64-16-1 have no activations between them and dropout only in training. Preprocessing:
    quantised to uint8 (it was fitted to ratings of saved pictures), shortest edge to 224 with Pillow's bicubic filter,
    torchvision's centre crop 224, mean and std of OpenAI's CLIP; the embedding has length 1. The original ran CLIP in
    float16 on GPUs, which moves scores by some 0.3 %; here it is float32 unless `dtype` says otherwise.
    """

    def __init__(
        self,
        path: str,
        clip: str = "openai/clip-vit-large-patch14",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        file = find_safetensors(path, "aesthetic")
        self._clip = HuggingFaceClip(clip, "aesthetic", device=device, dtype=dtype, batch_size=batch_size)
        self._clip.preprocess = replace(self._clip.preprocess, floor=False)  # as OpenAI's transform crops
        width = int(self._clip.model.config.projection_dim)
        self._head = linear_stack(read_safetensors(file, "aesthetic"), width, "aesthetic", file)
        self._head.to(self._clip.model.device)
        self._batch_size = batch_size
        self.version = f"aesthetic:{path}:{clip}:{dtype}:pil-bicubic-1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN for an image that is not finite."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return self._head(self._clip.images(pixels))[:, 0]

        return score_images(images, prompts, self._batch_size, score)

    def gradient(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """The same scores with a gradient to the images: not quantised, resized by torch."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return self._head(self._clip.smooth_images(pixels))[:, 0]

        return judge_images(images, prompts, self._batch_size, score)
