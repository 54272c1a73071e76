"""The notebooks of examples/: committed without outputs, and they run from a fresh kernel to the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_without_outputs(path: Path) -> None:
    book = json.loads(path.read_text())
    assert book["nbformat"] == 4 and path.stat().st_size < 20_000
    assert f"]({path.name})" in (path.parent / "README.md").read_text()
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert cells and all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    assert all(not cell["metadata"] for cell in book["cells"])


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    shutil.copy(path, tmp_path)
    book = nbformat.read(tmp_path / path.name, as_version=4)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    (trained,) = [cell for cell in cells if "flowrl.train(" in cell.source]
    assert pictures(trained.outputs) == 1, "one curve, updated in place"
    assert not any("reward" in line and "gradient" in line for line in printed(trained.outputs).splitlines())
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [line["eval/reward/mean"] for line in lines if "eval/reward/mean" in line]
    assert scores[-1] > scores[0] and (run / "rewards").is_dir() == ("rewards=[" in trained.source)


def pictures(outputs: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def printed(outputs: list[Any]) -> str:
    return "".join(output.get("text", "") for output in outputs)
