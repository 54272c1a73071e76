"""docs/extending.md is read out of the page and run, so that it holds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowrl import cli
from flowrl.composition import SLOTS, build
from flowrl.config import Config
from flowrl.types import Batch, Likelihood, Rows, Scores

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()
QUICK = ("data.prompts=3", "data.group=4", "eval.prompts=4", "train.updates=1", "train.threads=1", "monitor.samples=0")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page."""
    for text, name in re.findall(r"```\w+\n(# (\S+)\n.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def flowrl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["flowrl", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert not stopped.value.code, captured.err
        return captured.out

    return run


def test_it_is_one_file_of_about_sixty_lines(page: Path) -> None:
    assert sorted(path.name for path in page.iterdir()) == ["images.yaml", "mine.py", "texts.yaml"]
    assert len((page / "mine.py").read_text().splitlines()) <= 66


def test_it_names_what_there_is() -> None:
    root = Path(__file__).parents[2]
    for path in re.findall(r"`(flowrl/[\w/.]+)`", PAGE):
        assert (root / path).exists(), path
    assert not [slot for slot in SLOTS if not re.search(rf"\b{slot}`", PAGE)]


@pytest.mark.parametrize(
    ("config", "run"), [("images", "my_images"), pytest.param("texts", "my_texts", marks=pytest.mark.slow)]
)
def test_it_trains_resumes_reports_and_samples(page: Path, flowrl: Callable[..., str], config: str, run: str) -> None:
    shown = flowrl("train", f"{config}.yaml", "--dry-run")
    assert "mine.py:QuadraticPull(width=" in shown and "mine.py:RankInGroup()" in shown
    assert "mine.py:QuadraticPull" in flowrl("config", f"{config}.yaml")
    flowrl("train", f"{config}.yaml", *QUICK, "train.iterations=1")
    flowrl("train", f"{config}.yaml", *QUICK, "train.iterations=2", "--resume", "auto")
    lines = [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(line["ratio/first_max_deviation"] < 1e-4 and line["grad_norm"] > 0 for line in lines[1:])
    assert "mine.py:QuadraticPull" in Path("runs", run, "report.html").read_text()
    flowrl("sample", f"runs/{run}", "--prompt", "a red circle" if config == "images" else "2 3 5   = 13:", "--out", "s")


def test_what_it_computes(page: Path) -> None:
    algorithm = build(Config.load(page / "images.yaml").algorithm)
    total, group = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 0.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    valid = torch.tensor([True, True, True, True, True, False])
    scores = Scores(total[:, None], torch.ones(1), ("r",), group, group, valid)
    assert algorithm.advantage(scores, {}).tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    live = Likelihood(torch.tensor([[0.0, 0.5]], requires_grad=True))
    old = Likelihood(torch.zeros(1, 2))
    batch = Batch(torch.tensor([[2.0, -1.0]]), old, torch.ones(1, 2), torch.zeros(1), Rows())
    ratio = torch.tensor(0.5).exp()
    expected = torch.stack([torch.tensor(-2.0), ratio + (ratio - 1) ** 2 / 0.1])[None]
    torch.testing.assert_close(algorithm.objective(live, batch), expected)
    assert algorithm.sampler.dynamics.g == 0.5  # type: ignore[attr-defined]
