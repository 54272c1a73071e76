"""The report of a language model's run: completions whole, escaped, and side by side at equal seeds."""

import json

import numpy as np
import pytest

from flowrl.errors import UserError
from flowrl.evaluation.results import VariantScores, summarise
from flowrl.records.sample_files import write_completion, write_text
from flowrl.report import write
from flowrl.report.pictures import LONGEST, readable
from tests.unit.test_report import answers

EVIL = '"></pre><script>alert(1)</script><img src=x onerror="alert(2)">'
CONFIG = "name: a run\nmodel: {path: sudoku}\nalgorithm: {use: diffu_grpo}\nrewards:\n- {use: sudoku}\n"


def new_run(path):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(CONFIG)
    line = {"step": 1, "samples": 96, "time": 2.5, "reward/mean": 0.25, "reward/sudoku/mean": 0.25}
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return path


def add(run, kind, step, completions, totals=None):
    rows = [
        {
            "prompt": f"prompt {index}\n  indented",
            "prompt_id": index,
            "completion": completion,
            "rewards": {"sudoku": total},
            "total": total,
            "advantage": -1.25,
            "seed": 7,
        }
        for index, (completion, total) in enumerate(zip(completions, totals or [0.5] * len(completions), strict=True))
    ]
    write_text(run / kind / f"step_{step:06d}" / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def cards(run, address):
    return answers(write(run).read_text())[f"runs/0/{address}"]


def test_completions_are_shown_whole_with_their_rewards(tmp_path):
    run = new_run(tmp_path / "run")
    text = "\n  first\n\n\tsecond   third \n"
    add(run, "samples", 1, [text, "short", ""], [0.625, 0.5, 0.0])
    found = cards(run, "samples/samples/1")
    assert [card["text"] for card in found] == [text, "short", ""]
    assert found[0]["rewards"] == {"sudoku": 0.625} and found[0]["advantage"] == -1.25
    assert found[0]["prompt"] == "prompt 0\n  indented" and "image" not in found[0]


def test_tokens_are_shown_where_they_were_recorded_whole(tmp_path):
    run = new_run(tmp_path / "run")
    add(run, "samples", 1, ["ab", "cd", "ef"])
    path = run / "samples/step_000001/samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["tokens"] = {"text": ["a", "b"], "logp": [-0.5, None], "order": [1]}
    rows[1]["tokens"] = {"text": ["c", 4], "order": [0, 1]}
    rows[2]["tokens"] = "none"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [card.get("tokens") for card in cards(run, "samples/samples/1")]
    assert found == [{"text": ["a", "b"], "logp": [-0.5, None]}, {"text": ["c", "4"], "order": [0, 1]}, None]


def test_completions_from_outside_are_data(tmp_path):
    run = new_run(tmp_path / "run")
    add(run, "samples", 1, [EVIL])
    add(run, "heldout", 0, [EVIL] * 2)
    add(run, "heldout", 5, [EVIL] * 2, [0.0, 1.0])
    page = write(run).read_text()
    assert EVIL not in page and "<img src" not in page and "alert(1)" in page
    pairs = answers(page)["runs/0/pairs"]["heldout"]["pairs"]
    assert {pair[side]["text"] for pair in pairs for side in ("before", "after")} == {EVIL}


def test_the_same_prompts_and_seeds_are_paired(tmp_path):
    run = new_run(tmp_path / "run")
    add(run, "heldout", 0, [f"early {n}" for n in range(8)])
    assert cards(run, "pairs")["heldout"] is None  # nothing to compare with
    totals = [0.3, 0.9, 0.1, 0.5, 0.8, 0.2, 0.7, 0.4]
    add(run, "heldout", 10, [f"late {n}" for n in range(8)], totals)
    found = cards(run, "pairs")["heldout"]
    assert [(p["before"]["text"], p["after"]["text"]) for p in found["pairs"]] == [
        (f"early {n}", f"late {n}") for n in range(8)
    ]
    assert [p["after"]["total"] for p in found["pairs"]] == totals and found["pairs"][0]["after"]["advantage"] is None


def test_an_evaluation_shows_both_arms_at_equal_seeds(tmp_path):
    run = new_run(tmp_path / "run")
    arms = {}
    for arm, correct in (("base", [[0.0, 0.0], [0.0, 1.0]]), ("tuned", [[1.0, 1.0], [0.0, 1.0]])):
        lines = []
        for index, sample in np.ndindex(2, 2):
            name = f"sudoku-test/{index:05d}/samples/{sample:04d}.json"
            write_completion(run / "eval" / arm / name, "x", 1)
            measures = {"correct": correct[index][sample], "tokens": 4.0}
            facts = {"tag": "8", "prompt": "1.2=", "correct": bool(correct[index][sample]), "reason": ""}
            said = f"{arm} {index} {sample}"
            lines.append({"filename": name, **facts, "measures": measures, "completion": said})
        write_text(run / "eval" / arm / "sudoku" / "results.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
        values = np.array(correct)
        arms[arm] = VariantScores({"correct": values, "tokens": values + 10.25}, np.ones((2, 2)), [])
    suite = {
        "title": "sudoku",
        "primary": "correct",
        "medium": "completions",
        "sampling": {"temperature": 1.0},
        "partial": False,
        "prompts": 2,
        "prompts_available": 2,
        "samples_per_prompt": 2,
        **summarise(arms, ["8", "8"], ["8"], 200, 0),
    }
    write_text(run / "eval/results.json", json.dumps({"suites": {"sudoku": suite}, "manifest": {"seed": 42}}))
    told = answers(write(run).read_text())
    pairs = told["runs/0/pairs"]["evaluation"]["pairs"]
    sides = [(pair[side]["text"], pair[side]["correct"]) for pair in pairs for side in ("before", "after")]
    assert sides == [("base 0 0", False), ("tuned 0 0", True), ("base 1 0", False), ("tuned 1 0", False)]
    (table,) = told["runs/0/overview"]["tables"]
    rows = {line["label"]: " ".join(line["cells"]) for line in table["lines"]}
    assert "0.250" in rows["pass@1"] and "0.750" in rows["pass@1"]
    assert "0.500" in rows["pass@2"] and "1.000" in rows["pass@2"]
    assert "10.5" in rows["tokens"] and "10.500" not in rows["tokens"] and "any of" not in str(table)


def test_results_of_an_older_schema_are_named(tmp_path):
    run = new_run(tmp_path / "run")
    write_text(run / "eval/results.json", json.dumps({"schema": "flowrl.evaluation/1", "suites": {}}))
    with pytest.raises(UserError, match=r"schema flowrl\.evaluation/1, .* run `flowrl eval` again"):
        write(run)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\tb  ü 👩‍🚀", "a\n\tb  ü 👩‍🚀"),
        ("\x00\x1b[31m", "\\x00\\x1b[31m"),
        ("safe\u202etxt.exe\u2066", "safe\\u202etxt.exe\\u2066"),
    ],
)
def test_invisible_signs_are_written_out(text, expected):
    assert readable(text) == expected


def test_very_long_completions_are_cut_with_a_count():
    text = readable("x" * (LONGEST + 25))
    assert text == "x" * LONGEST + "\n... 25 more characters"
