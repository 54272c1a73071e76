"""The estimate of a run's memory against the peaks of the pretended accelerator, which counts every tensor's bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
import yaml

from tests.components import WORDS, clip_text, clip_tokenizer, t5_text, word_tokenizer
from tests.components_text import character_tokenizer
from tests.device.test_device import start

TOLERANCE = 0.15
LAYERS = ("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")


def save_image_model(folder: Path, width: int, depth: int, latents: int, vae: tuple[int, ...]) -> None:
    """A pipeline as SD3's; ``vae``: its widths, each but the first of half the size."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=latents, patch_size=2, in_channels=16, num_layers=depth, attention_head_dim=32,
        num_attention_heads=width // 32, caption_projection_dim=width, joint_attention_dim=64,
        pooled_projection_dim=128, out_channels=16, pos_embed_max_size=latents,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=vae, layers_per_block=1, norm_num_groups=4,
        latent_channels=16, sample_size=latents * 2 ** (len(vae) - 1), shift_factor=0.06, scaling_factor=1.5,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False,
        **{key: (kind,) * len(vae) for key, kind in LAYERS},
    )  # fmt: skip
    diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=clip_text(64, projection=True),
        text_encoder_2=clip_text(64, projection=True), text_encoder_3=t5_text(64), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), tokenizer_3=word_tokenizer(), transformer=transformer, vae=autoencoder,
    ).save_pretrained(folder)  # fmt: skip


def save_text_model(folder: Path, kind: str, width: int, depth: int, vocabulary: int) -> None:
    """A Llama, or a BERT with a mask token."""
    tokenizer = character_tokenizer(mask=kind == "masked")
    known: dict[str, Any] = {
        "vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "hidden_size": width,
        "intermediate_size": 3 * width, "num_hidden_layers": depth, "num_attention_heads": width // 32,
        "max_position_embeddings": 512,
    }  # fmt: skip
    if kind == "causal":
        model: Any = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**known, num_key_value_heads=width // 64, tie_word_embeddings=False)
        )
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**known))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


IMAGES: dict[str, dict[str, Any]] = {
    "image, small": {"width": 128, "depth": 4, "latents": 16, "vae": (32, 64, 64)},
    "image, medium": {"width": 256, "depth": 4, "latents": 16, "vae": (32, 64, 64)},
    "image, large": {"width": 320, "depth": 5, "latents": 24, "vae": (32, 64, 64)},
}
TEXTS: dict[str, dict[str, Any]] = {
    "text, causal": {"kind": "causal", "width": 256, "depth": 4, "vocabulary": 4000},
    "text, masked": {"kind": "masked", "width": 256, "depth": 4, "vocabulary": 2000},
}


def run_of(name: str, root: Path, **changes: Any) -> Path:
    """Two iterations, each with a checkpoint; its file."""
    prompts, mine = root / "prompts.txt", root / "mine.py"
    image = name in IMAGES
    lines = [" ".join(WORDS[i : i + 6]) if image else f"{'0123456789' * 6}{i:04d}" for i in range(4)]
    prompts.write_text("\n".join(lines) + "\n")
    mine.write_text(
        "def brightness(images, prompts, **columns):\n    return images.flatten(1).mean(dim=1)\n"
        "def digits(completions, prompts, **columns):\n    return [sum(map(str.isdigit, c)) / 9 for c in completions]\n"
    )
    made: dict[str, Any] = {
        "model": {"path": str(root / name), "device": "fakegpu", "lora": {"rank": 16, "alpha": 16}},
        "data": {"train": str(prompts), "test": None, "prompts": 1, "group": 2},
        "train": {"iterations": 2, "micro_batch": 1, "sample_batch": 2, "threads": 1},
        "eval": {"every": 0, "weights": "ema"},
        "checkpoint": {"every": 1},
        "monitor": {"samples": 0},
    }
    if image:
        made["model"] |= {"call": {"guidance_scale": 4.0, "max_sequence_length": 32}, "decode_batch": 2}
        made["algorithm"] = {"use": "flow_grpo", "sampler": {"steps": 2}}
    else:
        made["model"] |= {"max_prompt": 64}
        sizes = {"length": 32} if "causal" in name else {"length": 32, "steps": 2, "block": 32}
        made["algorithm"] = {"use": "grpo" if "causal" in name else "diffu_grpo", **sizes}
    for section, values in changes.items():
        made[section] = {**made.get(section, {}), **values}
    if made["model"].get("full"):
        made["model"].pop("lora")
    label = f"run {len(list(root.glob('*.yaml')))}"
    run = {"name": "memory", "out": str(root / label), "rewards": [f"{mine}:{'brightness' if image else 'digits'}"]}
    file = root / f"{label}.yaml"
    file.write_text(yaml.safe_dump({**made, **run}))
    return file


