"""What memory a run takes: estimated from shapes, and measured beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowrl.commands.train import planned
from flowrl.composition import build
from flowrl.config import Config
from flowrl.config.schema import OptimizerConfig
from flowrl.launcher import Launch
from flowrl.models.footprint import Footprint, footprint
from flowrl.models.held_bytes import counting, fetched_layers, forward_bytes, training_bytes
from flowrl.models.lora import LoRAOptions
from flowrl.models.placement import checkpoint_blocks
from flowrl.models.portions import Computing, Portions
from flowrl.runtime.memory_log import resident, room
from flowrl.startup import memory
from flowrl.startup import shortage as shortages
from flowrl.startup.memory import Estimate, Phase, estimate, state_bytes
from flowrl.startup.preflight import check_run
from flowrl.startup.shortage import shortage
from flowrl.startup.workload import workload
from flowrl.train import train

SMALL = ["train.iterations=1", "data.prompts=2", "data.group=2", "eval.every=0"]
ONE = Portions(sampled=1, updated=1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 32, bias=False), nn.Linear(32, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.wide(x).tanh())


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def inputs(rows: int = 5) -> torch.Tensor:
    return torch.empty(rows, 8, device="meta")


def test_what_a_forward_holds_is_counted() -> None:
    """5 rows of 4 bytes: the network's input and a block's (8 numbers each), and both sides of tanh (32 each)."""
    stack = Stack().to("meta")
    assert forward_bytes(lambda: stack(inputs())) == 5 * 4 * (8 + 8 + 32 + 32)
    with counting() as (held, _):
        kept = inputs()
        assert held.now == 5 * 4 * 8 and kept[1:].view(-1).shape == (32,)  # views are no further bytes
        del kept
        assert held.now == 0


def test_what_a_backward_keeps_is_counted() -> None:
    """Every block keeps its input (8) and what tanh gave (32); recomputed, the inputs alone. In both, the last block's
    backward holds three gradients beside them: of its output, of tanh's (32), of the narrow weight (32 x 8 numbers)."""
    stack = Stack().to("meta")
    whole = training_bytes(lambda: stack(inputs()), stack.parameters())
    assert whole == 5 * 4 * (4 * (8 + 32) + 8 + 8 + 32) + 4 * 8 * 32
    checkpoint_blocks(stack)
    assert training_bytes(lambda: stack(inputs()), stack.parameters()) == whole - 5 * 4 * (3 * 32 + 8 - 8)
    assert all(parameter.grad is not None for parameter in stack.parameters())


def test_precision_and_fused_attention_are_those_of_a_device() -> None:
    """Under autocast: the input and its cast, the weight's cast, the output. Attention saves queries, keys, values, the
    output and a number for each query, and no matrix of scores."""
    layer = nn.Linear(8, 32, bias=False, device="meta")
    assert forward_bytes(lambda: layer(inputs()), torch.bfloat16) == 5 * 8 * (4 + 2) + 8 * 32 * 2 + 5 * 32 * 2
    norm = nn.LayerNorm(8, device="meta", dtype=torch.bfloat16)
    with torch.no_grad(), counting(torch.bfloat16):
        assert norm(inputs().bfloat16()).dtype == torch.float32

    def attend() -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(*torch.empty(3, 1, 2, 64, 8, device="meta"))

    assert forward_bytes(attend) == 4 * (4 * 2 * 64 * 8 + 2 * 64)


def test_fetched_layers_are_counted() -> None:
    layer = nn.Linear(8, 32, bias=False, device="meta").requires_grad_(False)
    plain = forward_bytes(lambda: layer(inputs()))
    with fetched_layers(layer):
        assert forward_bytes(lambda: layer(inputs())) == plain + 4 * 8 * 32
    assert forward_bytes(lambda: layer(inputs())) == plain


