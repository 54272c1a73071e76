"""PickScore: how likely people would pick this image for this prompt. Kirstain et al., arXiv:2305.01569."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowrl.scorers.clip import HuggingFaceClip
from flowrl.scorers.images import judge_images, score_images

RANGE = "about 18 to 24 (divided by 26 with scaled: true: 0.7 to 0.9)"
NEEDS = ("weights yuvalkirstain/PickScore_v1",)


class pickscore:  # noqa: N801 - the name a config uses
    """PickScore of an image and its prompt: `exp(logit_scale) * cos(image, text)`; exp(logit_scale) is close to 100.

    Weights: `yuvalkirstain/PickScore_v1` (CLIP ViT-H/14, 986 M parameters, 3.9 GB in float32). The code is under the
    MIT licence; the model card states none of its own. The published code takes tokenizer and preprocessing from
    `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`; give it as `processor` if your folder of weights lacks them.

    Preprocessing, as the processor's file states it: quantised to uint8 (people judged saved pictures), shortest edge
    to 224 with Pillow's bicubic filter, centre crop 224, mean and std of OpenAI's CLIP. Prompts are used as they are,
    cut at 77 tokens.

    `scaled` divides by 26, as flow_grpo, DiffusionNFT and others do to come near [0, 1]. Float32 by default: one step
    of bfloat16 at 21 is 0.125, a third of the spread within a group. `path` is a folder in transformers' layout or a
    name on the hub; safetensors only. Raises `UserError` for anything else.
    """

    def __init__(
        self,
        path: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        scaled: bool = False,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        self._clip = HuggingFaceClip(
            path, "pickscore", device=device, dtype=dtype, batch_size=batch_size, processor=processor
        )
        self._factor = self._clip.logit_scale / (26 if scaled else 1)
        self._batch_size = batch_size
        self.version = f"pickscore:{path}:{'div26' if scaled else 'raw'}:{dtype}:pil-bicubic-1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN for an image that is not finite."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return self._factor * (self._clip.images(pixels) * self._clip.texts(prompts[rows])).sum(dim=1)

        return score_images(images, prompts, self._batch_size, score)

    def gradient(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """The same scores with a gradient to the images: not quantised, resized by torch."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return self._factor * (self._clip.smooth_images(pixels) * self._clip.texts(prompts[rows])).sum(dim=1)

        return judge_images(images, prompts, self._batch_size, score)
