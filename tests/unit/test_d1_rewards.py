r"""d1's rewards: every number here was returned by the released functions (dllm-reasoning/d1 837888f, SPG a1c7120),
run outside; 540,000 scores of random completions agreed as well, and the normal forms of 300,000 LaTeX strings."""

from __future__ import annotations

import pytest

from flowrl.errors import UserError
from flowrl.score import list_rewards
from rewards.d1 import d1_correctness, d1_int, d1_soft_format, d1_strict_format, d1_xmlcount
from rewards.d1_tasks import d1_boxed, d1_countdown, d1_math, d1_sudoku

ONE_LINE = "<reasoning>\nTwo and two.\n</reasoning>\n<answer>\n4\n</answer>\n"
TWO_LINES = "<reasoning>\nTwo.\nAnd two.\n</reasoning>\n<answer>\n4\n</answer>"
LOOSE = "<reasoning>x</reasoning> <answer>4</answer> and more"
TAIL = "<reasoning>\na\n</reasoning>\n<answer>\n4\n</answer>\nbut wait, there is more"


@pytest.mark.parametrize(
    ("text", "count", "spg_count", "soft", "strict", "whole", "correct"),
    [
        (ONE_LINE, 0.5, 0.488, 0, 0.5, 0.5, 2),
        (TWO_LINES, 0.442, 0.49, 0, 0, 0.5, 2),  # no DOTALL: reasoning of two lines has no strict format
        (LOOSE, 0, 0, 0.5, 0, 0.5, 2),
        ("The answer is 4", 0, 0, 0, 0, 0, 0),
        ("<answer>4.0</answer>", 0, 0, 0, 0, 0, 0),
        (TAIL, 0.454, 0.442, 0, 0, 0.5, 2),
        ("<answer>5</answer><answer> 4 </answer>", 0, 0, 0, 0, 0.5, 2),
        ("4", 0, 0, 0, 0, 0.5, 2),  # without tags the whole text is the answer
    ],
)
def test_gsm8k(
    text: str, count: float, spg_count: float, soft: float, strict: float, whole: float, correct: float
) -> None:
    asked = ([text], ["2 + 2?"])
    assert float(d1_xmlcount(*asked)) == pytest.approx(count, abs=1e-12)
    assert float(d1_xmlcount(*asked, variant="spg")) == pytest.approx(spg_count, abs=1e-12)
    assert float(d1_soft_format(*asked)) == soft
    assert float(d1_strict_format(*asked)) == strict
    assert float(d1_int(*asked)) == whole
    assert float(d1_correctness(*asked, answer=["4"])) == correct
    assert float(d1_correctness(*asked, answer=["so it is\n#### 4"])) == correct


def test_numbers_are_compared_as_texts() -> None:
    assert float(d1_correctness(["<answer>1080</answer>"], ["?"], answer=["#### 1,080"])) == 0
    with pytest.raises(UserError, match="variant is 'd1' or 'spg'"):
        d1_xmlcount(["x"], ["?"], variant="tree")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<answer>2*4-3</answer>", 1),
        ("<answer>\n(2 * 4) - 3\n</answer>", 1),
        ("<answer>2+3*4</answer>", 0.1),
        ("<answer>2*4-3=5</answer>", 0.1),
        ("<answer>2*4</answer>", 0.1),
        ("2*4-3", 0),
        ("<answer>4/(3-2)+1</answer>", 0.1),
        ("<answer>()</answer>", 0.1),
        ("<answer>2**4-3</answer>", 0.1),
        ("<answer>4//3+2</answer>", 0.1),
        ("<answer>4/0*32</answer>", 0.1),
        ("<answer>1</answer> <answer>2*4-3</answer>", 1),
        ("<answer>-(3-2*4)</answer>", 1),
        ("<answer>2**3**4</answer>", 0.1),
        ("<answer>9**9**9**9</answer>", 0.1),  # the released eval does not come back
    ],
)
def test_countdown(text: str, score: float) -> None:
    assert float(d1_countdown([text], ["?"], target=[5], numbers=[[2, 3, 4]])) == score
    assert float(d1_countdown([text], ["?"], target=[5], nums=[[2, 3, 4]])) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<answer>1234341221434321</answer>", 1),
        ("<answer>1234</answer>", 0.5),
        ("<answer>1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1</answer>", 1),
        ("1234341221434321", 0),
        ("<answer>12343412214343211111</answer>", 1),
        ("<answer>none</answer>", 0),
        ("<answer>1111111111111111</answer>", 1 / 6),
    ],
)
def test_sudoku(text: str, score: float) -> None:
    found = d1_sudoku([text], ["?"], puzzle=["1000341200430321"], solution=["1234341221434321"])
    assert float(found) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "gold", "score", "boxed"),
    [
        (r"so \boxed{\frac12}", r"\boxed{\frac{1}{2}}", 2, 0.25),
        (r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", 2, 0.25),
        (r"\boxed{1/2}", r"\boxed{\frac{1}{2}}", 2, 0.25),
        (r"\boxed{x/2}", r"\boxed{x/2}", 2, 0.25),
        (r"\boxed{x/2}", r"\boxed{ x/2}", 0, 0.25),  # has no normal form: compared as it stands
        (r"\boxed{5\text{ cm}}", r"\boxed{5}", 2, 0.25),
        (r"$\boxed 5$ yes", r"\boxed{5}", 2, 0.25),
        ("5", r"\boxed{5}", 2, 0.25),
        ("<answer>5</answer>", r"\boxed{5}", 0, 0.75),
        (r"<answer>\boxed{5}</answer>", r"\boxed{5}", 2, 0.75),  # the box is not seen: one backslash too few
        (r"\boxed{x=5}", r"\boxed{5}", 2, 0.25),
        (r"\boxed{5", r"\boxed{5}", 0, 0.25),
        (r"\boxed{1,000}", r"\boxed{1000}", 0, 0.25),
        (r"\boxed{\sqrt2}", r"\boxed{\sqrt{2}}", 2, 0.25),
        (r"\boxed{50\%}", r"\boxed{50}", 2, 0.25),
    ],
)
def test_math(text: str, gold: str, score: float, boxed: float) -> None:
    assert float(d1_math([text], ["?"], answer=[gold])) == score
    assert float(d1_math([text], ["?"], solution=[gold])) == score
    assert float(d1_boxed([text], ["?"])) == boxed


def test_other_columns_are_named() -> None:
    with pytest.raises(UserError, match="d1_countdown needs the column numbers or nums, found digits"):
        d1_countdown(["x"], ["?"], target=[5], digits=[[1]])
    with pytest.raises(UserError, match="list of whole numbers, found 'ab'"):
        d1_countdown(["x"], ["?"], target=[5], numbers=["ab"])
    with pytest.raises(UserError, match="target should hold a number, found None"):
        d1_countdown(["x"], ["?"], target=[None], numbers=[[1]])
    with pytest.raises(UserError, match=r"puzzle should hold 16 digits \(0 = empty\), found '1\.\.'"):
        d1_sudoku(["x"], ["?"], puzzle=["1.."], solution=["1234341221434321"])
    with pytest.raises(UserError, match="d1_math needs the column answer or solution, found none"):
        d1_math(["x"], ["?"])


def test_they_are_listed() -> None:
    listed = {entry.name: entry for entry in list_rewards() if entry.name.startswith("d1_")}
    assert len(listed) == 9 and all(entry.kind == "text" and entry.range != "unknown" for entry in listed.values())
