"""`benchmarks.gpu` runs through on the pretended accelerator at tiny sizes, and its models have the released sizes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_models

ROOT = Path(__file__).parents[2]
CHOSEN = ["quickstart_causal_lm", "bfloat16", "offload: encoders", "vae_slicing", "LoRA", "LoRA on NF4",
          "GRPO, 32 completions of 64 tokens"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended accelerator is built with g++")
def test_it_runs_through_at_tiny_sizes(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.gpu", "--size", "tiny", "--device", "fakegpu", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", *CHOSEN], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = {(row["section"], row["arm"]): row for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    for section, arm in (("sd35", "bfloat16"), ("sd35", "offload: encoders"), ("sd35", "vae_slicing"),
                         ("flux", "LoRA"), ("llada", "LoRA"), ("qwen3", "LoRA")):  # fmt: skip
        row = rows[section, arm]
        assert "failed" not in row, row
        assert row["samples/s"] > 0 and row["update s"] > 0 and row["peak GB"] > 0 and row["ratio deviation"] < 0.1
    assert rows["quickstarts", "quickstart_causal_lm"]["equal"] is True
    row = rows["trl", "GRPO, 32 completions of 64 tokens"]
    assert "failed" not in row and ("skipped" in row or row["flowrl s"] > 0), row
    # bitsandbytes has no kernels for this device: a row that fails is not the end
    assert "nf4" in rows["flux", "LoRA on NF4"]["failed"]
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == len(rows) + 1


@pytest.mark.parametrize(("name", "billions"), [("sd35", 2.24), ("flux", 11.9), ("llada", 7.5), ("qwen3", 8.19)])
@pytest.mark.slow
def test_models_have_the_released_sizes(name: str, billions: float) -> None:
    makers = {"sd35": gpu_models._sd35, "flux": gpu_models._flux}
    texts = {"llada": gpu_models._llada, "qwen3": gpu_models._qwen3}
    with torch.device("meta"):
        made = makers[name]().transformer if name in makers else texts[name](False)
    assert sum(p.numel() for p in made.parameters()) / 1e9 == pytest.approx(billions, rel=0.02)
