"""DPG-Bench (ELLA, arXiv:2403.05135): long prompts, each with a graph of yes-or-no questions about the image.

The benchmark tiles four images and asks mPLUG-large, which runs in no maintained library. Here every image is asked by
a vision-language model of the user's choice, hence ``dpg-like[vqa=...]``: the numbers compare with each other only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.data.files import table
from flowrl.errors import UserError
from flowrl.evaluation.suite import Options, SuiteEntry
from flowrl.evaluation.target import Target
from flowrl.evaluation.vqa_suite import QUESTIONS, VqaSuite, vqa_suite
from flowrl.types import Prompt

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")


def build(target: Target, data: Path | None, options: Options) -> VqaSuite:
    """``data`` is the benchmark's ``dpg_bench.csv``; ``options`` name the model (see `vqa_suite`).

    An image folder's metadata hold the questions, as the folders that this suite makes do. Raises UserError.
    """
    if target.entries:
        prompts, source = target.prompts(), target.text
    elif data is not None:
        prompts, source = read_items(data), str(data)
    else:
        raise UserError("suite dpg needs the benchmark's questions: give --data dpg_bench.csv (TencentQQGYLab/ELLA)")
    return vqa_suite("dpg", prompts, source, options, version="1", product=False)


SUITES = {"dpg": SuiteEntry(build, ("images",), takes_data=True, takes_options=True)}


def read_items(path: Path) -> tuple[Prompt, ...]:
    """The prompts of ``dpg_bench.csv``, a row per question, in the order of the file. Raises UserError."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise UserError(f"suite dpg reads the benchmark's dpg_bench.csv, found {path.name}")
    rows = table(path)
    items: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows, 2):
        absent = [column for column in COLUMNS if column not in row]
        if absent:
            raise UserError(f"{path}: column {absent[0]!r} is missing; give the benchmark's dpg_bench.csv")
        items.setdefault(row["item_id"], []).append({**row, "where": f"{path}, row {number}"})
    if not items:
        raise UserError(f"{path} holds no questions; give the benchmark's dpg_bench.csv")
    return tuple(
        Prompt(parts[0]["text"], number, {"item_id": item, QUESTIONS: [_question(row) for row in parts]})
        for number, (item, parts) in enumerate(items.items())
    )


def _question(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        ids = [int(part) for part in row["dependency"].split(",") if part.strip()]
        return {
            "text": row["question_natural_language"],
            "id": int(row["proposition_id"]),
            "parents": [parent for parent in ids if parent != 0],  # 0: depends on nothing
            "category": row["category_broad"],
        }
    except ValueError as error:
        raise UserError(f"{row['where']}: proposition_id and dependency should be numbers; repair the file") from error
