"""Networks split over processes by FSDP2: the gradients, weight sets and metrics of one process, and checkpoints that
any number of processes reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models import load_policy
from flowrl.models.sharding import ShardedWeights, check_exchange, check_shard, weight_sets
from flowrl.models.tiny_flow import TinyFlow
from flowrl.models.weights import PointerWeights
from flowrl.records import checkpoint
from flowrl.startup.preflight import check_run
from tests import pipelines
from tests.forks import flowrl
from tests.training import Processes, Work, apart, config_of

LORA = {"rank": 4, "alpha": 8}
SIZES = {"train__updates": 1, "data__prompts": 3, "data__group": 4, "train__micro_batch": 4, "monitor__samples": 0}


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes(2) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "base", "full", "changes"),
    [
        ("flow_grpo", "shapes", False, {}),
        ("flow_grpo", "shapes", True, {"model__gradient_checkpointing": True}),
        ("diffusion_nft", "shapes", True, {}),  # with old and reference weights
        ("grpo", "sudoku", True, {"train__updates": 2}),
        ("ppo", "sudoku", True, {"model__critic": "head", "data__prompts": 1}),  # a process without any sample
        ("diffu_grpo", "sudoku", False, {}),
        ("spg", "sudoku", True, {}),  # a coupled loss
    ],
)
def test_training_is_that_of_one_process(
    processes: Processes, preset: str, base: str, full: bool, changes: dict[str, Any]
) -> None:
    values = config_of(preset, base, **{**SIZES, **changes})
    values["model"] = {k: v for k, v in values["model"].items() if k not in ("full", "lora")}
    values["model"] |= {"full": True} if full else {"lora": LORA}
    one = processes.train(1, values, Work(2))[0]
    values["model"]["shard"] = "fsdp"
    first, second = processes.train(2, values, Work(2))
    assert first.metrics == second.metrics
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))
    assert float(one.gradients[-1].norm()) > 1e-4
    assert apart(first.gradients[0], one.gradients[0]) < 1e-6
    for found, wanted in zip(first.gradients, one.gradients, strict=True):
        assert apart(found, wanted) < 1e-3  # AdamW divides rounding by rounding in the first steps
    key = "loss/regularizers" if "kl/reference" not in one.metrics[-1] else "kl/reference"
    if key in one.metrics[-1]:
        assert one.metrics[-1][key] > 0
        assert first.metrics[-1][key] == pytest.approx(one.metrics[-1][key], rel=1e-3)


# ---- runs


CONFIG = """
name: tiny
model: {path: %s, device: cpu, %s}
algorithm: {use: %s}
rewards: ['mine.py:reward']
data: {train: '%s', test: null, prompts: 3, group: 4}
train: {iterations: 2, ema: 0.5, threads: 1, micro_batch: 4}
optimizer: {schedule: constant, lr: 1.0e-3, eps: 1.0e-4}
eval: {every: 0}
checkpoint: {every: 1, keep: 5}
monitor: {samples: 0}
log: {samples: 0}
"""
REWARD = """
import torch

def reward(images=None, completions=None, prompts=None):
    if images is not None:
        return images.mean(dim=(1, 2, 3))
    return torch.tensor([float(sum(map(ord, text)) % 17) for text in completions])
"""


def prepare(folder: Path, kind: str, full: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    trained = "full: true" if full else "lora: {rank: 2, alpha: 4}"
    if kind == "causal":
        filled = ("sudoku", trained, "grpo, length: 16", "sudoku:train")
    else:
        path = folder.parent / "sd3"
        if not path.exists():
            pipelines.save("sd3", path)
        call = ", ".join(f"{key}: {json.dumps(value)}" for key, value in pipelines.CALLS["sd3"].items())
        filled = (str(path), f"{trained}, call: {{{call}}}", "flow_grpo, sampler: {steps: 4}", "shapes:train")
    (folder / "tiny.yaml").write_text(CONFIG % filled)
    (folder / "mine.py").write_text(REWARD)
    return folder


def tensors(folder: Path, step: int) -> dict[str, Tensor]:
    return dict(checkpoint.load(folder / f"run/checkpoints/step_{step:06d}").tensors)


def trained(folder: Path, size: int, *more: str) -> Path:
    done = flowrl(folder, "train", "tiny.yaml", "out=run", *more, "--allow-changed", size=size)
    assert done.returncode == 0, done.stderr
    return folder


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], start: dict[str, Tensor] | None = None) -> None:
    """Weights and moments; the change since ``start`` is what is compared, where it is given."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].shape == value.shape, key
    for part in ("weights/live", "weights/ema", "optimizer/"):
        names = [key for key in wanted if key.startswith(part) and wanted[key].is_floating_point()]
        ours, theirs = (torch.cat([t[key].flatten().double() for key in names]) for t in (found, wanted))
        before = 0 if start is None or part == "optimizer/" else torch.cat([start[k].flatten().double() for k in names])
        assert apart(ours - before, theirs - before) < 1e-4, part


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "full"), [("diffusion", False), ("causal", True)])
def test_a_run_goes_on_with_any_number_of_processes(tmp_path: Path, kind: str, full: bool) -> None:
    one = trained(prepare(tmp_path / "one", kind, full), 1)
    two = trained(prepare(tmp_path / "two", kind, full), 2, "model.shard=fsdp")
    files = sorted(path.name for path in (two / "run/checkpoints/step_000002/state").iterdir())
    assert files == [*(["shard_00000.safetensors", "shard_00001.safetensors"] if full else []), *sorted(
        ["state.safetensors", "values.json"]
    )]  # fmt: skip
    for step in (1, 2):
        assert_close(tensors(two, step), tensors(one, step), None if step == 1 else tensors(one, 1))
    for size, split in ((1, "none"), (3, "fsdp")):
        other = tmp_path / f"on{size}"
        shutil.copytree(two, other)
        shutil.rmtree(other / "run/checkpoints/step_000002")
        trained(other, size, f"model.shard={split}", "--resume", "auto")
        assert_close(tensors(other, 2), tensors(two, 2), tensors(two, 1))
    to = "merged" if full else "peft"
    for folder in (one, two):
        done = flowrl(folder, "export", "run", "--to", to, "--out", "out", "--checkpoint", "latest")
        assert done.returncode == 0, done.stderr
    assert_same_files(two / "out", one / "out")
    if full:
        assert_damage_is_seen(two)


