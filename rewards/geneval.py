"""GenEval as a reward: does the image show the objects, counts, colours and relations its metadata asks for?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flowrl.detection import Rules
from flowrl.detection.evaluator import load
from flowrl.errors import UserError, did_you_mean
from flowrl.scorers.images import score_images

Mode = Literal["continuous", "flow_grpo", "strict", "official"]

RANGE = "[0, 1]; below 0 with mode 'flow_grpo' and far too many objects"
NEEDS = (
    "include",
    "weights facebook/mask2former-swin-small-coco-instance",
    "weights openai/clip-vit-large-patch14",
)


class geneval:  # noqa: N801 - the name a config uses
    """GenEval's judgement of an image by the metadata of its prompt, with transformers' Mask2Former. arXiv:2310.11513.

    `official` is the benchmark's own verdict, 0 or 1: at least the objects asked for, more are forgiven outside of
    counting. `strict` is 1 for exactly the objects asked for. `continuous` is the mean of a term in [0, 1] per clause:
    `1 - |found - wanted| / wanted`, the share of right colours, and whether the position holds, the latter two 0 unless
    the number is exact. `flow_grpo` is that with the terms of its release (flow_grpo, DiffusionNFT, AWM): far too many
    objects are negative, a wrong position is (1 + 1 + 0 + 1) / 4 instead of 2/3, see
    `flowrl.detection.rules.released_terms`.

    The detector is Meta's Mask2Former Swin-S (68.7 M parameters), not mmdet's of the published numbers, and sees RGB:
    the public reward servers feed mmdet images with red and blue exchanged. The colour classifier is OpenAI's CLIP
    ViT-L/14 (428 M parameters; MIT code, see the model card). Both together take about 2 GB in float32. `detector` and
    `clip` are folders in transformers' layout or hub names; safetensors only. See `flowrl.detection` for preprocessing.

    `metadata` is GenEval's: the prompt's columns `include`, and `exclude` and `tag` if present (`counting` raises the
    threshold from 0.3 to 0.9). Raises `UserError` for weights that do not fit and objects that COCO does not have.
    """

    def __init__(
        self,
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        clip: str = "openai/clip-vit-large-patch14",
        mode: Mode = "continuous",
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 4,
    ) -> None:
        if mode not in get_args(Mode):
            raise UserError(f"geneval has no mode {mode!r}{did_you_mean(mode, get_args(Mode))}")
        rules = Rules(threshold, counting_threshold)
        self._evaluate = load(detector, clip, rules=rules, device=device, dtype=dtype, batch_size=batch_size)
        self._mode, self._batch_size = mode, batch_size
        self.version = f"geneval[mask2former]:{mode}:{self._evaluate.version}"

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN for an image that is not finite."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            verdicts = [result.verdict for result in self._evaluate(pixels, metadata[rows])]
            if self._mode == "official":
                return torch.tensor([float(verdict.correct) for verdict in verdicts])
            if self._mode == "strict":
                return torch.tensor([float(verdict.strict) for verdict in verdicts])
            if self._mode == "flow_grpo":
                return torch.tensor([verdict.released for verdict in verdicts])
            return torch.tensor([verdict.score for verdict in verdicts])

        return score_images(images, prompts, self._batch_size, score)
