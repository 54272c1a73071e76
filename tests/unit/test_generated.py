"""Prompts of our own for the papers' tasks, and the papers' files themselves."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from flowrl.data import load_prompts
from flowrl.detection import OBJECTS, check
from flowrl.errors import UserError
from flowrl.generated import SETS, rows
from flowrl.samplers.flow import FlowSampler
from flowrl.worlds.sudoku.grids import solutions
from rewards.d1_tasks import d1_countdown, d1_sudoku
from rewards.ocr import wanted_text


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_splits_share_nothing_and_are_always_the_same(name: str) -> None:
    train, test = rows(name, "train"), rows(name, "test")
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert len(train) > 900 and len(test) > 200
    assert test == rows(name, "test")
    prompts = load_prompts(f"{name}:test").prompts
    assert [prompt.text for prompt in prompts] == [row["prompt"] for row in test]
    with pytest.raises(UserError, match="no split 'tets'; did you mean 'test'"):
        load_prompts(f"{name}:tets")


def test_geneval_prompts_are_in_the_papers_proportions() -> None:
    train = rows("geneval", "train")
    counts = Counter(row["tag"] for row in train)
    assert {tag: count / 400 for tag, count in counts.items()} == {
        "position": 7,
        "counting": 5,
        "color_attr": 3,
        "colors": 1,
        "two_object": 1,
    }
    for row in [*train[:300], *rows("geneval", "test")]:
        check(row, OBJECTS)
    assert set(Counter(row["tag"] for row in rows("geneval", "test")).values()) == {40}


def test_ocr_prompts_quote_what_is_wanted() -> None:
    for row in [*rows("ocr", "train"), *rows("ocr", "test")]:
        assert row["prompt"].count('"') == 2 and wanted_text(row["prompt"], None) == row["text"]


def test_countdown_tasks_can_be_solved() -> None:
    def solved(numbers: list[int], target: int) -> str | None:
        for a, b, c in permutations(numbers):
            for text in (f"({a}{f}{b}){g}{c}" for f in "+-*/" for g in "+-*/"):
                if float(d1_countdown([f"<answer>{text}</answer>"], ["?"], [target], numbers=[numbers])) == 1:
                    return text
            for text in (f"{a}{f}({b}{g}{c})" for f in "+-*/" for g in "+-*/"):
                if float(d1_countdown([f"<answer>{text}</answer>"], ["?"], [target], numbers=[numbers])) == 1:
                    return text
        return None

    for row in rows("countdown3", "test")[:40]:
        assert solved(row["numbers"], row["target"]), row
        assert 1 <= row["target"] <= 99 and Fraction(row["target"]).denominator == 1


def test_sudoku_puzzles_have_one_solution() -> None:
    for row in rows("sudoku4", "test")[:60]:
        assert solutions(row["puzzle"].replace("0", ".")) == [row["solution"]]
        answer = [f"<answer>{row['solution']}</answer>"]
        assert float(d1_sudoku(answer, ["?"], [row["puzzle"]], [row["solution"]])) == 1


def test_the_originals_files_are_read(tmp_path: Path) -> None:
    """GenEval's metadata lines, OCR prompts one a line with the text in quotes, PickScore's captions."""
    line = {
        "tag": "counting",
        "include": [{"class": "zebra", "count": 3}],
        "exclude": [{"class": "zebra", "count": 4}],
        "prompt": "a photo of three zebras",
    }
    (tmp_path / "train_metadata.jsonl").write_text(json.dumps(line) + "\n")
    (prompt,) = load_prompts(str(tmp_path / "train_metadata.jsonl")).prompts
    assert prompt.text == line["prompt"]
    assert prompt.columns == {key: line[key] for key in ("tag", "include", "exclude")}
    (tmp_path / "train.txt").write_text('A shop window that says "Open Late".\n\'a caption, with "two" "texts"\n')
    first, second = load_prompts(str(tmp_path / "train.txt")).prompts
    assert wanted_text(first.text, None) == "Open Late" and wanted_text(second.text, None) == "two"


def test_a_fixed_shift() -> None:
    """Shift 3 of even times: 1, 3 (2/3) / (1 + 2 (2/3)) = 6/7, 3 (1/3) / (1 + 2/3) = 3/5, 0."""
    import torch

    from flowrl.models.tiny_flow import TinyFlow

    policy: Any = TinyFlow(torch.zeros(2, 2), prompts=("a",))
    grid = FlowSampler(steps=3, shift=3.0).grid(policy)
    torch.testing.assert_close(grid.double().cpu(), torch.tensor([1, 6 / 7, 3 / 5, 0]).double())
    assert FlowSampler(steps=3, shift=3.0).heldout(None, None, None).shift is None
    with pytest.raises(ValueError, match=r"shift=0\.0 moves"):
        FlowSampler(shift=0.0)