@pytest.mark.slow
def test_sizes_of_a_model_without_its_weights() -> None:
    found = footprint("shapes", "diffusion", LoRAOptions(rank=4), {"guidance_scale": 1.0}, ONE)
    assert found is not None and (found.latent, found.image) == ((12, 4, 4), (3, 32, 32))
    assert set(found.others) == {"text_encoder", "text_encoder_2", "text_encoder_3", "vae"}
    assert found.computing.known and found.computing.decoding > 4 * 3 * 32 * 32
    guided = footprint("shapes", "diffusion", LoRAOptions(rank=4), {"guidance_scale": 4.0}, ONE)
    assert guided is not None and 1.5 < guided.computing.updating / found.computing.updating < 2.1
    full = footprint("countdown", "causal", None, {}, Portions(1, 1, prompt=16, length=16))
    longer = footprint("countdown", "causal", None, {}, Portions(1, 1, prompt=16, length=32))
    assert full is not None and full.trained == full.network and full.computing.known
    assert longer is not None and longer.computing.sampling > full.computing.sampling > 0
    assert footprint("owner/never-downloaded", "causal", None, {}, ONE) is None


@pytest.mark.parametrize(
    ("options", "half", "expected"),
    [
        ({}, False, 8),
        ({"use": "SGD"}, False, 0),
        ({"use": "SGD", "options": {"momentum": 0.9}}, False, 4),
        ({"use": "Adafactor"}, False, 0),
        ({}, True, 12),
        ({"masters": False}, True, 8),
    ],
)
def test_an_optimisers_state_is_measured(options: dict[str, Any], half: bool, expected: float) -> None:
    assert state_bytes(OptimizerConfig(**options), half=half) == pytest.approx(expected, abs=0.1)


SIZES = Footprint(1000, 100, {"text": 300, "vae": 50}, Computing(1, 2, 3, 4, 5), 20, 500, (4, 8, 8), (3, 64, 64))


def of_sizes(monkeypatch: pytest.MonkeyPatch, *changes: str, device: str = "cuda") -> Estimate:
    """For a model of which nothing is known but `SIZES`."""
    monkeypatch.setattr(memory, "footprint", lambda *_: SIZES)
    config = Config.load("configs/quickstart.yaml", [*SMALL, f"model.device={device}", *changes])
    algorithm = build(config.algorithm)
    found = estimate(config, algorithm, workload(config, algorithm))
    assert isinstance(found, Estimate)
    return found


def estimated(*changes: str, device: str = "cuda") -> Estimate:
    config = Config.load("configs/quickstart.yaml", [*SMALL, *changes])
    run = check_run(config)
    asked = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
    found = estimate(asked, run.algorithm, run.workload)
    assert isinstance(found, Estimate)
    return found


