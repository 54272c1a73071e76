"""CLIPScore: how well an image fits its prompt, as the cosine of CLIP's embeddings. Hessel et al., arXiv:2104.08718."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.scorers.clip import HuggingFaceClip, OpenClip
from flowrl.scorers.images import judge_images, score_images

Backend = Literal["transformers", "open_clip"]
Convention = Literal["cosine", "clipscore", "torchmetrics"]

RANGE = "cosine: 0 to 0.45; convention clipscore: 2.5 times, torchmetrics: 100 times that"
NEEDS = ("weights openai/clip-vit-large-patch14",)


class clipscore:  # noqa: N801 - the name a config uses
    """Cosine of the CLIP embeddings of an image and its prompt, in one of the three conventions that papers use.

    `convention`: `cosine` is the raw cosine (what reinforcement-learning papers report); `clipscore` is
    `2.5 * max(cos, 0)` (the paper, with ViT-B/32 and `prefix: "A photo depicts "`); `torchmetrics` is
    `100 * max(cos, 0)`. Scores of different models do not compare.

    Weights: `openai/clip-vit-large-patch14` by default (428 M parameters, 1.7 GB in float32; OpenAI's code is under the
    MIT licence, its model card asks not to deploy the weights untested). `backend: transformers` takes a folder or a
    hub name; `open_clip` a folder with `open_clip_config.json` and a safetensors file. OpenAI's weights need QuickGELU:
    their transformers configuration states it, an open_clip configuration must (`quick_gelu: true`), or every embedding
    is a little wrong. Only safetensors are read.

    Preprocessing: quantised to uint8 (CLIP was trained on pictures from files), shortest edge to the model's size (224)
    with Pillow's bicubic filter, centre crop, mean and std as the model's files state them (OpenAI's otherwise).
    Prompts are cut at 77 tokens.

    The backends differ in typographic quotes, ligatures, broken encodings and HTML entities, and in where an odd crop
    margin is rounded: `transformers` does as its own processor (prompts as they are), `open_clip` as OpenAI's `clip`
    package, with which the paper's authors scored (ftfy, then unescaping). Take the latter to compare with the paper.
    """

    def __init__(
        self,
        path: str = "openai/clip-vit-large-patch14",
        backend: Backend = "transformers",
        convention: Convention = "cosine",
        prefix: str = "",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        for option, value, known in (("backend", backend, Backend), ("convention", convention, Convention)):
            if value not in get_args(known):
                raise UserError(f"clipscore has no {option} {value!r}{did_you_mean(value, get_args(known))}")
        if backend == "open_clip":
            self._clip = OpenClip(
                path, "clipscore", architecture=None, device=device, dtype=dtype, batch_size=batch_size
            )
        else:
            self._clip = HuggingFaceClip(path, "clipscore", device=device, dtype=dtype, batch_size=batch_size)
        self._convention, self._prefix, self._batch_size = convention, prefix, batch_size
        self.version = f"clipscore:{path}:{backend}:{convention}:{prefix!r}:{dtype}:pil-bicubic-1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN for an image that is not finite."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return (self._clip.images(pixels) * self._texts(prompts[rows])).sum(dim=1)

        return self._in_convention(score_images(images, prompts, self._batch_size, score))

    def gradient(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """The same scores with a gradient to the images: not quantised, resized by torch."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return (self._clip.smooth_images(pixels) * self._texts(prompts[rows])).sum(dim=1)

        return self._in_convention(judge_images(images, prompts, self._batch_size, score))

    def _texts(self, prompts: Sequence[str]) -> Tensor:
        return self._clip.texts([self._prefix + prompt for prompt in prompts])

    def _in_convention(self, cosines: Tensor) -> Tensor:
        if self._convention == "cosine":
            return cosines
        return (2.5 if self._convention == "clipscore" else 100.0) * cosines.clamp(min=0)
