"""Problems with a reference answer, from a local file or the hub, and the suite that checks answers by their value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.config import RewardConfig
from flowrl.data import hub_rows
from flowrl.errors import UserError, missing_package
from flowrl.evaluation.scored import ScoredSuite, scored
from flowrl.records.sample_files import read_json_lines
from flowrl.types import Prompt


@dataclass(frozen=True)
class Source:
    """Where a benchmark's problems are, and the columns that hold them."""

    dataset: str
    configuration: str | None
    question: str
    answer: str
    size: int
    """Problems of the test split; with fewer a result is partial."""


def problems(name: str, source: Source, template: str, data: Path | None) -> ScoredSuite:
    """A suite of answers compared by the reward ``math_answer``.

    ``data`` is a file of JSON lines with the dataset's columns; a line with a ``prompt`` of its own is asked as it
    is. Without it the hub's test split is loaded. Raises UserError where neither can be read.
    """
    rows = _read(data) if data is not None else _download(name, source)
    where = str(data or f"hf:{source.dataset}:test")
    prompts = [_prompt(row, number, where, source, template) for number, row in enumerate(rows)]
    if not prompts:
        raise UserError(f"--data: {where} holds no problems; add lines with {source.question!r} and {source.answer!r}")
    return scored(name, prompts, where, [RewardConfig(use="math_answer", name="correct")], size=source.size)


def _prompt(row: Mapping[str, Any], number: int, where: str, source: Source, template: str) -> Prompt:
    question, own = row.get(source.question), row.get("prompt")
    answer = row.get(source.answer)
    if answer is None or not (isinstance(question, str) or isinstance(own, str)):
        raise UserError(
            f"{where}, problem {number + 1}: needs {source.question!r} (or 'prompt') and {source.answer!r}, found "
            f"{', '.join(map(repr, row)) or 'nothing'}"
        )
    columns = {key: value for key, value in row.items() if key not in (source.question, source.answer, "prompt")}
    text = own if isinstance(own, str) else template.format(question=question)
    return Prompt(text, number, {**columns, "answer": str(answer)})


def _read(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.is_file():
        raise UserError(f"--data: there is no file {path}; give JSON lines, or leave --data out to load from the hub")
    return read_json_lines(path)


def _download(name: str, source: Source) -> Sequence[Mapping[str, Any]]:
    local = f"give the problems as --data FILE.jsonl with {source.question!r} and {source.answer!r}"
    configuration = [] if source.configuration is None else [source.configuration]
    try:
        return hub_rows(source.dataset, *configuration, split="test")
    except ImportError:
        raise missing_package(f"suite {name}", "datasets", "data", local) from None
    except (ValueError, OSError) as error:
        raise UserError(f"suite {name} could not load {source.dataset} ({error}); or {local}") from error
