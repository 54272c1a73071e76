"""Users' own files and modules: found, checked without being run, and whatever they do is a sentence."""

from pathlib import Path

import pytest

from flowrl.errors import UserError
from flowrl.importing import Place


def place(use: object) -> Place:
    found = Place.of(str(use), "objective")
    assert found is not None
    return found


def test_a_name_without_a_colon_is_no_place() -> None:
    assert Place.of("clipped", "objective") is None
    with pytest.raises(UserError, match=r"objective 'mine\.py': name the function or class in it as well"):
        Place.of("mine.py", "objective")


def test_a_file_is_run_anew_unless_it_is_kept_and_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    size = 1\n")
    mine = place(f"{file}:Mine")
    first = mine.find(keep=True)
    assert mine.find(keep=True) is first and mine.find() is not mine.find()
    file.write_text("class Mine:\n    size = 1_000\n")
    assert mine.find(keep=True) is not first and mine.find(keep=True)().size == 1000


def test_checking_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine: pass\nraise SystemExit('run')\n")
    place(f"{file}:Mine").check()
    with pytest.raises(UserError, match=r"does not define 'Mien'; did you mean 'Mine'"):
        place(f"{file}:Mien").check()
    with pytest.raises(UserError, match=rf"objective file {file} cannot be imported: SystemExit: run \({file}:2 in"):
        place(f"{file}:Mine").find()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Mine:\n  def\n", "line 2: invalid syntax"),
        ("import not_there\n", r"No module named 'not_there' \(.*mine.py:1 in <module>\); install what it needs"),
        ("x = 1\n\n1 / 0\n", r"ZeroDivisionError: division by zero \(.*mine.py:3 in <module>\)"),
        ("import os\nos._exit(3)\n", r"it called os._exit\(3\)"),
        ("Mine = 5\n", "has no function or class 'Mine'"),
    ],
)
def test_what_a_file_does_wrong_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        place(f"{file}:Mine").find(keep=True)


def test_relative_files_hold_after_the_folder_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("mine.py:Mine").with_absolute_path() == f"{tmp_path}/mine.py:Mine"
    assert place("torch.nn:Linear").with_absolute_path() == "torch.nn:Linear"
    with pytest.raises(UserError, match=rf"objective file mine\.py does not exist \(looked in {tmp_path}\)"):
        place("mine.py:Mine").check()


def test_modules_name_their_files() -> None:
    assert place("flowrl.importing:Place").path == Path(__file__).parents[2] / "flowrl/importing.py"
    assert place("no.such.module:f").path is None is place("builtins:print").path
