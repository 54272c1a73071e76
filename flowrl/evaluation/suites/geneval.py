"""GenEval's protocol (arXiv:2310.11513): does the image show the objects, counts, colours and relations asked for?

Prompts, tags, metadata and result lines are GenEval's; the overall is the unweighted mean of the tags' image
accuracies. Two detectors: the exact pixel verifier of the shapes world for that world, and transformers' Mask2Former
with a CLIP for colours for everything else. The title says which, because neither is the mmdet checkpoint behind
published numbers, and these numbers compare with each other only.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from flowrl.data import load_prompts
from flowrl.detection.evaluator import Evaluator, details, load
from flowrl.detection.mask2former import Mask2Former
from flowrl.detection.metadata import TAGS as OFFICIAL_TAGS
from flowrl.detection.metadata import check
from flowrl.detection.objects import OBJECTS
from flowrl.detection.prompts import generate
from flowrl.detection.self_test import Check, Judge, Known, self_test
from flowrl.errors import UserError
from flowrl.evaluation.agreement import OFFICIAL, shared_boxes
from flowrl.evaluation.imported_geneval import (
    OfficialVerdicts,
    boxes_of,
    correct_of,
    imported_geneval,
    official_verdicts,
)
from flowrl.evaluation.prompt_files import read
from flowrl.evaluation.score_cache import ScoreCache, files_digest
from flowrl.evaluation.scorer_suite import check_options
from flowrl.evaluation.self_test import remembered
from flowrl.evaluation.suite import Options, Suite, SuiteEntry, SuiteScores
from flowrl.evaluation.target import Target, prompt_of
from flowrl.media import quantise
from flowrl.paths import expand_user
from flowrl.records.sample_files import read_folder, read_images
from flowrl.scorers.loading import device_and_dtype
from flowrl.types import Prompt, Samples
from flowrl.worlds.images.scenes import CLASSES, COLORS
from flowrl.worlds.shapes import verifier
from flowrl.worlds.shapes.prompts import TAGS
from flowrl.worlds.shapes.scenes import SIZE

WORLDS = ("shapes", "shape_tokens")
"""Those that the exact verifier judges."""
SOURCE = "shapes:test"
NUMBERS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
"""Prompts of the benchmark by tag."""
GENERATED_SEED = 0


@dataclass(frozen=True)
class GenEvalOptions:
    """What detects the objects."""

    detector: str | None = None
    """Folder or hub name of the detector; `clip` likewise."""
    clip: str | None = None
    device: str | None = None
    dtype: str = "float32"
    batch_size: Annotated[int, Field(ge=1)] = 4
    results: str | None = None
    """``results.jsonl`` of the official tool, whose verdicts are taken over instead."""
    official: str | None = None
    """``results.jsonl`` of the official tool, whose verdicts on the same images are compared with ours."""
    known: str | None = None
    """Folder of pictures with known content, in GenEval's layout: the self-test judges them too."""


@dataclass(frozen=True)
class ShapesGenEval:
    """GenEval on the shapes world."""

    prompts: Sequence[Prompt]
    source: str = SOURCE
    name: str = "geneval"
    title: str = "geneval[shapes]"
    version: str = "1"
    primary: str = "correct"
    tags: Sequence[str] = TAGS
    size: int = field(default_factory=lambda: len(load_prompts(SOURCE)))

    def score(self, samples: Samples) -> SuiteScores:
        """``correct`` (0 or 1) and continuous ``score`` of [n, 3, 32, 32] images; UserError for other sizes."""
        images = samples.images
        assert images is not None
        if tuple(images.shape[-2:]) != (SIZE, SIZE):
            height, width = images.shape[-2:]
            raise UserError(
                f"geneval[shapes] judges {SIZE}x{SIZE} images, found {width}x{height}; make them at that size"
            )
        detections = verifier.detect(images)
        verdicts = [
            verifier.verify(found, dict(prompt.columns))
            for found, prompt in zip(detections, samples.prompts, strict=True)
        ]
        return SuiteScores(
            {
                "correct": torch.tensor([float(verdict.strict) for verdict in verdicts]),
                "score": torch.tensor([verdict.score for verdict in verdicts]),
            },
            [verdict.reason.split("; ") if verdict.reason else [] for verdict in verdicts],
            [{"detections": [asdict(detection) for detection in found]} for found in detections],
        )

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class DetectedGenEval:
    """GenEval with Mask2Former; a verdict is kept by image and metadata."""

    prompts: Sequence[Prompt]
    source: str
    evaluator: Evaluator
    options: GenEvalOptions
    cache: ScoreCache
    title: str
    version: str
    size: int
    theirs: OfficialVerdicts | None = None
    name: str = "geneval"
    primary: str = "correct"
    tags: Sequence[str] = OFFICIAL_TAGS

    def score(self, samples: Samples) -> SuiteScores:
        """Official ``correct`` (0 or 1), ``strict`` (exactly what was asked for) and continuous ``score``; ``details``
        are the boxes that counted, as official GenEval writes them.

        With the results of the official tool also its verdict ``official``, the share of its boxes that ours have
        (``boxes_found``), and of ours that it has (``boxes_confirmed``).
        """
        scores = self.cache.score(samples, self._score)
        if self.theirs is None:
            return scores
        results = self.theirs.of(samples.prompts)
        pairs = [
            (torch.nan, torch.nan) if result is None else shared_boxes(ours, boxes_of(result))
            for ours, result in zip(scores.details, results, strict=True)
        ]
        found, confirmed = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        further = {OFFICIAL: correct_of(results), "boxes_found": found, "boxes_confirmed": confirmed}
        return replace(scores, measures={**scores.measures, **further})

    def self_test(self, afresh: bool) -> list[Check]:
        """The checks of detector and colour classifier on the device in use, and on the pictures of ``known``."""
        device, _ = device_and_dtype(self.options.device, self.options.dtype)
        known = _known_pictures(self.options.known)
        digests = [
            hashlib.sha256(repr(one.metadata).encode() + one.pixels.numpy().tobytes()).hexdigest() for one in known
        ]
        facts = {"test": 1, "judge": self.version, "device": str(device), "known": digests}

        def run() -> list[Check]:
            on_host = None if device.type == "cpu" else lambda: _judge(_evaluator(replace(self.options, device="cpu")))
            return self_test(_judge(self.evaluator), self.options.dtype, on_host, known)

        return remembered(facts, afresh, run)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _score(self, samples: Samples) -> SuiteScores:
        assert samples.images is not None
        metadata = [{**prompt.columns, "prompt": prompt.text} for prompt in samples.prompts]
        results = self.evaluator(quantise(samples.images), metadata)
        verdicts = [result.verdict for result in results]
        measures = {
            name: [float(getattr(verdict, name)) for verdict in verdicts] for name in ("correct", "strict", "score")
        }
        return SuiteScores(
            {name: torch.tensor(values) for name, values in measures.items()},
            [verdict.reasons for verdict in verdicts],
            [details(result.kept) for result in results],
        )


