"""What memory a run takes: estimated from shapes, and measured beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from flowrl.commands.train import planned
from flowrl.config import Config
from flowrl.models.footprint import footprint, measured_activations
from flowrl.models.lora import LoRAOptions
from flowrl.startup.memory import Estimate, estimate
from flowrl.startup.preflight import check_run
from flowrl.train import train

SMALL = ["train.iterations=1", "data.prompts=2", "data.group=2", "eval.every=0"]


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8)) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_a_backward_keeps_is_counted(device: str) -> None:
    """5 rows of 4 bytes: every block saves its input (8 numbers) and the output of tanh (32), once each; recomputed,
    the inputs of the last two, which have a gradient, and one whole block."""
    found = measured_activations(Stack().to(device), {"x": torch.zeros(5, 8, device=device)})
    assert found.whole == 3 * 5 * 4 * (8 + 32)
    assert found.block == 5 * 4 * (8 + 32)
    assert found.checkpointed == 2 * 5 * 4 * 8 + found.block


def test_sizes_of_a_model_without_its_weights() -> None:
    found = footprint("shapes", "diffusion", LoRAOptions(rank=4), {}, 0)
    assert found is not None and (found.latent, found.image) == ((12, 4, 4), (3, 32, 32))
    assert set(found.others) == {"text_encoder", "text_encoder_2", "text_encoder_3", "vae"}
    assert found.activations is not None and found.activations.checkpointed < found.activations.whole
    full = footprint("countdown", "causal", None, {}, 32)
    assert full is not None and full.trained == full.network and full.cache > 0
    assert footprint("owner/never-downloaded", "causal", None, {}, 32) is None


def estimated(*changes: str, device: str = "cuda") -> Estimate:
    config = Config.load("configs/quickstart.yaml", [*SMALL, *changes])
    run = check_run(config)
    asked = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
    found = estimate(asked, run.algorithm, run.workload)
    assert isinstance(found, Estimate)
    return found


@pytest.mark.slow
def test_every_named_key_lowers_its_phase() -> None:
    plain = estimated()
    assert list(plain.phases) == ["load", "encode", "sample", "decode", "reward", "update", "save"]
    for phase, change in (
        ("load", "model.offload=encoders"),
        ("sample", "train.sample_batch=1"),
        ("decode", "model.decode_batch=1"),
        ("update", "train.micro_batch=1"),
        ("update", "model.gradient_checkpointing=true"),
        ("save", "train.ema=null"),
    ):
        changed = estimated(change, *(["eval.weights=live"] if "ema" in change else []))
        assert changed.phases[phase].device < plain.phases[phase].device, change
    assert estimated("train.images=uint8").phases["update"].host < plain.phases["update"].host
    on_cpu = estimated(device="cpu")
    assert on_cpu.peak == 0 and on_cpu.phases["update"].host > plain.phases["update"].host


def test_a_dry_run_shows_it_and_says_where_it_cannot(tmp_path: Path) -> None:
    run = check_run(Config.load("configs/quickstart.yaml", SMALL))
    text = " | ".join(text for _, text in planned(run, tmp_path / "a.yaml"))
    assert "update: " in text and "train.micro_batch, model.gradient_checkpointing" in text


def test_peaks_are_logged_beside_the_estimate(tmp_path: Path) -> None:
    run = train(Config.load("configs/quickstart.yaml", [*SMALL, f"out={tmp_path / 'run'}"]))
    rows = [json.loads(line) for line in (run / "memory.jsonl").read_text().splitlines()]
    assert {"load", "sample", "decode", "update"} <= {row["phase"] for row in rows}
    assert all(row["step"] == 1 and row["host"] > 1e7 for row in rows)
    update = next(row for row in rows if row["phase"] == "update")
    assert update["estimate"]["host"] > 0 and update["devices"] == {}
