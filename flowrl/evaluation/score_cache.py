"""Scores kept by content: an image that was scored once by the same scorer is not scored again."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.evaluation.suite import SuiteScores
from flowrl.media import quantise
from flowrl.paths import cache_folder
from flowrl.types import Prompt, Samples


@dataclass(frozen=True)
class ScoreCache:
    """The scores of one scorer, a file of JSON lines that grows; ``version`` names all that its scores depend on."""

    version: str
    folder: Path = field(default_factory=lambda: cache_folder("verdicts"))
    _known: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").split("\n"):
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = row
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # empty, or cut off by a crash: that image is scored again

    @property
    def path(self) -> Path:
        """The file of this scorer."""
        return self.folder / f"{hashlib.sha256(self.version.encode()).hexdigest()[:24]}.jsonl"

    def score(self, samples: Samples, scorer: Callable[[Samples], SuiteScores]) -> SuiteScores:
        """``scorer(samples)``, called only with the samples that are not known. The order is kept."""
        assert samples.images is not None
        keys = [_key(*one) for one in zip(samples.prompts, samples.images, strict=True)]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        if new:
            part = replace(samples, prompts=[samples.prompts[row] for row in new], images=samples.images[new])
            self._add([keys[row] for row in new], scorer(part))
        rows = [self._known[key] for key in keys]
        names = rows[0]["measures"] if rows else {}
        columns = {name: [row["measures"][name] for row in rows] for name in names}
        measures = {
            name: torch.tensor([math.nan if value is None else value for value in column])
            for name, column in columns.items()
        }
        return SuiteScores(measures, [row["reasons"] for row in rows], [row["details"] for row in rows])

    def _add(self, keys: Sequence[str], scores: SuiteScores) -> None:
        lines = []
        for row, key in enumerate(keys):
            values = {name: float(column[row]) for name, column in scores.measures.items()}
            known = {
                "key": key,
                "measures": {name: None if math.isnan(value) else value for name, value in values.items()},
                "reasons": list(scores.reasons[row]),
                "details": dict(scores.details[row]),
            }
            self._known[key] = known
            # What could not be scored, such as by a server that was down, is tried again by the next evaluation. The
            # first measure tells: of the others a sample may have none, such as a category that is not in its prompt.
            primary = next(iter(known["measures"].values()), None)
            lines += [] if primary is None else [json.dumps(known) + "\n"]
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))


def files_digest(settings: Mapping[str, Any]) -> str:
    """``:weights-0123456789ab`` of the files that settings name (their names, sizes and times); empty where none do.

    Weights that were replaced in the same place are another scorer.
    """
    facts = []
    for name, value in sorted(settings.items()):
        path = Path(os.path.expanduser(value)) if isinstance(value, str) else None
        if path is not None and os.path.exists(path):  # which takes any text
            files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
            facts += [(name, str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return f":weights-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}" if facts else ""


def _key(prompt: Prompt, image: Tensor) -> str:
    pixels = quantise(image)
    asked = json.dumps({**prompt.columns, "prompt": prompt.text}, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{tuple(pixels.shape)}{asked}".encode())
    digest.update(pixels.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