def assert_same_files(found: Path, wanted: Path) -> None:
    from safetensors.torch import load_file

    files = sorted(path.relative_to(wanted) for path in wanted.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(found) for path in found.rglob("*.safetensors"))
    for file in files:
        ours, theirs = load_file(found / file), load_file(wanted / file)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)


def assert_damage_is_seen(folder: Path) -> None:
    path = folder / "run/checkpoints/step_000002/state/shard_00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard_00001.safetensors is damaged .*use --resume .*step_000001"):
        checkpoint.load(path.parent.parent)


# ---- what is refused


def test_shards_are_not_exchanged_by_pointer() -> None:
    class Shard(nn.Parameter):
        def to_local(self) -> Tensor:
            return self.data

    parameter = Shard(torch.zeros(2))
    with pytest.raises(ValueError, match="cannot be exchanged by pointer"):
        PointerWeights({"w": parameter})
    with pytest.raises(ValueError, match="belong to a network that is not split"):
        ShardedWeights(nn.Linear(1, 1), {"w": parameter})


def test_parameters_collected_too_early_are_refused() -> None:
    network = nn.Linear(2, 2)
    early = dict(network.named_parameters())
    network.weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="weight was collected before its network was placed"):
        weight_sets(network, early)


def test_a_set_that_computes_the_same_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TinyFlow(torch.zeros(1, 2))
    network = policy.network
    before = [p.detach().clone() for p in policy.parameters()]
    check_exchange(policy.weights, lambda: network(torch.ones(1, 5)), "a network")
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert policy.weights.names() == ["live", "reference"]
    monkeypatch.setattr(PointerWeights, "_switch", lambda self, name: None)
    with pytest.raises(UserError, match="a network computes the same with other weights"):
        check_exchange(policy.weights, lambda: network(torch.ones(1, 5)), "a network")


def test_one_process_does_not_split() -> None:
    check_shard("none")
    with pytest.raises(UserError, match="this is the only one; start the run with torchrun"):
        load_policy("sudoku", family="causal", shard="fsdp")


@pytest.mark.parametrize(("plugin", "kind"), [("DEEPSPEED", "none"), ("DEEPSPEED", "fsdp"), ("FSDP", "none")])
def test_plugins_of_accelerate_are_not_passed_over(monkeypatch: pytest.MonkeyPatch, plugin: str, kind: Any) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    with pytest.raises(UserError, match=r"(?i)configured for .*set model.shard=fsdp"):
        check_shard(kind)


@pytest.mark.parametrize(
    ("preset", "base", "model", "said"),
    [
        ("ppo", "sudoku", {}, "has no critic that is a network of its own; set model.critic=head"),
        ("grpo", "sudoku", {"compile": True}, "cannot be compiled as well"),
        ("grpo", "sudoku", {"dtype": "float16"}, "computes in bfloat16 or float32"),
        ("grpo", "sudoku", {"shard": "deepspeed"}, "fsdp splits weights, gradients"),
    ],
)
def test_what_a_split_network_cannot_do_is_said_before_it_is_loaded(
    tmp_path: Path, preset: str, base: str, model: dict[str, Any], said: str
) -> None:
    values = config_of(preset, base, out=str(tmp_path / "run"))
    values["model"] |= {"shard": "fsdp", **model}
    with pytest.raises(UserError, match=said):
        check_run(Config.of(values))
