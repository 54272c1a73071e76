"""What the monitor does to a run and shows in its report."""

import io
import json

import pytest
from rich.console import Console

from flowrl.config import Config
from flowrl.records import checkpoint_folder
from flowrl.records.directory import RunDirectory
from flowrl.report import write
from flowrl.report.alarms import watched
from flowrl.report.record import read
from flowrl.runtime.display import Display
from flowrl.train import train


def run_directory(path, *lines, config="name: a run\nmonitor: {limit: 1.0, from_the_future: 1}\n"):
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(config)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read(path)


def test_the_report_tells_what_was_raised_and_when(tmp_path):
    def line(step, value, z, alarm):
        key = "heldout/contrast"
        return {"step": step, f"monitor/{key}": value, f"monitor/{key}/z": z, f"alarm/{key}": alarm}

    def told(*lines):
        record = run_directory(tmp_path, *lines)
        write(tmp_path)  # the whole page of it
        return watched(record.metrics, record.config)

    found = told(line(0, 0.5, 0.0, 0), line(5, 0.05, -2.5, 1), line(10, 0.01, -3.25, 1))
    (alarm,) = found["alarms"]
    assert "contrast of held-out samples is 0.01, below the base model's 0.5 by 3.2" in alarm.text
    assert alarm.when == "iterations 5 to 10" and alarm.raised and found["checked"] == 1
    (row,) = found["rows"]
    assert (row.base, row.last, row.z, row.state) == ("0.5", "0.01", "-3.2", "bad")
    (over,) = told(line(0, 0.5, 0.0, 0), line(5, 0.05, -2.5, 1), line(10, 0.4, 0.0, 0))["alarms"]
    assert over.when == "iteration 5, then over" and not over.raised
    assert told(line(0, 0.5, 0.0, 0))["alarms"] == []
    assert told({"step": 1}) is None
    (late,) = told(line(20, 0.05, -2.5, 1))["alarms"]
    assert "below that of the base model by 2.5" in late.text  # the log began after the base model


CONFIG = {
    "name": "tiny",
    "model": {"path": "shapes", "lora": {"rank": 8, "alpha": 8}},
    "algorithm": {"use": "flow_grpo", "sampler": {"steps": 4}},
    "rewards": ["jpeg_compressibility"],
    "data": {"prompts": 8, "group": 2},
    "train": {"iterations": 3, "threads": 1, "ema": None},
    "optimizer": {"lr": 3.0, "max_grad_norm": 1e6},  # the model is ruined by its first update
    "eval": {"every": 2, "prompts": 8, "weights": "live"},
    "checkpoint": {"every": 1},
    "log": {"samples": 0},
}


def run_with(path, resume=None, **monitor):
    """What a run said, its metrics from iteration 1 on, and its checkpoints."""
    config = Config.of(CONFIG | {"out": str(path), "monitor": monitor})
    said = io.StringIO()
    train(config, resume=resume, display=Display("tiny", 3, console=Console(file=said, width=10_000)))
    return said.getvalue(), RunDirectory(path).metrics()[1:], checkpoint_folder.finished(path / "checkpoints")


@pytest.mark.slow
def test_a_ruined_run_goes_on_stops_or_stops_before_it(tmp_path):
    said, lines, saved = run_with(tmp_path / "on", action="none")
    assert len(lines) == 3 and [path.name[-1] for path in saved] == ["1", "2", "3"]
    assert "alarm: " in said and any(value for key, value in lines[1].items() if key.startswith("alarm/"))
    assert not any(value for key, value in lines[0].items() if key.startswith("alarm/"))

    said, lines, saved = run_with(tmp_path / "stop", action="stop")
    assert len(lines) == 2 and [path.name[-1] for path in saved] == ["1", "2"]
    assert "monitor.action=stop: saved and stopped after iteration 2" in said

    said, lines, saved = run_with(tmp_path / "back", action="rollback")
    assert len(lines) == 2 and [path.name[-1] for path in saved] == ["1"]
    assert "rollback: stopped after iteration 2 without a checkpoint; the last one before the alarm is" in said
    assert f"is {saved[0]}, the best by eval/reward/mean is {saved[0]}" in said

    again, lines, _ = run_with(tmp_path / "back", resume="auto", action="rollback")
    assert len(lines) == 2 and again.count("alarm: ") == said.count("alarm: ")  # the same story, from the same state