def build(target: Target, data: Path | None, options: Options) -> Suite:
    """The suite with the detector that fits the target.

    ``data`` is GenEval's ``evaluation_metadata.jsonl`` or another file with its metadata; without it, prompts of our
    own generator. ``options``: folders or hub names of the `detector` and `clip`, `device`, `dtype`, `batch_size`,
    `official` and `known` (see `GenEvalOptions`); or `results`, the ``results.jsonl`` of the official tool, whose
    verdicts on an image folder are taken over.
    Raises UserError for prompts without metadata, and weights that cannot be loaded.
    """
    check_options("geneval", GenEvalOptions, options)
    chosen = GenEvalOptions(**options)
    if chosen.results is not None:
        return imported_geneval(target, Path(chosen.results), OFFICIAL_TAGS)
    if target.entries:
        prompts, source = target.prompts(), target.text
        if data is not None:
            raise UserError(f"suite geneval: the images of {target.text!r} come with their metadata; leave --data out")
        if all(_of_the_world(prompt) for prompt in prompts):
            return ShapesGenEval(prompts, source=source)
    elif target.world in WORLDS:
        return ShapesGenEval(load_prompts(SOURCE).prompts)
    elif data is not None:
        prompts, source = read(str(data)), str(data)
    else:
        prompts, source = generated(), f"generated:geneval-{GENERATED_SEED}"
    for prompt in prompts:
        check({**prompt.columns, "prompt": prompt.text}, OBJECTS)
    weights = {name: options[name] for name in ("detector", "clip") if name in options}
    return _detected(prompts, source, target, chosen, files_digest(weights))


SUITES = {"geneval": SuiteEntry(build, ("images",), takes_data=True, takes_options=True)}


def generated() -> tuple[Prompt, ...]:
    """580 prompts of the benchmark's kinds, not the benchmark's own."""
    rows = generate(GENERATED_SEED, 100)
    return tuple(prompt_of(row, number) for number, row in enumerate(rows))


def _detected(
    prompts: Sequence[Prompt], source: str, target: Target, options: GenEvalOptions, weights: str
) -> DetectedGenEval:
    """Prompts with the benchmark's numbers of tags are taken for the benchmark; others are only in its style."""
    try:
        evaluator = _evaluator(options)
    except UserError as error:
        missing = not target.entries and not Path(target.text).exists()
        taken = f" ({target.text!r} is no such folder here, so it was taken for a hub name)" if missing else ""
        raise UserError(
            f"{error}{taken}; give other weights as the suite's options detector and clip, or score the images with "
            "the official GenEval tool"
        ) from error
    version = f"1:{evaluator.version}{weights}"
    style = "" if Counter(prompt.columns.get("tag") for prompt in prompts) == NUMBERS else "-style"
    return DetectedGenEval(
        prompts=prompts,
        source=source,
        evaluator=evaluator,
        options=options,
        cache=ScoreCache(f"geneval:{version}"),
        title=f"geneval{style}[mask2former]",
        version=version,
        size=len(prompts),
        theirs=None if options.official is None else official_verdicts(target, Path(options.official)),
    )


def _evaluator(options: GenEvalOptions) -> Evaluator:
    return load(
        options.detector, options.clip, device=options.device, dtype=options.dtype, batch_size=options.batch_size
    )


def _judge(evaluator: Evaluator) -> Judge:
    assert isinstance(evaluator.detector, Mask2Former)
    return Judge(evaluator, evaluator.detector.candidates)


def _known_pictures(folder: str | None) -> list[Known]:
    """The pictures of a folder with what its metadata say is in them. Raises UserError."""
    if folder is None:
        return []
    path = expand_user(folder, "--option geneval.known")
    if not path.is_dir():
        raise UserError(f"--option geneval.known: there is no folder {folder}; give one in GenEval's layout")
    entries = read_folder(path)
    for entry in entries:
        check(entry.metadata, OBJECTS)
    jobs = [(entry, file) for entry in entries for file in entry.files]
    return [Known(file, quantise(read_images([file]))[0], entry.metadata) for entry, file in jobs]


def _of_the_world(prompt: Prompt) -> bool:
    include = prompt.columns.get("include")
    if not isinstance(include, list):
        return False
    return all(
        isinstance(item, dict) and item.get("class") in CLASSES and item.get("color", "red") in COLORS
        for item in include
    )
