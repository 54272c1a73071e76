"""Runs in few bits, with weights in bfloat16 and with optimisers by name: they learn, and go on bit for bit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowrl.config import Config
from flowrl.models import load_policy
from flowrl.models.diffusion.load import open_pipeline
from flowrl.models.quantization import is_quantized
from flowrl.models.source import ModelSource
from flowrl.train import train
from tests import pipelines
from tests.smoke.test_text_runs import lines, values

pytestmark = pytest.mark.slow
BITS = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
HALF = {"dtype": "bfloat16", "trained_dtype": "bfloat16"}
CASES = [
    pytest.param("qwen3", "grpo", {"quantize": "nf4"}, {"use": "AdamW8bit"}, marks=BITS),
    pytest.param("llama", "ppo", {"quantize": "int8", "dtype": "bfloat16"}, {}, marks=BITS),
    pytest.param("llada", "spg", {"quantize": "nf4", "trust_remote_code": True}, {}, marks=BITS),
    ("qwen3", "grpo", {**HALF, "full": True}, {}),
    ("bert", "gdpo_dllm", {**HALF, "full": True}, {"masters": False}),
]


def settled(line: dict[str, Any]) -> dict[str, Any]:
    """What of a line of metrics has to be equal: all but times and memory."""
    return {k: v for k, v in line.items() if not k.startswith(("time", "memory")) and "seconds" not in k}


@pytest.mark.parametrize(("name", "algorithm", "model", "optimizer"), CASES)
def test_language_models_learn_and_go_on(
    name: str, algorithm: str, model: dict[str, Any], optimizer: dict[str, Any], tmp_path: Path
) -> None:
    def run(where: str, iterations: int, **options: Any) -> list[dict[str, Any]]:
        given = values(name, algorithm, tmp_path, model=model)
        if model.get("full"):
            del given["model"]["lora"]
        given |= {"out": str(tmp_path / where), "optimizer": {"lr": 0.003, **optimizer}}
        given["train"] = {**given["train"], "iterations": iterations}
        return lines(train(Config.of(given), **options))

    whole = run("whole", 3)
    # the policy samples and is scored in the same precision, so replays agree as closely as they do without few bits
    assert all(line["ratio/first_max_deviation"] < (0.3 if "dtype" in model else 1e-3) for line in whole)
    assert any(line["grad_norm"] > 0 for line in whole)  # 0 where every group is flat
    run("parts", 2)
    again = run("parts", 3, resume="auto")
    assert settled(again[-1]) == settled(whole[-1])
    first, second = (tmp_path / which / "checkpoints" / "step_000003" / "state" for which in ("whole", "parts"))
    states = load_file(first / "state.safetensors"), load_file(second / "state.safetensors")
    assert states[0].keys() == states[1].keys()
    assert all(states[0][key].equal(states[1][key]) for key in states[0])
    live = {key: value for key, value in states[0].items() if key.startswith("weights/live")}
    before = load_file(tmp_path / "whole" / "checkpoints" / "step_000002" / "state" / "state.safetensors")
    if whole[-1]["grad_norm"] > 0:
        assert any(not value.equal(before[key]) for key, value in live.items())


@BITS
def test_an_image_model_with_all_of_it(tmp_path: Path) -> None:
    folder = pipelines.save("sd3", tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red circle\na cat\n")
    (tmp_path / "mine.py").write_text("def bright(images, prompts, **columns):\n    return images.flatten(1).mean(1)\n")
    config = Config.of(
        {
            "name": "nf4",
            "out": str(tmp_path / "run"),
            "model": {
                "path": str(folder), "call": pipelines.CALLS["sd3"], "lora": {"rank": 4, "alpha": 8},
                "quantize": "nf4", "quantize_encoders": "int8", "gradient_checkpointing": True,
            },
            "algorithm": {"use": "flow_grpo", "sampler": {"steps": 4}},
            "data": {"train": str(tmp_path / "prompts.txt"), "test": None, "prompts": 2, "group": 3},
            "rewards": [f"{tmp_path / 'mine.py'}:bright"],
            "optimizer": {"lr": 1e-3, "use": "AdamW8bit"},
            "train": {"iterations": 2, "updates": 2, "micro_batch": 6},
            "eval": {"every": 0},
            "checkpoint": {"every": 2},
        }
    )  # fmt: skip
    run = train(config)
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["ratio/first_max_deviation"] < 1e-3 and line["grad_norm"] > 0 for line in found if "loss" in line)
    folder_of = run / "checkpoints" / "step_000002"
    pipeline = open_pipeline(ModelSource(str(folder)), torch.float32)
    pipeline.load_lora_weights(str(folder_of / "lora"))  # as for any other base
    assert not is_quantized(pipeline.transformer)


@BITS
def test_a_quantised_text_encoder(tmp_path: Path) -> None:
    folder = pipelines.save("sd3", tmp_path / "model")
    policy = load_policy(folder, call=pipelines.CALLS["sd3"], quantize_encoders="nf4")
    encoders = [part for name, part in policy.pipeline.components.items() if name.startswith("text_encoder")]
    assert encoders and all(is_quantized(part) for part in encoders)
    assert not is_quantized(policy.network)
