"""Pictures as features: how different those of a prompt are, and how far base, tuned and a reference are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.evaluation.distances import cmmd, diversity, frechet, vendi
from flowrl.evaluation.results import VariantScores
from flowrl.evaluation.target import Target
from flowrl.media import quantise
from flowrl.paths import expand_user
from flowrl.records.sample_files import SUFFIXES, Entry, image_size, read_images
from flowrl.scorers.clip import HuggingFaceClip
from flowrl.scorers.loading import folder_or_repository, from_hub
from rewards.similarity import dino_similarity

WEIGHTS = "openai/clip-vit-large-patch14-336"
"""CMMD's encoder."""
BATCH = 16


@dataclass(frozen=True)
class FeatureSpace:
    """An encoder of pictures, and the features of the reference pictures."""

    name: str
    embed: Callable[[Tensor], Tensor]
    """Unit features [n, E] of pictures uint8 [n, 3, H, W]."""
    reference: Tensor | None = None

    def of(self, entries: Sequence[Entry]) -> list[Tensor]:
        """The features [S, E] of each entry's pictures."""
        features = self.read([file for entry in entries for file in entry.files])
        return list(features.split([len(entry.files) for entry in entries]))

    def read(self, files: Sequence[Path]) -> Tensor:
        """[n, E] float32 on the host; pictures may differ in size."""
        return torch.cat([self._batch(part) for part in _batches(files)])

    @torch.inference_mode()
    def _batch(self, files: Sequence[Path]) -> Tensor:
        return self.embed(quantise(read_images(files))).float().cpu()


def open_space(features: str | None, reference: Path | None, target: Target) -> FeatureSpace | None:
    """The space that the user asks for: an encoder (a CLIP or DINO of transformers; of CMMD by default) and a folder of
    pictures to compare with. None where neither is given. Raises UserError."""
    if features is None and reference is None:
        return None
    option = "--features" if features is not None else "--reference"
    if target.medium != "images":
        raise UserError(f"{option} measures pictures, and {target.text!r} makes {target.medium}; leave it out")
    path = features or WEIGHTS
    space = FeatureSpace(path, _encoder(path))
    if reference is None:
        return space
    folder = expand_user(reference, "--reference")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if len(files) < 2:
        raise UserError(
            f"--reference: {reference} should be a folder with two pictures or more ({', '.join(SUFFIXES)})"
        )
    return replace(space, reference=space.read(files))


def with_diversity(scores: VariantScores, features: Sequence[Tensor]) -> VariantScores:
    """The scores with the measures ``diversity`` and ``vendi``, one number of each prompt with several pictures."""
    if all(len(rows) < 2 for rows in features):
        return scores
    measures = dict(scores.measures)
    for name, measure in (("diversity", diversity), ("vendi", vendi)):
        values = np.full(scores.present.shape, math.nan)
        values[:, 0] = [measure(rows) if len(rows) > 1 else math.nan for rows in features]
        measures[name] = values
    return replace(scores, measures=measures)


def distances(space: FeatureSpace, features: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    """``{"features", "between": [{"of", "from", "pictures", "frechet", "cmmd", "cmmd_unbiased"}, ...]}``: of tuned from
    base, and of every arm from the reference. No intervals: they are numbers of whole sets."""
    sets = {arm: torch.cat(list(rows)) for arm, rows in features.items()}
    if space.reference is not None:
        sets["reference"] = space.reference
    pairs = [("tuned", "base"), *((arm, "reference") for arm in features)]
    known = [(one, other) for one, other in pairs if one in sets and other in sets]
    return {"features": space.name, "between": [_between(one, other, sets) for one, other in known]}


def _between(one: str, other: str, sets: Mapping[str, Tensor]) -> dict[str, Any]:
    paired = (one, other) == ("tuned", "base") and len(sets[one]) == len(sets[other])  # equal prompts and seeds
    released, unbiased = cmmd(sets[one], sets[other], paired)
    numbers = {"frechet": frechet(sets[one], sets[other]), "cmmd": released, "cmmd_unbiased": unbiased}
    known = {name: None if math.isnan(value) else value for name, value in numbers.items()}
    return {"of": one, "from": other, "pictures": [len(sets[one]), len(sets[other])], **known}


def _encoder(path: str) -> Callable[[Tensor], Tensor]:
    from transformers import AutoConfig

    source = folder_or_repository(path, "--features")
    kind = from_hub(lambda: AutoConfig.from_pretrained(source), path, "--features").model_type
    if kind == "clip":
        return HuggingFaceClip(path, "--features", device=None, dtype="float32", batch_size=BATCH).images
    if kind in dino_similarity.TYPES:
        return dino_similarity(path, batch_size=BATCH).embed
    raise UserError(f"--features: {path} is a {kind!r}; give a CLIP or a DINO, such as {WEIGHTS}")


def _batches(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Neighbours of one size, at most `BATCH` at a time."""
    for _, group in groupby(files, key=image_size):
        same = list(group)
        for start in range(0, len(same), BATCH):
            yield same[start : start + BATCH]