def test_weights_and_state_follow_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes on the device while rewards are computed: frozen weights, live ones and two averages, state."""

    def held(*changes: str) -> float:
        return of_sizes(monkeypatch, *changes).phases["reward"].device

    parts = 4 * (300 + 50)
    assert held() == pytest.approx(4 * 1000 + parts + 100 * (3 * 4 + 8), rel=1e-3)
    half = ["model.dtype=bfloat16"]
    assert held(*half) == pytest.approx(2 * 1000 + parts / 2 + 100 * (3 * 4 + 8), rel=1e-3)
    assert held(*half, "model.offload=encoders") == pytest.approx(2 * 1000 + 100 * (3 * 4 + 8), rel=1e-3)
    assert held(*half, "model.offload=sequential") == pytest.approx(100 * (3 * 4 + 8), rel=1e-3)
    full = ["model={path: shapes, device: cuda, full: true, dtype: bfloat16, trained_dtype: bfloat16}"]
    assert held(*full) == pytest.approx(parts / 2 + 100 * (2 + 2 * 4 + 4 + 8), rel=1e-3)
    assert held(*full, "optimizer.masters=false") == pytest.approx(parts / 2 + 100 * (2 + 2 * 4 + 8), rel=1e-3)
    assert held("model={path: shapes, device: cuda, full: true}", "optimizer={use: SGD}") == pytest.approx(
        parts + 100 * 12, rel=1e-3
    )


def test_a_split_network_is_a_ranks_part_and_what_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "launch", lambda: Launch(0, 4, 0, 4, "here", 1, True, "0"))
    plain, split = (of_sizes(monkeypatch, *changes).phases for changes in ([], ["model.shard=fsdp"]))
    assert plain["reward"].device - split["reward"].device == pytest.approx(4 * 1000 * 3 / 4)
    gathered = split["sample"].device - split["reward"].device
    assert gathered - 4 * 500 * 3 / 4 == plain["sample"].device - plain["reward"].device
    kinds = ("none", "fsdp")
    full = [
        of_sizes(monkeypatch, f"model={{path: shapes, device: cuda, full: true, shard: {kind}}}").phases
        for kind in kinds
    ]
    assert full[0]["reward"].device - full[1]["reward"].device == pytest.approx(100 * (3 * 4 + 8) * 3 / 4, rel=1e-3)


def test_what_is_estimated_is_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_sizes(monkeypatch)
    assert list(found.phases) == ["load", "sample", "decode", "reward", "update", "save"]
    assert found.phases["sample"].device - found.phases["reward"].device == 3
    assert found.phases["decode"].device - found.phases["reward"].device == 4


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.load("configs/quickstart.yaml", ["model.device=cuda"])
    found = Estimate({"load": Phase(1e9, 2e9, "model.dtype"), "update": Phase(24e9, 1e9, "train.micro_batch")})
    rooms = {0: 64e9, 1: 16e9}  # by the number of devices asked about
    monkeypatch.setattr(shortages, "count", lambda kind: 1)
    monkeypatch.setattr(shortages, "room", lambda devices: rooms[len(devices)])
    said = shortage(found, config)
    assert said is not None and said.lacking
    assert "the phase update takes about 24.00 GB of the device, which has 16.00 GB" in said.sentence
    assert said.sentence.endswith("lower: train.micro_batch")
    rooms[1] = 26e9
    said = shortage(found, config)
    assert said is not None and not said.lacking and "which has no more than 26.00 GB" in said.sentence
    rooms[1], rooms[0] = 80e9, 1e9
    said = shortage(found, config)
    assert said is not None and said.lacking and "load takes about 2.00 GB of the host" in said.sentence
    rooms[0] = 64e9
    assert shortage(found, config) is None


def test_the_hosts_room_is_what_is_free_and_what_is_held() -> None:
    found = room([])
    assert found is None or found > resident() > 0


@pytest.mark.slow
def test_every_named_key_lowers_its_phase() -> None:
    plain = estimated()
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


def test_a_dry_run_shows_it_and_says_where_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = check_run(Config.load("configs/quickstart.yaml", SMALL))
    text = " | ".join(text for _, text in planned(run, tmp_path / "a.yaml"))
    assert "update: " in text and "train.micro_batch, model.gradient_checkpointing" in text
    assert "which has" not in text
    monkeypatch.setattr(shortages, "room", lambda devices: 1000)
    assert "which has 0.0 MB for it; lower: " in " | ".join(text for _, text in planned(run, tmp_path / "a.yaml"))


def test_peaks_are_logged_beside_the_estimate(tmp_path: Path) -> None:
    run = train(Config.load("configs/quickstart.yaml", [*SMALL, f"out={tmp_path / 'run'}"]))
    rows = [json.loads(line) for line in (run / "memory.jsonl").read_text().splitlines()]
    assert {"load", "sample", "decode", "update"} <= {row["phase"] for row in rows}
    assert all(row["step"] == 1 and row["host"] > 1e7 for row in rows)
    update = next(row for row in rows if row["phase"] == "update")
    assert update["estimate"]["host"] > 0 and update["devices"] == {}
