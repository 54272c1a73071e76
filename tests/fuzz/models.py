"""Folders of models and adapters that are damaged, loaded as a run loads them."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from flowrl.config import Config
from flowrl.models import LoRAOptions, adapters, export_policy, load_adapter, load_policy
from flowrl.startup.preflight import check_run
from tests import components_text, pipelines
from tests.fuzz.damage import damage_folder, odd
from tests.fuzz.targets import TINY

CALL = {"height": 16, "width": 16}
LANGUAGE = {"causal": ("llama", "gpt2"), "masked": ("bert", "llada")}
ALGORITHM = {"causal": "grpo", "masked": "diffu_grpo"}


@functools.cache
def _pipeline(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="flowrl-fuzz-model-"))
    torch.manual_seed(0)
    getattr(pipelines, name)().save_pretrained(folder)
    return folder


def _poison(folder: Path, rng: random.Random) -> None:
    """NaN, or another shape, in one tensor of one file of weights."""
    path = rng.choice(sorted(folder.rglob("*.safetensors")))
    weights = load_file(path)
    name = rng.choice(sorted(weights))
    if rng.random() < 0.5 and weights[name].is_floating_point():
        weights[name].view(-1)[0] = rng.choice([float("nan"), float("inf")])
    else:
        weights[name] = weights[name].flatten()[:-1].clone() if rng.random() < 0.5 else weights[name].half()
    save_file(weights, path, metadata={"format": "pt"})


def _hurt(folder: Path, rng: random.Random) -> None:
    if rng.random() < 0.2 and any(folder.rglob("*.safetensors")):
        _poison(folder, rng)
    else:
        damage_folder(folder, rng)


def pipeline_folders(rng: random.Random, folder: Path) -> None:
    """A damaged diffusers pipeline, or an intact one called with odd arguments."""
    name = rng.choice(["sd15", "sd3"])
    place = folder / "model"
    shutil.copytree(_pipeline(name), place)
    call: dict[str, Any] = dict(CALL)
    kind = rng.random()
    if kind < 0.15:
        call |= {"guidance_scale": rng.choice([1.0, 3, 7.5])}
    elif kind < 0.35:
        keys = [
            "height",
            "guidance_scale",
            "negative_prompt",
            "prompt_embeds",
            "clip_skip",
            "sigmas",
            "guidance_rescale",
        ]
        call[rng.choice(keys)] = odd(rng)
    else:
        _hurt(place, rng)
    values = {**TINY, "model": {"path": str(place), "call": call}}
    config = Config.of(values)
    check_run(config)
    load_policy(str(place), family="diffusion", call=config.model.call, lora=LoRAOptions(rank=1))


def language_folders(rng: random.Random, folder: Path) -> None:
    """A damaged language model."""
    family = rng.choice(sorted(LANGUAGE))
    place = folder / "model"
    name = rng.choice(LANGUAGE[family])
    shutil.copytree(components_text.folder(name), place)
    if rng.random() < 0.85:
        _hurt(place, rng)
    questions = folder / "prompts.txt"
    questions.write_text("what is it?\nand this?\n")
    prompts = {"train": str(questions), "prompts": 2, "group": 2}
    values = {**TINY, "model": {"path": str(place)}, "algorithm": ALGORITHM[family], "data": prompts}
    check_run(Config.of(values))
    load_policy(str(place), family=family, trust_remote_code=name == "llada", lora=LoRAOptions(rank=1))


@functools.cache
def _policy() -> Any:
    return load_policy(str(_pipeline("sd15")), family="diffusion", call=CALL, lora=LoRAOptions(rank=2))


@functools.cache
def _adapter(to: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="flowrl-fuzz-adapter-")) / "adapter"
    export_policy(_policy(), folder, to)
    return folder


def adapter_folders(rng: random.Random, folder: Path) -> None:
    """A damaged adapter, read by evaluation and loaded into a model."""
    place = folder / "adapter"
    shutil.copytree(_adapter(rng.choice(["diffusers", "peft"])), place)
    _hurt(place, rng)
    if rng.random() < 0.3:
        adapters.read(place, None)
    else:
        load_adapter(_policy(), place)


MODELS = {"pipelines": pipeline_folders, "language models": language_folders, "adapters": adapter_folders}
"""Targets that load models of a few thousand weights."""


def prepare() -> None:
    """Make what the cases copy, and load what they import, before the clock runs."""
    for name in ("sd15", "sd3"):
        _pipeline(name)
    for family, models in LANGUAGE.items():
        for name in models:
            load_policy(
                str(components_text.folder(name)), family=family, trust_remote_code=True, lora=LoRAOptions(rank=1)
            )
    for to in ("diffusers", "peft"):
        _adapter(to)
