"""What is done with finished runs, through the command line: sample, export, report, compare."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import PATHS

CONFIG = """
name: tiny
model: {path: shapes, lora: {rank: 2, alpha: 4}}
algorithm: diffusion_nft
rewards: [jpeg_compressibility]
data: {prompts: 2, group: 2}
train: {iterations: 2, ema: 0.5, threads: 1}
eval: {every: 2, prompts: 2}
"""


def flowrl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowrl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_a_finished_run_is_sampled_exported_and_reported(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    trained = flowrl(tmp_path, "train", "tiny.yaml", "out=whole")
    assert trained.returncode == 0, trained.stderr
    sampled = flowrl(tmp_path, "sample", "whole", "--prompt", "a red circle", "--out", "img", "--count", "2")
    assert sampled.returncode == 0 and len(list((tmp_path / "img").glob("*.png"))) == 2, sampled.stderr
    exported = flowrl(tmp_path, "export", "whole", "--to", "peft", "--out", "lora", "--weights", "live")
    assert exported.returncode == 0 and (tmp_path / "lora/adapter_config.json").is_file(), exported.stderr
    again = flowrl(tmp_path, "export", "whole", "--to", "peft", "--out", "lora")
    assert again.returncode == 2 and "not empty" in again.stderr
    reported = flowrl(tmp_path, "report", "whole")
    assert reported.returncode == 0 and (tmp_path / "whole/report.html").stat().st_size > 10_000, reported.stderr


@pytest.mark.slow
def test_configs_are_compared_over_seeds(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    (tmp_path / "other.yaml").write_text(CONFIG.replace("tiny", "other").replace("diffusion_nft", "awm"))
    command = ("compare", "tiny.yaml", "other.yaml", "train.iterations=1", "--seeds", "2", "--out", "c")
    done = flowrl(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stdout and "other" in done.stdout and "±" in done.stdout
    assert len(list((tmp_path / "c").glob("*/seed*/metrics.jsonl"))) == 4
