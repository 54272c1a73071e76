"""Errors of evaluation keep their cause: damaged files are named, and what is no damage is not called so."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from flowrl.detection.results import read_results
from flowrl.errors import UserError
from flowrl.evaluation import evaluate
from flowrl.evaluation.samples import SampleSource, complete_samples
from flowrl.evaluation.suites import entries, find, math_problems
from flowrl.evaluation.target import Target
from flowrl.evaluation.targets import Request, find_target
from flowrl.records.sample_files import image_size, read_completion, read_folder, read_images, write_image
from flowrl.report import try_write
from flowrl.runtime.display import Display
from flowrl.samplers.causal import CausalSampler
from flowrl.types import Prompt


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"seed": ')
    source = SampleSource(lambda: None, CausalSampler(length=2), 0, {}, medium="completions")
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*; remove .*made again"):
        complete_samples(source, [Prompt("one", 0)], [0], 1, tmp_path)


def test_a_damaged_config_of_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"config\.json is no model's configuration"):
        find_target(str(tmp_path), Request(family="causal"))


def test_images_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", torch.rand(3, 32, 32))
    whole = (tmp_path / "a.png").read_bytes()
    for name, content in (("cut.png", whole[:200]), ("text.png", b"no image"), ("bent.png", whole[:40] + whole[60:])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is not a readable image"):
            read_images([tmp_path / name])
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError):  # the system's own words: nothing to make again
        image_size(tmp_path / "folder.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"a\.png is too large an image"):
        image_size(tmp_path / "a.png")


def test_completions_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text('{"completion": "x"}')
    with pytest.raises(UserError, match=r"0\.json is not a readable completion \(KeyError 'tokens'\); delete it"):
        read_completion(tmp_path / "0.json")
    (tmp_path / "1.json").mkdir()
    with pytest.raises(IsADirectoryError):
        read_completion(tmp_path / "1.json")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9\n")
    write_image(tmp_path / "a.png", torch.rand(3, 8, 8))
    with pytest.raises(UserError, match=r"prompts\.txt is not UTF-8 text"):
        read_folder(tmp_path)
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"results\.jsonl are not UTF-8 text"):
        read_results(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"line 1: not JSON"):
        read_results(tmp_path / "results.jsonl")


def test_a_package_that_datasets_lacks_is_not_called_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str):
        def load(*_: str, split: str) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return load

    target = Target("x", "model", medium="completions")
    monkeypatch.setattr(math_problems, "hub_rows", missing("datasets"))
    with pytest.raises(UserError, match=r"suite gsm8k needs the package datasets: pip install .* or give the problems"):
        find(["gsm8k"], target)
    monkeypatch.setattr(math_problems, "hub_rows", missing("xxhash"))
    with pytest.raises(ModuleNotFoundError, match="xxhash"):
        find(["gsm8k"], target)


def test_a_report_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sentence,) = try_write(tmp_path / "nowhere", lambda _: None)
    assert "nowhere is not a run directory" in sentence and "UserError" not in sentence
    monkeypatch.setattr("flowrl.report.page.Feed", lambda _: 1 // 0)
    (sentence,) = try_write(tmp_path, lambda _: None)
    assert "ZeroDivisionError" in sentence


def test_every_suite_has_a_name_of_its_own_and_says_what_it_reads() -> None:
    assert list(entries()) == sorted(entries()) and {"clip", "geneval", "gsm8k", "sudoku", "rewards"} <= {*entries()}
    reading = {name for name, entry in entries().items() if entry.takes_data}
    assert reading == {*entries()} - {"control", "countdown", "sudoku", "rewards"}
    assert {name for name, entry in entries().items() if entry.takes_options} == reading - {"gsm8k", "math500"}


def test_a_model_is_loaded_once_for_all_decodings(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=200)
    found = evaluate(
        *("countdown", ["countdown"], tmp_path),
        samples=1,
        limit=1,
        temperature=[0, 1],
        display=Display(console=console),
    )
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert lines.count("flowrl: loading the model") == 1 and lines.count("flowrl: making 1 completion (model)") == 2
    assert json.loads((tmp_path / "results.json").read_text()) == found
