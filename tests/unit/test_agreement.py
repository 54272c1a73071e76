"""Agreement of two judges: counts and kappa by hand, boxes one to one, and an official file beside a detector."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import flowrl.evaluation.suites.geneval as module
from flowrl.detection.evaluator import Evaluator
from flowrl.detection.objects import Detection
from flowrl.errors import UserError
from flowrl.evaluation import evaluate, show
from flowrl.evaluation.agreement import agreement, kappa, shared_boxes
from flowrl.records.sample_files import sample_path, write_image, write_text
from tests.tiny_scorers import pictures


def test_kappa_is_cohens() -> None:
    assert kappa(20, 5, 10, 15) == pytest.approx(0.4)  # 35 of 50 agree, 0.5 by chance
    assert kappa(3, 0, 0, 4) == 1.0 and kappa(0, 3, 3, 0) == -1.0
    assert kappa(4, 4, 4, 4) == 0.0
    assert math.isnan(kappa(5, 0, 0, 0)) and math.isnan(kappa(0, 0, 0, 0))


def test_counts_leave_out_what_one_judge_does_not_know() -> None:
    ours = np.array([[1, 1], [0, 0], [1, np.nan]], float)
    theirs = np.array([[1, 0], [1, 0], [np.nan, 1]], float)
    found = agreement(ours, theirs, ["a", "a", "b"])
    assert {
        key: found["overall"][key] for key in ("images", "both", "ours", "theirs", "neither", "agree", "kappa")
    } == {
        **dict.fromkeys(("both", "ours", "theirs", "neither"), 1),
        **{"images": 4, "agree": 0.5, "kappa": 0.0},
    }
    low, high = found["overall"]["wilson"]
    assert low == pytest.approx(0.15, abs=0.01) and high == pytest.approx(0.85, abs=0.01)
    assert found["tags"]["a"]["images"] == 4
    assert found["tags"]["b"] == {
        **dict.fromkeys(("images", "both", "ours", "theirs", "neither"), 0),
        **dict.fromkeys(("agree", "wilson", "kappa")),
    }


def test_boxes_are_matched_one_to_one_within_a_label() -> None:
    box, near, far = [0, 0, 10, 10, 0.9], [0, 0, 10, 8, 0.5], [20, 20, 30, 30, 0.5]
    assert shared_boxes({"dog": [box, near]}, {"dog": [box]}) == (1.0, 0.5)  # the second has nobody left
    assert shared_boxes({"dog": [near]}, {"dog": [far, box]}) == (0.5, 1.0)
    assert shared_boxes({"cat": [box]}, {"dog": [box]}) == (0.0, 0.0)
    assert all(map(math.isnan, shared_boxes({}, {})))


class Brightness:
    """A dog in every bright picture."""

    version = "brightness"
    labels: Sequence[str] = ("dog", "cat")

    def __call__(self, pixels: torch.Tensor) -> list[list[Detection]]:
        means = pixels.float().mean(dim=(1, 2, 3))
        return [[Detection("dog", 0.9, (0.0, 0.0, 20.0, 20.0))] if mean > 127 else [] for mean in means]


def test_official_results_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_evaluator", lambda _: Evaluator(Brightness(), None))
    monkeypatch.setattr(module.DetectedGenEval, "self_test", lambda *_: [])
    rows: list[dict[str, Any]] = [
        {"tag": tag, "include": [{"class": "dog", "count": 1}], "prompt": f"a dog {tag}"}
        for tag in ("single_object", "colors")
    ]
    bright = [True, False, True, False]
    verdicts = [True, True, False, None]  # of the last image nothing is known
    folder, lines = tmp_path / "images", []
    for number, (light, verdict) in enumerate(zip(bright, verdicts, strict=True)):
        row, file = rows[number // 2], sample_path(folder, number // 2, number % 2)
        write_text(folder / f"{number // 2:05d}/metadata.jsonl", json.dumps(row))
        write_image(file, pictures(1)[0] * 0.2 + (0.7 if light else 0.0))
        details = {"dog": [[0.0, 0.0, 20.0, 18.0, 0.8]]} if verdict else {}
        line = {
            **{"filename": str(file), "tag": row["tag"], "prompt": row["prompt"], "correct": verdict, "reason": ""},
            **{"metadata": json.dumps(row), "details": json.dumps(details)},
        }
        lines += [json.dumps(line)] if verdict is not None else []
    official = tmp_path / "official.jsonl"
    official.write_text("\n".join(lines))
    options = {"geneval": {"official": str(official), "device": "cpu"}}
    results = evaluate(str(folder), ["geneval"], tmp_path / "out", options=options)
    suite = results["suites"]["geneval"]
    found = suite["agreement"]
    keys = ("both", "ours", "theirs", "neither")
    assert [found["tags"]["single_object"][key] for key in keys] == [1, 0, 1, 0]
    assert [found["tags"]["colors"][key] for key in keys] == [0, 1, 0, 0] and found["overall"]["images"] == 3
    measures = suite["arms"]["images"]["measures"]
    assert measures["official"]["samples"]["value"] == pytest.approx(2 / 3)
    assert measures["boxes_found"]["samples"]["value"] == 0.5 and measures["boxes_confirmed"]["samples"]["value"] == 0.5
    again = evaluate(str(folder), ["geneval"], tmp_path / "again", options=options)
    assert again["suites"]["geneval"]["agreement"] == found  # ours from the cache, theirs from the file
    console = Console(width=100, record=True)
    show(results, console)
    text = console.export_text()
    assert "Agreement with the official tool" in text and "official alone" in text
    with pytest.raises(UserError, match="results are about images"):
        evaluate("somewhere/model", ["geneval"], tmp_path / "o", family="diffusion", options=options)
