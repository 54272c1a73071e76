"""Parts and layers that wait on the host: the same run, and less memory of the device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from diffusers import FluxPipeline
from torch import nn

from flowrl.errors import UserError
from flowrl.models.diffusion import LoRAOptions, load_policy
from flowrl.models.diffusion.offload import place_parts
from tests import pipelines
from tests.device.test_device import start, untimed

MODES = {"none": {}, "encoders": {"offload": "encoders"}, "sequential": {"offload": "sequential"}}


def config(name: str, root: Path, out: str, **model: object) -> Path:
    """A run of one iteration with two rows at a time, so that weights matter; its file."""
    prompts, mine = root / "prompts.txt", root / "mine.py"
    prompts.write_text("a red circle\ntwo dogs above a blue square\n")
    mine.write_text("def brightness(images, prompts, **columns):\n    return images.flatten(1).mean(dim=1)\n")
    own = {"path": str(root / "model"), "call": pipelines.CALLS[name], "device": "fakegpu"}
    run = {
        "name": out,
        "out": str(root / out),
        "model": {**own, "lora": {"rank": 4, "alpha": 8}, **model},
        "algorithm": {"use": "ddpo" if name == "sd15" else "flow_grpo", "sampler": {"steps": 3}},
        "data": {"train": str(prompts), "test": None, "prompts": 2, "group": 2},
        "rewards": [f"{mine}:brightness"],
        "train": {"iterations": 1, "micro_batch": 1, "sample_batch": 1},
        "eval": {"every": 0},
    }
    file = root / f"{out}.yaml"
    file.write_text(yaml.safe_dump(run))
    return file


def play(files: list[Path], report: Path) -> list[dict[str, Any]]:
    """Train all of them in one process: what the device saw of each."""
    start(["run", str(report)], [["train", str(file)] for file in files])
    found = json.loads(report.read_text())
    assert [entry["code"] for entry in found] == [0] * len(files)
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended accelerator is built with g++")
@pytest.mark.parametrize("name", ["sd3", "sd15", "flux"])
def test_what_waits_on_the_host_changes_no_number(name: str, tmp_path: Path) -> None:
    """Metrics, and the exports of the last checkpoint, which are verified as they are written."""
    pipelines.save(name, tmp_path / "model")
    files = [config(name, tmp_path, out, gradient_checkpointing=True, **model) for out, model in MODES.items()]
    found = play(files, tmp_path / "report.json")
    none, encoders, sequential = (entry["peak"] for entry in found)
    assert sequential < 0.95 * encoders and encoders < 0.95 * none
    rows = [untimed(tmp_path / out) for out in MODES]
    assert rows[0] == rows[1] == rows[2]
    for out in MODES:
        (saved,) = (tmp_path / out / "checkpoints").glob("step_*")
        assert (saved / "lora").is_dir() and (saved / "peft").is_dir()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended accelerator is built with g++")
def test_a_vae_decodes_in_little_memory(tmp_path: Path) -> None:
    """Large decode batches, small ones, and slices: the same pictures, the peak in the order of what is decoded."""
    pipelines.save("sd3", tmp_path / "model")
    ways = {"many": {"decode_batch": 16}, "one": {"decode_batch": 1}, "sliced": {"vae_slicing": True}}
    files = [config("sd3", tmp_path, out, **model) for out, model in ways.items()]
    for file in files:
        run = yaml.safe_load(file.read_text())
        run["data"] |= {"group": 8}
        run["train"]["sample_batch"] = 16
        run["model"]["call"] |= {"height": 64, "width": 64}
        file.write_text(yaml.safe_dump(run))
    play(files, tmp_path / "report.json")
    lines = {out: (tmp_path / out / "memory.jsonl").read_text().splitlines() for out in ways}
    found = {out: [json.loads(line) for line in every] for out, every in lines.items()}
    many, one, sliced = (
        next(row["devices"]["fakegpu:0"] for row in found[out] if row["phase"] == "decode") for out in ways
    )
    assert one < 0.9 * many and sliced < 0.9 * many, (many, one, sliced)
    rewards = [untimed(tmp_path / out)[-1]["reward/mean"] for out in ways]
    assert rewards[1:] == pytest.approx(rewards[:1] * 2, abs=1e-6)


@pytest.mark.parametrize("mode", ["encoders", "sequential"])
def test_an_encoder_comes_whole_or_layer_by_layer(mode: Any) -> None:
    """Whose layers are on the device while its second one computes."""
    encoder = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))).requires_grad_(False)
    seen: list[list[str]] = []
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pipeline: Any = SimpleNamespace(components={"text_encoder": encoder, "transformer": network}, transformer=network)
    release = place_parts(pipeline, "transformer", torch.device("meta"), mode)
    encoder[1].register_forward_hook(lambda *_: seen.append([layer.weight.device.type for layer in encoder]))
    with torch.no_grad():
        assert encoder(torch.ones(1, 4)).device.type == "meta"
    release()
    # the first weight tells pipelines where the encoder is, and stays there
    assert seen == [["meta", "meta", "meta"] if mode == "encoders" else ["meta", "cpu", "cpu"]]
    assert encoder[1].weight.device.type == encoder[2].weight.device.type == "cpu"


def test_what_cannot_wait_or_decode_in_parts_is_said(tmp_path: Path) -> None:
    folder = pipelines.save("flux", tmp_path / "model")
    call = pipelines.CALLS["flux"]
    for options, reason in (
        ({"full": True}, "model.full trains every layer"),
        ({"lora": LoRAOptions(dora=True)}, r"model\.lora\.dora reads"),
        ({"compile": True}, r"model\.compile keeps"),
    ):
        chosen: Any = options
        with pytest.raises(UserError, match=f"model.offload=sequential fetches a layer for its call, and {reason}"):
            load_policy(folder, call=call, offload="sequential", **chosen)
    policy = load_policy(folder, call=call, parity="skip", vae_slicing=True, vae_tiling=True)
    assert policy.pipeline.vae.use_slicing and policy.pipeline.vae.use_tiling
    bare = FluxPipeline.from_pretrained(folder, vae=None)
    with pytest.raises(UserError, match=r"model\.vae_tiling: FluxPipeline has no VAE; set it to false"):
        load_policy(bare, call=call, vae_tiling=True)
