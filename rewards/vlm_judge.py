"""A vision-language model judges images or videos: it writes a verdict, whose scores are read (arXiv:2503.05236)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.scorers.endpoint import EndpointOptions
from flowrl.scorers.images import score_images
from flowrl.scorers.videos import score_videos, spaced_frames
from rewards._vlm import open_backend

RANGE = "[0, 1]"
NEEDS = ("path: a vision-language model with safetensors, or url and model of an OpenAI-compatible endpoint",)

_SCORE = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n1. Alignment with the Caption: Assess how well this image aligns with the provided "
    "caption. Consider the accuracy of depicted objects, their relationships, and attributes as described in the "
    "caption.\n2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\nExtract key elements from the provided text caption, "
    "evaluate their presence in the generated image using the format: 'element (type): value' (where value=0 means not "
    "generated, and value=1 means generated), and assign a score from 1 to 5 after 'Final Score:'.\nYour task is "
    "provided as follows:\nText Caption: [{prompt}]"
)
_SEMANTIC = (
    "You are presented with a generated image and its associated text caption. Your task is to analyze the image "
    "across multiple dimensions in relation to the caption. Specifically:\n\n1. Evaluate each word in the caption "
    "based on how well it is visually represented in the image. Assign a numerical score to each word using the "
    'format:\n   Word-wise Scores: [["word1", score1], ["word2", score2], ..., ["wordN", scoreN], ["[No_mistakes]", '
    "scoreM]]\n   - A higher score indicates that the word is less well represented in the image.\n   - The special "
    "token [No_mistakes] represents whether all elements in the caption were correctly depicted. A high score suggests "
    "no mistakes; a low score suggests missing or incorrect elements.\n\n2. Provide overall assessments for the image "
    "along the following axes (each rated from 1 to 5):\n- Alignment Score: How well the image matches the caption in "
    "terms of content.\n- Coherence Score: How logically consistent the image is (absence of visual glitches, object "
    "distortions, etc.).\n- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy."
    '\n\nOutput your evaluation using the format below:\n\n---\n\nWord-wise Scores: [["word1", score1], ..., '
    '["[No_mistakes]", scoreM]]\n\nAlignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\nYour '
    "task is provided as follows:\nText Caption: [{prompt}]"
)
_VIDEO = (
    "You are presented with a generated video and its associated text caption. Your task is to analyze the video "
    "across multiple dimensions in relation to the caption. Specifically:\nProvide overall assessments for the video "
    "along the following axes (each rated from 1 to 5):\n- Alignment Score: How well the video matches the caption in "
    "terms of content.\n- Physics Score: How well the gravity, movements, collisions, and interactions make physical "
    "sense.\n- Style Score: How visually appealing the video looks, regardless of caption accuracy.\n\nOutput your "
    "evaluation using the format below:\n\nAlignment Score (1-5): X\nPhysics Score (1-5): Y\nStyle Score (1-5): Z\n\n"
    "Your task is provided as follows:\nText Caption: [{prompt}]"
)
RUBRICS = {
    "unified_reward": (_SCORE, ("Final Score",)),
    "unified_reward_semantic": (_SEMANTIC, ("Alignment Score", "Coherence Score", "Style Score")),
    "unified_reward_video": (_VIDEO, ("Alignment Score", "Physics Score", "Style Score")),
}
"""What UnifiedReward was trained to be asked, to the letter (CodeGoat24/UnifiedReward, MIT), and what it answers."""
NUMBER = r"[*_`]{0,3}\s*(?:\(\d+\s*-\s*\d+\))?\s*[*_`]{0,3}\s*[:=]\s*[*_`]{0,3}\s*(-?\d+(?:\.\d+)?)"


class vlm_judge:  # noqa: N801 - the name a config uses
    """The mean of the scores that the judge writes about an image or video and its prompt, from `scale` to [0, 1].

    `rubric` is `unified_reward` (v1: one "Final Score: x"), `unified_reward_semantic` ("Alignment Score (1-5): x", also
    Coherence and Style), for videos `unified_reward_video` (v2.0, in its repository on 2026-06-18: Alignment, Physics
    and Style), or your own text with {prompt}, which should ask for a line "Score: x". `fields` are the names
    of the scores to read (all of the rubric by default; the last mention of each counts, since a judge may quote the
    format first). A reply without one of them, or with a number outside of the scale, could not be scored: NaN, and
    `counts["unparsable"]` grows; so it does where a list of words is cut off at `max_tokens` (UnifiedReward's own
    scripts allow 512 for the score, 4096 for the semantic rubric). Peers divide UnifiedReward's score by 5 and take 0
    for a reply that cannot be read.

    `path` is a local image-text-to-text model of transformers (greedy decoding), `url` and `model` an OpenAI-compatible
    endpoint (temperature 0), such as vLLM with CodeGoat24/UnifiedReward-qwen-7b. Images go as they are, as PNG to an
    endpoint (flow_grpo resizes to 512 first). Of a video the judge is shown `frames` evenly spaced ones as so many
    images in their order: 16, each the first of an equal stretch, as UnifiedReward 2.0's own script does. Text inside
    of an image can address the judge, so hold another out.
    """

    def __init__(
        self,
        path: str | None = None,
        url: str | None = None,
        model: str | None = None,
        rubric: str = "unified_reward",
        fields: Sequence[str] | None = None,
        scale: Sequence[float] = (1, 5),
        max_tokens: int = 1024,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
        key_variable: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        concurrency: int = 8,
        frames: int = 16,
    ) -> None:
        template, known = RUBRICS.get(rubric, (rubric, ("Score",)))
        if rubric not in RUBRICS:
            _check_template(rubric)
        if len(scale) != 2 or not scale[0] < scale[1]:
            raise UserError(f"vlm_judge: scale is [lowest, highest], such as [1, 5]; found {list(scale)}")
        for name in fields or ():
            if rubric in RUBRICS and name not in known:
                raise UserError(f"vlm_judge: {rubric} has no field {name!r}{did_you_mean(name, known)}")
        endpoint = EndpointOptions(
            url or "",
            model or "",
            key_variable,
            timeout,
            retries,
            backoff,
            concurrency=concurrency,
            parameters=parameters or {},
        )
        self._backend = open_backend("vlm_judge", path, device, dtype, endpoint, length=max_tokens)
        self._template, self._fields, self._scale = template, tuple(fields or known), tuple(scale)
        if frames < 1:
            raise UserError(f"vlm_judge: frames={frames} should be 1 or more")
        self._batch_size, self._frames = batch_size, frames
        self.counts: Counter[str] = Counter()
        """Replies read, ``unparsable`` ones and ``unanswered`` questions so far."""
        low, high = scale
        self.version = f"vlm_judge:{self._backend.name}:{rubric!r}:{'+'.join(self._fields)}:{low:g}-{high:g}-2"
        self.version += "" if frames == 16 else f":frames-{frames}"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] in [0, 1] of images [N, 3, H, W] or videos [N, F, 3, H, W] in [0, 1]; NaN where there is none."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            questions = [self._template.format(prompt=prompt) for prompt in prompts[rows]]
            replies = self._backend.replies(pixels, questions)
            return torch.tensor([self._read(reply) for reply in replies], dtype=torch.float64)

        if images.ndim == 5:
            return score_videos(spaced_frames(images, self._frames), prompts, self._batch_size, score)
        return score_images(images, prompts, self._batch_size, score)

    def _read(self, reply: str | None) -> float:
        found = None if reply is None else read_scores(reply, self._fields, *self._scale)
        self.counts["unanswered" if reply is None else "unparsable" if found is None else "read"] += 1
        return torch.nan if found is None else found


def read_scores(reply: str, fields: Sequence[str], low: float, high: float) -> float | None:
    """The mean of the fields' scores as a number in [0, 1]; None unless all are there and within the scale.

    A score is ``Field: 4``, ``Field (1-5): 4`` or ``**Field**: 4.5``; the last one of each field counts.
    """
    values = []
    for name in fields:
        found = re.findall(rf"\b{re.escape(name)}{NUMBER}", reply, re.IGNORECASE)
        if not found or not low <= float(found[-1]) <= high:
            return None
        values.append((float(found[-1]) - low) / (high - low))
    return sum(values) / len(values)


def _check_template(rubric: str) -> None:
    if not re.search(r"[\s{]", rubric):
        raise UserError(f"vlm_judge has no rubric {rubric!r}{did_you_mean(rubric, RUBRICS)}")
    if {name for _, name, _, _ in Formatter().parse(rubric) if name is not None} != {"prompt"}:
        raise UserError(
            f"vlm_judge: a rubric of your own contains {{prompt}} and no other field, found {rubric[:60]!r}"
        )
