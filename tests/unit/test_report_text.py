"""The report of a language model's run: completions whole, escaped, and side by side at equal seeds."""

import html
import json
import re

import numpy as np
import pytest

from flowrl.errors import UserError
from flowrl.evaluation.results import VariantScores, summarise
from flowrl.records.sample_files import write_completion, write_text
from flowrl.report import write
from flowrl.report.pictures import LONGEST, Picture, readable, widest

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


def shown(page: str) -> list[str]:
    """The completions as a browser reads them: a line end right after ``<pre>`` is dropped, entities are resolved."""
    return [
        html.unescape(text).removeprefix("\n")
        for text in re.findall(r'<pre class="completion">(.*?)</pre>', page, re.S)
    ]


def test_completions_are_shown_whole_with_their_rewards(tmp_path):
    run = new_run(tmp_path / "run")
    text = "\n  first\n\n\tsecond   third \n"
    add(run, "samples", 1, [text, "short"], [0.625, 0.5])
    page = write(run).read_text()
    assert shown(page) == [text, "short"]
    assert "0.625" in page and "-1.25" in page and "prompt 0\n  indented" in page and "<img" not in page
    assert "samples generated" in page and "images" not in page.replace('class="images"', "").replace(".images", "")


def test_completions_from_outside_are_escaped(tmp_path):
    run = new_run(tmp_path / "run")
    add(run, "samples", 1, [EVIL])
    add(run, "heldout", 0, [EVIL] * 2)
    add(run, "heldout", 5, [EVIL] * 2, [0.0, 1.0])
    page = write(run).read_text()
    assert "alert(1)" in page and "<script" not in page and "<img" not in page
    assert set(shown(page)) == {EVIL}


def test_an_empty_completion_is_said_to_be_empty(tmp_path):
    run = new_run(tmp_path / "run")
    add(run, "samples", 1, ["", " "])
    page = write(run).read_text()
    assert page.count("empty completion") == 1 and shown(page) == [" "]


def test_the_best_and_the_worst_are_shown_beside_what_they_were(tmp_path):
    run = new_run(tmp_path / "run")
    add(run, "heldout", 0, [f"early {n}" for n in range(8)])
    assert "Best and worst" not in write(run).read_text()  # nothing to compare with
    totals = [0.3, 0.9, 0.1, 0.5, 0.8, 0.2, 0.7, 0.4]
    add(run, "heldout", 10, [f"late {n}" for n in range(8)], totals)
    page = write(run).read_text()
    section = page.split("Best and worst held-out completions</h2>")[1].split("<h2>")[0]
    found = shown(section)
    assert found == [text for n in (1, 4, 6, 2, 5, 0) for text in (f"early {n}", f"late {n}")]
    assert "iteration 0" in section and "iteration 10" in section and "advantage" not in section
    over_time = page.split("Held-out prompts over time</h2>")[1].split("<h2>")[0]
    assert shown(over_time)[:2] == ["early 0", "late 0"]


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
    page = write(run).read_text()
    assert shown(page) == ["base 0 0", "tuned 0 0", "base 1 0", "tuned 1 0"]
    assert page.count("✓ correct") == 1 and page.count("✗ wrong") == 3
    rows = {row.split("</td>")[0]: row for row in re.findall(r"<tr[^>]*><td>(.*?)</tr>", page, re.S)}
    assert "0.250" in rows["pass@1"] and "0.750" in rows["pass@1"]
    assert "0.500" in rows["pass@2"] and "1.000" in rows["pass@2"]
    assert "10.5" in rows["tokens"] and "10.500" not in rows["tokens"] and "any of" not in page


def test_results_of_an_older_schema_are_named(tmp_path):
    run = new_run(tmp_path / "run")
    write_text(run / "eval/results.json", json.dumps({"schema": "flowrl.evaluation/1", "suites": {}}))
    with pytest.raises(UserError, match=r"schema flowrl\.evaluation/1, .* run `flowrl eval` again"):
        write(run)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\tb  ü 👩‍🚀", "a\n\tb  ü 👩‍🚀"),
        ("\x00\x1b[31m", "\\u0000\\u001b[31m"),
        ("safe\u202etxt.exe\u2066", "safe\\u202etxt.exe\\u2066"),
    ],
)
def test_invisible_signs_are_written_out(text, expected):
    assert readable(text) == expected


def test_very_long_completions_are_cut_with_a_count():
    text = readable("x" * (LONGEST + 25))
    assert text == "x" * LONGEST + "\n... 25 more characters"


def test_columns_are_as_wide_as_the_texts_need():
    image = Picture("data:", True, "")
    short, long, tall = (Picture("", False, "", text=text) for text in ("1234", "x" * 60, "a\n" * 12))
    assert [p.column for p in (image, short, long, tall)] == ["image", "text", "wide", "wide"]
    assert widest([short, long]) == "wide" and widest([image]) == "image" and widest([]) == "image"
