"""GenEval verdicts that another tool made, such as the official one with mmdet, with our intervals and report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

import torch
from torch import Tensor

from flowrl.detection.results import Result, read_results
from flowrl.errors import UserError
from flowrl.evaluation.suite import SuiteScores
from flowrl.evaluation.target import Target
from flowrl.records.sample_files import Entry
from flowrl.types import Prompt, Samples

Place = tuple[str, str]
"""Name of a prompt's folder and of an image in it: what stays the same when the whole is moved."""


@dataclass(frozen=True)
class OfficialVerdicts:
    """The results of a file by prompt, given out image by image."""

    results: Mapping[int, Sequence[Result | None]]
    """By prompt, of its images in their order; None where the file has none."""
    _done: dict[int, int] = field(default_factory=lambda: defaultdict(int), init=False, repr=False)

    def of(self, prompts: Sequence[Prompt]) -> list[Result | None]:
        """The results of the next images of these prompts. A prompt's images have to come in their order."""
        found = []
        for prompt in prompts:
            found.append(self.results[prompt.id][self._done[prompt.id]])
            self._done[prompt.id] += 1
        return found


@dataclass(frozen=True)
class ImportedGenEval:
    """The verdicts of a results file on an image folder; nothing is detected here."""

    prompts: Sequence[Prompt]
    source: str
    verdicts: OfficialVerdicts
    tags: Sequence[str]
    size: int
    version: str
    name: str = "geneval"
    title: str = "geneval[imported]"
    primary: str = "correct"

    def score(self, samples: Samples) -> SuiteScores:
        """``correct`` (0 or 1), NaN for an image without a result. A prompt's images have to come in their order."""
        found = self.verdicts.of(samples.prompts)
        reasons = [result.reason.split("\n") if result and result.reason else [] for result in found]
        return SuiteScores({"correct": correct_of(found)}, reasons, [boxes_of(result) for result in found])

    def close(self) -> None:
        """Nothing is held."""


def imported_geneval(target: Target, path: Path, tags: Sequence[str]) -> ImportedGenEval:
    """A suite of the verdicts of an official ``results.jsonl``. Raises UserError as `official_verdicts`."""
    prompts = target.prompts()
    version = f"1:{path.name}"
    return ImportedGenEval(prompts, target.text, official_verdicts(target, path), tags, len(prompts), version=version)


def official_verdicts(target: Target, path: Path) -> OfficialVerdicts:
    """The verdicts of an official ``results.jsonl`` on the images of a folder in GenEval's layout.

    Raises UserError for a target without images, a file that is not understood, or one about other images.
    """
    if not target.entries:
        raise UserError(f"suite geneval: results are about images, and {target.text!r} holds none; give their folder")
    known = {_place(PurePosixPath(result.filename)): result for result in read_results(path)}
    results = {entry.index: [_of(known, file, entry) for file in entry.files] for entry in target.entries}
    if not any(result for row in results.values() for result in row):
        raise UserError(
            f"suite geneval: {path} has no result of an image in {target.text!r}; give the folder it judged"
        )
    return OfficialVerdicts(results)


def correct_of(results: Sequence[Result | None]) -> Tensor:
    """[n] 0 or 1; NaN for an image without a result."""
    return torch.tensor([torch.nan if result is None else float(result.correct) for result in results])


def _of(known: Mapping[Place, Result], file: Path, entry: Entry) -> Result | None:
    result = known.get(_place(file))
    if result is not None and result.prompt != entry.metadata["prompt"]:
        raise UserError(
            f"suite geneval: the results say {result.prompt!r} for {file}, whose prompt is "
            f"{entry.metadata['prompt']!r}; give the folder that was judged"
        )
    return result


def _place(file: PurePath) -> Place:
    """Of ``.../00000/samples/0000.png``."""
    return file.parent.parent.name, file.name


def boxes_of(result: Result | None) -> dict[str, list[list[float]]]:
    """What was detected, ``{label: [[x0, y0, x1, y1, score], ...]}``."""
    boxes: dict[str, list[list[float]]] = {}
    for one in result.detections if result else ():
        boxes.setdefault(one.label, []).append([*one.box, one.score])
    return boxes
