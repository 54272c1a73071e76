"""Mathematical problems with a reference answer, from a local file or the hub: GSM8K and MATH-500, zero-shot.

The prompt is the problem, a blank line and a request for the form of the answer. ``correct`` is equality of the
mathematical value (reward ``math_answer``). Compare with zero-shot numbers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flowrl.config import RewardConfig
from flowrl.data import hub_rows
from flowrl.errors import UserError, missing_package
from flowrl.evaluation.reward_suite import RewardSuite, reward_suite
from flowrl.evaluation.suite import Options, SuiteEntry
from flowrl.evaluation.target import Target
from flowrl.records.sample_files import read_json_lines
from flowrl.types import Prompt


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's problems are, the columns that hold them, and how they are asked."""

    dataset: str
    configuration: str | None
    question: str
    answer: str
    size: int
    """Problems of the test split; with fewer a result is partial."""
    template: str
    """The prompt, with ``{question}``."""


BENCHMARKS = {
    "gsm8k": Benchmark(  # Cobbe et al. 2021, arXiv:2110.14168: the number after #### of the reference
        *("openai/gsm8k", "main"),
        question="question",
        answer="answer",
        size=1319,
        template="{question}\n\nReason step by step. Then write the final answer, a number, after ####.",
    ),
    "math500": Benchmark(  # Lightman et al. 2023, arXiv:2305.20050: the headline is the mean, so level is no tag
        *("HuggingFaceH4/MATH-500", None),
        question="problem",
        answer="answer",
        size=500,
        template="{question}\n\nReason step by step, and put the final answer within \\boxed{{}}.",
    ),
}


def build(name: str, _target: Target, data: Path | None, _options: Options) -> RewardSuite:
    """A suite of answers compared by the reward ``math_answer``.

    ``data`` is a file of JSON lines with the dataset's columns; a line with a ``prompt`` of its own is asked as it
    is. Without it the hub's test split is loaded. Raises UserError where neither can be read.
    """
    source = BENCHMARKS[name]
    rows = _read(data) if data is not None else _download(name, source)
    where = str(data or f"hf:{source.dataset}:test")
    prompts = [_prompt(row, number, where, source) for number, row in enumerate(rows)]
    if not prompts:
        raise UserError(f"--data: {where} holds no problems; add lines with {source.question!r} and {source.answer!r}")
    return reward_suite(name, prompts, where, [RewardConfig(use="math_answer", name="correct")], size=source.size)


SUITES = {name: SuiteEntry(partial(build, name), ("completions",), takes_data=True) for name in BENCHMARKS}


def _prompt(row: Mapping[str, Any], number: int, where: str, source: Benchmark) -> Prompt:
    question, own = row.get(source.question), row.get("prompt")
    answer = row.get(source.answer)
    if answer is None or not (isinstance(question, str) or isinstance(own, str)):
        raise UserError(
            f"{where}, problem {number + 1}: needs {source.question!r} (or 'prompt') and {source.answer!r}, found "
            f"{', '.join(map(repr, row)) or 'nothing'}"
        )
    columns = {key: value for key, value in row.items() if key not in (source.question, source.answer, "prompt")}
    text = own if isinstance(own, str) else source.template.format(question=question)
    return Prompt(text, number, {**columns, "answer": str(answer)})


def _read(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.is_file():
        raise UserError(f"--data: there is no file {path}; give JSON lines, or leave --data out to load from the hub")
    return read_json_lines(path)


def _download(name: str, source: Benchmark) -> Sequence[Mapping[str, Any]]:
    local = f"give the problems as --data FILE.jsonl with {source.question!r} and {source.answer!r}"
    configuration = [] if source.configuration is None else [source.configuration]
    try:
        return hub_rows(source.dataset, *configuration, split="test")
    except ModuleNotFoundError as error:
        if error.name != "datasets":  # a package that it needs is broken, which its own words tell
            raise
        raise missing_package(f"suite {name}", "datasets", "data", local) from error
    except (ValueError, OSError) as error:
        raise UserError(f"suite {name} could not load {source.dataset} ({error}); or {local}") from error