def model(**options: Any) -> dict[str, Any]:
    return {"model": options}


HALF: dict[str, Any] = {"dtype": "bfloat16"}
FULL: dict[str, Any] = {"full": True, **HALF, "trained_dtype": "bfloat16"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in (*IMAGES, *TEXTS)},
    "image, full": ("image, small", model(full=True)),
    "image, bf16, checkpointing": ("image, medium", model(**HALF, gradient_checkpointing=True)),
    "image, bf16, encoders on the host": ("image, medium", model(**HALF, offload="encoders")),
    "image, bf16, layers on the host": ("image, medium", model(**HALF, offload="sequential")),
    "text, full in bf16, masters": ("text, causal", model(**FULL)),
    "text, full in bf16, no masters": ("text, causal", {**model(**FULL), "optimizer": {"masters": False}}),
    "text, full, SGD": ("text, masked", {**model(full=True), "optimizer": {"use": "SGD", "lr": 1e-3}}),
    "text, full, Adafactor": ("text, masked", {**model(full=True), "optimizer": {"use": "Adafactor", "lr": 1e-3}}),
    "text, a critic": ("text, causal", {"algorithm": {"use": "ppo", "length": 32}}),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[float, float]]]:
    """``(estimate, measured)`` bytes of the device by run and phase."""
    root = tmp_path_factory.mktemp("memory")
    torch.manual_seed(0)
    for name, sizes in IMAGES.items():
        save_image_model(root / name, **sizes)
    for name, sizes in TEXTS.items():
        save_text_model(root / name, **sizes)
    files = {name: run_of(of, root, **changes) for name, (of, changes) in RUNS.items()}
    start(["run", str(root / "report.json")], [["train", str(file)] for file in files.values()])
    report = json.loads((root / "report.json").read_text())
    assert [entry["code"] for entry in report] == [0] * len(files)
    return {name: peaks(root / file.stem) for name, file in files.items()}


def peaks(run: Path) -> dict[str, tuple[float, float]]:
    """The highest of all iterations."""
    found: dict[str, tuple[float, float]] = {}
    for line in (run / "memory.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "estimate" in row:
            before = found.get(row["phase"], (0, 0))[1]
            found[row["phase"]] = (row["estimate"]["device"], max(before, row["devices"]["fakegpu:0"]))
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended accelerator is built with g++")
@pytest.mark.parametrize("run", RUNS)
def test_the_estimate_is_what_is_measured(run: str, measured: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Every phase of the estimate is one that is measured, and the highest is as high."""
    found = measured[run]
    highest = tuple(max(each) for each in zip(*found.values(), strict=True))
    wrong = []
    for phase, (guess, true) in {**found, "highest": highest}.items():
        off = guess / true - 1
        print(f"{run} | {phase} | {guess / 1e6:.1f} | {true / 1e6:.1f} | {off:+.1%}")
        wrong += [f"{phase}: {guess / 1e6:.1f}, not {true / 1e6:.1f} MB"] * (abs(off) > TOLERANCE)
    assert set(found) == {"load", "sample", "reward", "update", "save", *(["decode"] if "image" in run else [])}
    assert not wrong, wrong
