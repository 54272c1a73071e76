"""What a person sees of a run: progress, the report, exit codes, and exports that sample as their run did."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flowrl.commands.sample import SampleOptions, prompts_of, sample
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.evaluation.targets.export_settings import read_export_settings
from flowrl.models import export_policy
from flowrl.models.export_folder import ORIGIN_FILE
from flowrl.report import try_write
from flowrl.runtime.display import Display
from flowrl.startup.policies import policy_of_run
from flowrl.train import train
from tests import pipelines
from tests.launching import PATHS

CONFIG = """
name: tiny
model: {path: shapes, call: {guidance_scale: 1.0, height: 64, width: 64}, lora: {rank: 2, alpha: 4}}
algorithm: {use: diffusion_nft, sampler: {steps: 3, solver: euler}}
rewards: [jpeg_compressibility]
data: {prompts: 2, group: 2, test: "shapes:test"}
train: {iterations: 2, ema: null, threads: 1}
eval: {every: 2, samples: 1, prompts: 2, weights: live}
monitor: {samples: 0}
out: run
"""


def flowrl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowrl", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a short run, and what training it wrote to standard output and standard error."""
    folder = tmp_path_factory.mktemp("seen")
    (folder / "tiny.yaml").write_text(CONFIG)
    done = flowrl(folder, "train", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


@pytest.mark.slow
def test_a_run_says_what_it_does_and_ends_with_a_report(trained: tuple[Path, str, str]) -> None:
    folder, out, err = trained
    assert out == "run  (open report.html in it)\n"
    lines = err.splitlines()
    for words in ("tiny: loading the reward", "tiny: loading the model shapes", "tiny 1/2 | reward ", "tiny 2/2 | "):
        assert any(words.replace("tiny: ", "") in line for line in lines), (words, err)
    assert "busy" not in err and "left 0 s" not in err and "0 s left" not in err
    page = (folder / "run/report.html").read_text()
    assert '"Where the time goes"' in page and "reward_busy" not in page
    said = [json.loads(line)["text"] for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert "loading the model shapes" in said and any(text.startswith("held-out reward ") for text in said)
    spreads = [json.loads(line) for line in (folder / "run/histograms.jsonl").read_text().splitlines()]
    assert [each["step"] for each in spreads] == [1, 2] and sum(spreads[0]["reward"]["counts"]) > 0
    metrics = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    trained_lines = [line for line in metrics if "loss" in line]
    assert trained_lines and all("reward/seconds" in line and "time/reward_busy" not in line for line in trained_lines)
    for line in trained_lines:  # the phases are parts of the iteration
        parts = sum(value for key, value in line.items() if key.startswith("time/") and key != "time/iteration")
        assert parts <= line["time/iteration"] * 1.001


@pytest.mark.slow
def test_an_export_is_sampled_as_its_run_was(trained: tuple[Path, str, str]) -> None:
    folder, _, _ = trained
    asked = ("--prompt", "a red circle ☕", "--seed", "7", "--count", "2", "--out")
    assert flowrl(folder, "sample", "run", *asked, "of_run").returncode == 0
    for to in ("diffusers", "merged"):
        assert flowrl(folder, "export", "run", "--to", to, "--out", to).returncode == 0
        done = flowrl(folder, "sample", to, *asked, f"of_{to}")
        assert done.returncode == 0, done.stderr
        for name in ("00000-0000.png", "00000-0001.png"):
            ours, theirs = (Image.open(folder / place / name) for place in ("of_run", f"of_{to}"))
            assert ours.size == theirs.size == (64, 64)
            assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
            assert theirs.text["prompt"] == "a red circle ☕" and theirs.text["seed"] == "7"
            settings = json.loads(theirs.text["settings"])
            assert settings["call"]["height"] == 64 and settings["sampler"]["steps"] == 3
            assert settings["image_number"] == int(name[6:10]) and theirs.text["Software"].startswith("flowrl ")
    done = flowrl(
        folder, "sample", "diffusers", *asked, "other", "--call", "height=32", "--guidance", "2", "--steps", "2"
    )
    assert done.returncode == 0, done.stderr
    settings = json.loads(Image.open(folder / "other/00000-0000.png").text["settings"])
    assert Image.open(folder / "other/00000-0000.png").size == (64, 32)
    assert settings["call"]["guidance_scale"] == 2 and settings["sampler"]["steps"] == 2
    judge = ("eval", "diffusers", "--suite", "geneval", "--limit", "2", "--samples", "1", "--out")
    done = flowrl(folder, *judge, "large")
    assert done.returncode == 2 and "judges 32x32 images, found 64x64" in done.stderr  # the export's own resolution
    done = flowrl(folder, *judge, "judged", "--call", "height=32", "--call", "width=32")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "results: judged/results.json" and "making 2 images (tuned)" in done.stderr
    assert json.loads((folder / "judged/results.json").read_text())["suites"]["geneval"]["resolution"] == "32x32"


@pytest.mark.slow
def test_every_export_of_a_run_remembers_its_settings(tmp_path: Path) -> None:
    """A FLUX trained at 16 px is sampled at 16 px, whether the command line, Python or a checkpoint wrote the file."""
    base = pipelines.save("flux", tmp_path / "base")
    facts = {
        "name": "small",
        "out": str(tmp_path / "run"),
        "model": {"path": str(base), "call": pipelines.CALLS["flux"], "lora": {"rank": 2, "alpha": 4}, "device": "cpu"},
        "algorithm": {"use": "diffusion_nft", "sampler": {"steps": 3, "solver": "euler"}},
        "data": {"train": "shapes:train", "test": None, "prompts": 2, "group": 2},
        "rewards": ["jpeg_compressibility"],
        "train": {"iterations": 1, "ema": None, "threads": 1},
        "eval": {"every": 0, "weights": "live"},
        "monitor": {"samples": 0},
    }
    run = train(Config.of(facts))
    export_policy(policy_of_run(run, "latest"), tmp_path / "mine", "diffusers")
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    copied = shutil.copytree(checkpoint / "lora", tmp_path / "copied")
    for place in (tmp_path / "mine", checkpoint / "lora", checkpoint / "peft", copied):
        written = sample(
            str(place), prompts_of(["a red circle"]), tmp_path / f"of_{place.name}", SampleOptions(device="cpu")
        )
        assert Image.open(written.files[0]).size == (16, 16)
        origin = read_export_settings(place)
        assert origin is not None and origin.call["guidance_scale"] == 3.5 and "critic" not in origin.load


@pytest.mark.slow
def test_ctrl_c_saves_reports_and_exits_with_130(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "flowrl", "train", "tiny.yaml", "train.iterations=400", "eval.every=0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": PATHS}, stderr=subprocess.PIPE, text=True
    )
    metrics, end = tmp_path / "run/metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "saved after iteration" in err and "go on with --resume auto" in err and "Traceback" not in err
    (saved,) = (tmp_path / "run/checkpoints").glob("step_*")
    assert int(saved.name[5:]) == metrics.read_text().count("\n")
    assert (tmp_path / "run/report.html").exists()


def test_a_report_that_fails_is_a_sentence(tmp_path: Path) -> None:
    said: list[str] = []
    (sentence,) = try_write(tmp_path, said.append)
    assert said == ["writing the report"] and "the report was not written" in sentence and "config.yaml" in sentence


def test_counting_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    text = io.StringIO()
    with Display(console=Console(file=text, width=80)) as shown, shown.counting("making 100 images", 100) as advance:
        for seconds in (20, 40, 60):
            now[0] = seconds
            advance(20)
    assert text.getvalue().splitlines() == [
        "flowrl: making 100 images",
        "flowrl: making 100 images: 40 of 100, 1 min 00 s left",
        "flowrl: making 100 images: done in 1 min 00 s",
    ]


def test_what_an_export_says_is_read_with_care(tmp_path: Path) -> None:
    assert read_export_settings(tmp_path) is None and read_export_settings(tmp_path / "nowhere") is None
    facts = {
        "family": "diffusion",
        "model": {"dtype": "bfloat16", "trust_remote_code": True, "call": {"height": 16}},
        "algorithm": {"use": "flow_grpo", "sampler": {"steps": 4}},
        "eval": {"steps": 6, "guidance": None, "temperature": None},
    }
    (tmp_path / ORIGIN_FILE).write_text(json.dumps(facts))
    origin = read_export_settings(tmp_path)
    assert origin is not None and origin.load == {"dtype": "bfloat16"} and origin.call == {"height": 16}
    for broken in ("{", "[]", "{}", json.dumps(facts | {"algorithm": "no_such"}), json.dumps(facts | {"family": "x"})):
        (tmp_path / ORIGIN_FILE).write_text(broken)
        with pytest.raises(UserError, match=r"flowrl.json is not one that this flowrl wrote .*; delete it"):
            read_export_settings(tmp_path)
