"""The mutation job itself: what it changes, what it leaves alone, and that a mutant is noticed or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation import equivalent
from tests.mutation.__main__ import PATHS, ROOT
from tests.mutation.coverage import Coverage, measure
from tests.mutation.mutants import find, of_source, shuffled
from tests.mutation.trial import attempt, forked

SOURCE = '''"""Text with 1 + 1."""
from typing import Literal

Kind = Literal["a", "b"]
LIMIT = 3


class Part:
    """A part, 2 * 2."""

    size: float = 0.5

    def call(self, x: int | None, *, dim: int = 0) -> int:
        """Not this: 1 < 2."""
        if x is None:
            raise ValueError(f"{x + 1} will not do")
        assert x > 0, "above 0"
        x += 1
        return max(x * self.size, 1).clamp(min=0, dtype="y")
'''


def edits(source: str) -> set[tuple[str, str]]:
    return {(m.before, m.after) for m in of_source(source.encode(), "part.py")}


def test_every_kind_of_edit() -> None:
    found = edits(SOURCE)
    line = 'return max(x * self.size, 1).clamp(min=0, dtype="y")'
    expected = {
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 2"),
        ("size: float = 0.5", "size: float = 1.0"),
        ("if x is None:", "if x is not None:"),
        ("x += 1", "x -= 1"),
        ("x += 1", "pass"),
        ("x += 1", "x += 2"),
        ("x += 1", "x += 0"),
        (line, line.replace("x * self", "x / self")),
        (line, line.replace("max(", "min(")),
        (line, line.replace("1)", "2)")),
        (line, line.replace("1)", "0)")),
        (line, line.replace("min=0", "min=1")),
        (line, line.replace("min=0, ", "")),
        (line, "return max(x * self.size, 1)"),
    }
    head = "def call(self, x: int | None, *, dim: int = 0) -> int:"
    assert found == expected | {(head, head.replace("= 0", "= 1"))}


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("return a + b - c", {"return a - b - c", "return a + b + c", "return a + b"}),
        ("return -a if b else c", {"return a if b else c", "return -a if not (b) else c"}),
        ("return a < b", {"return a <= b", "return a >= b"}),
        ("return a and not b", {"return a or not b", "return a and b"}),
        ("return a[:, b:-1]", {"return a[:, (b) + 1:-1]", "return a[:, b:1]", "return a[:, b:-2]",
                               "return a[:, b:-0]"}),
        ("return a.sum() * b.detach()", {"return a.mean() * b.detach()", "return a.sum() / b.detach()",
                                        "return a.sum() * b", "return a.sum()"}),
        ("return where(a, b, c)", set()),
        ("return t.where(a, b, c)", {"return t.where(a, c, b)"}),
        ("return a | {'b': c}", set()),
        ("return f(a, strict=True)", set()),
    ],
)  # fmt: skip
def test_edits_of_a_line(line: str, after: set[str]) -> None:
    assert {new for _, new in edits(f"def f(a, b, c):\n    {line}\n")} == after


def test_a_sample_follows_from_its_seed_and_survives_a_move() -> None:
    mutants = of_source(SOURCE.encode(), "part.py")
    first = [m.content for m in shuffled(mutants, 0)[:5]]
    assert first == [m.content for m in shuffled(mutants[::-1], 0)[:5]] and len(set(first)) == 5
    assert first != [m.content for m in shuffled(mutants, 1)[:5]]
    moved = of_source(SOURCE.replace("LIMIT", "\n\nLIMIT").encode(), "other/part.py")
    assert [m.content for m in shuffled(moved, 0)[:5]] == first


def test_a_mutant_is_tried_in_memory(tmp_path: Path) -> None:
    (tmp_path / "toy_part.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "test_toy.py").write_text(
        "import sys; sys.path.insert(0, '.')\nfrom toy_part import double\n"
        "def test_zero():\n    assert double(0) == 0\ndef test_one():\n    assert double(1) == 2\n"
    )
    mutants = {m.after: m for m in find(tmp_path, ["toy_part.py"])}
    names = ["test_toy.py::test_zero", "test_toy.py::test_one"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        alive = attempt(tmp_path, mutants["return 3 * x"], names[:1], tmp_path, 60)
        noticed = attempt(tmp_path, mutants["return 3 * x"], names, tmp_path, 60)
    assert alive.verdict == "survived" and alive.by == ""
    assert noticed.verdict == "killed" and noticed.by == "test_toy.py::test_one"
    assert "2 * x" in (tmp_path / "toy_part.py").read_text()


TOY = """LIMIT = 3


class Toy:
    size: int = 2

    def double(self, x):
        twice = 2 * x
        return twice

    def cut(self, x):
        return min(x, LIMIT)
"""


def test_tests_are_chosen_by_the_lines_they_run(tmp_path: Path) -> None:
    (tmp_path / "toy_map.py").write_text(TOY)
    (tmp_path / "test_toy_map.py").write_text(
        "import sys; sys.path.insert(0, '.')\nfrom toy_map import Toy\n"
        "def test_double():\n    assert Toy().double(1) == 2\n"
        "def test_both():\n    assert Toy().double(Toy().cut(9)) == 6\n"
        "def test_cut():\n    assert Toy().cut(1) == 1\n"
        "def test_wrong():\n    assert Toy().double(1) == 3\n"
    )
    kept = {"test_toy_map.py": tmp_path / "map.json"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        absent = tmp_path / "absent.json"
        assert forked(lambda: measure(tmp_path, {"test_absent.py": absent}, []), tmp_path / "out.txt", 60) == 4
        assert not absent.exists()  # tests that cannot be run are no map without tests
        assert forked(lambda: measure(tmp_path, kept, ["toy_map.py"]), tmp_path / "out.txt", 60) == 0
    coverage = Coverage.read(tmp_path, kept)
    mutants = {m.after: m for m in find(tmp_path, ["toy_map.py"])}

    def chosen(after: str, seconds: float = 9.0) -> tuple[set[str], int]:
        names, left_out = coverage.likely(mutants[after], seconds)
        return {name.split("::")[1] for name in names}, left_out

    assert chosen("twice = 3 * x") == ({"test_double", "test_both"}, 0)  # without the one that fails anyway
    assert chosen("return max(x, LIMIT)") == ({"test_cut", "test_both"}, 0)
    assert chosen("LIMIT = 4") == ({"test_cut", "test_both"}, 0)  # where its name is used
    assert chosen("size: int = 3") == ({"test_double", "test_cut", "test_both"}, 0)  # where its class is
    assert chosen("twice = 3 * x", 0.0) == ({"test_double"}, 1)  # the most specific, if there is time for one
    (tmp_path / "toy_map.py").write_text("# moved\n\n" + TOY.replace("2 * x", "x * 2"))
    mutants = {m.after: m for m in find(tmp_path, ["toy_map.py"])}
    assert chosen("return max(x, LIMIT)") == ({"test_cut", "test_both"}, 0)
    assert chosen("twice = x * 3") == ({"test_double", "test_both"}, 0)  # a new line: where its function is


def test_every_equivalent_mutant_is_one_and_says_why() -> None:
    """An entry that fits nothing stands for code that has changed: look at it again, or remove it."""
    found = find(ROOT, [path for path in PATHS if (ROOT / path).exists()])
    assert equivalent.unknown(ROOT, found) == []
    assert all(len(reason) > 20 for reason in equivalent.read(ROOT).values())
