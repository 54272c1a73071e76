"""Text in images: how much of the wanted text an optical character reader finds. Flow-GRPO (arXiv:2505.05470)."""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean, missing_package
from flowrl.scorers.images import score_images

Mode = Literal["flow_grpo", "strict"]

RANGE = "[0, 1]"
NEEDS = ("text in quotes in the prompt, or a column `text`", "rapidocr, onnxruntime, rapidfuzz (extra rewards)")
PACKAGES = {"rapidocr": "rewards", "onnxruntime": "rewards", "rapidfuzz": "rewards"}

BATCH = 64
"""Images held as pixels at a time."""
QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')


class ocr:  # noqa: N801 - the name a config uses
    """1 minus the edit distance between the wanted text and the text read, as a share of the characters.

    The wanted text is the prompt's column `text` if there is one, else what stands between its first double quotes
    (straight or curly). A prompt with neither could not be scored: NaN.

    `flow_grpo` is the rule of its released code: spaces removed, lower case; all text found is joined in reading order;
    1 if the wanted text occurs in it, else `1 - min(distance, n) / n` with n characters wanted. Other text in the image
    costs nothing there, so an image flooded with text can win. `strict` counts it: NFKC and case folding, no white
    space, lines from top to bottom, `1 - distance / max(wanted, read)`.

    Reader: RapidOCR on onnxruntime (PP-OCRv6 small detector and recogniser, inside the wheel; Apache-2.0; CPU; nothing
    is downloaded). flow_grpo used PaddleOCR 2.9, whose scores do not compare. Lines below a confidence of 0.5 are
    dropped; text is assumed upright. Preprocessing: quantised to uint8 (the reader takes pictures), longest edge at
    most `side` pixels for the detector, the recogniser reads crops of the full image. `workers` images are read at a
    time, one thread each.
    """

    def __init__(self, mode: Mode = "flow_grpo", side: int = 512, workers: int | None = None) -> None:
        if mode not in get_args(Mode):
            raise UserError(f"ocr has no mode {mode!r}{did_you_mean(mode, get_args(Mode))}")
        if side < 32:
            raise UserError(f"ocr's side should be at least 32 pixels, found {side}")
        self._mode: Mode = mode
        self._side = side
        self._pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
        self._engines = threading.local()  # an engine keeps state while it reads, so every thread has its own
        self._engine()  # a missing package shows now, not in the middle of a run
        self.version = f"ocr:rapidocr-{metadata.version('rapidocr')}:{mode}:side{side}-1"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], text: Sequence[str | None] | None = None, **columns: Any
    ) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN without wanted text, or for an image that is not finite."""
        wanted = [wanted_text(prompt, text[i] if text else None) for i, prompt in enumerate(prompts)]

        def score(pixels: Tensor, rows: slice) -> Tensor:
            arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
            return torch.tensor(list(self._pool.map(self._one, arrays, wanted[rows])), dtype=torch.float64)

        return score_images(images, prompts, BATCH, score)

    def close(self) -> None:
        """End the reading threads."""
        self._pool.shutdown()

    def _one(self, array: Any, wanted: str | None) -> float:
        if wanted is None:
            return float("nan")
        found = self._engine()(array[..., ::-1].copy())  # the engine takes arrays as blue, green, red
        lines = [] if found.txts is None else list(zip(found.boxes, found.txts, strict=True))
        return accuracy(
            wanted, [line for _, line in lines] if self._mode == "flow_grpo" else ordered(lines), self._mode
        )

    def _engine(self) -> Any:
        if not hasattr(self._engines, "value"):
            self._engines.value = _load(self._side)
        return self._engines.value


def wanted_text(prompt: str, text: str | None) -> str | None:
    """The text an image should show: the column's value, else what the prompt quotes first; None for neither."""
    if text is not None and text.strip():
        return text
    quoted = (a or b for a, b in QUOTED.findall(prompt))
    return next((words for words in quoted if words.strip()), None)


def accuracy(wanted: str, lines: Sequence[str], mode: Mode) -> float:
    """Share of the wanted characters that `lines`, joined, get right under one of the two rules."""
    from rapidfuzz.distance import Levenshtein

    if mode == "strict":
        wanted, read = _fold(wanted), _fold("".join(lines))
        return 1 - Levenshtein.distance(wanted, read) / max(len(wanted), len(read))
    wanted, read = wanted.replace(" ", "").lower(), "".join(lines).replace(" ", "").lower()
    if wanted in read:
        return 1.0
    return 1 - min(Levenshtein.distance(wanted, read), len(wanted)) / len(wanted)


def ordered(lines: Sequence[tuple[Any, str]]) -> list[str]:
    """Texts from top to bottom, and from left to right where boxes (four corners [4, 2]) stand on one line."""
    rest = sorted(lines, key=lambda line: float(line[0][:, 1].mean()))
    texts: list[str] = []
    while rest:
        first = rest[0][0][:, 1]
        reach = float(first.mean()) + float(first.max() - first.min()) / 2
        row = [line for line in rest if float(line[0][:, 1].mean()) <= reach]
        texts += [text for _, text in sorted(row, key=lambda line: float(line[0][:, 0].min()))]
        rest = rest[len(row) :]
    return texts


def _fold(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _load(side: int) -> Any:
    try:
        import onnxruntime  # noqa: F401 - RapidOCR's engine, which it does not depend on
        import rapidfuzz  # noqa: F401
        from rapidocr import RapidOCR
    except ImportError as error:
        raise missing_package("ocr", str(error.name), "rewards") from error
    threads = "EngineConfig.onnxruntime."
    return RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,
            "Det.limit_type": "max",
            "Det.limit_side_len": side,
            f"{threads}intra_op_num_threads": 1,
            f"{threads}inter_op_num_threads": 1,
        }
    )
