"""Every family of pipelines trains from a folder, with no file of its own in flowrl."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from flowrl import composition
from flowrl.config import Config
from flowrl.recipes.level import expected_memory, header_of, level_of
from flowrl.score import list_rewards
from flowrl.startup.preflight import check_run
from flowrl.train import train
from tests import pipelines
from tests.recipes import CONFIGS, EVERY_CONFIG, EVERY_RECIPE, ON_A_PIPELINE, PIPELINES, kind, needing_bits, title

FAMILIES = {
    "sd15": ("ddpo", "awm"),
    "sdxl": ("ddpo", "awm"),
    "sd3": ("flow_grpo", "diffusion_nft"),
    "flux": ("flow_grpo", "diffusion_nft"),
    "qwen_image": ("flow_grpo", "diffusion_nft"),
    "sana": ("flow_grpo", "diffusion_nft"),
    "lumina2": ("flow_grpo", "diffusion_nft"),
    "pixart_sigma": ("ddpo", "awm"),
    "wan": ("flow_grpo", "diffusion_nft"),
    "wan22": ("flow_grpo",),
}
SMALL = {"prompts": 2, "group": 3}
WEIGHTED = ("geneval", "ocr", "hpsv2", "clipscore", "imagereward", "pickscore")
HUB_ROWS = [{"question": f"{n} + {n}?", "problem": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(64)]
"""What stands for a data set of the hub."""


def brightness_file(folder: Path) -> str:
    path = folder / "mine.py"
    path.write_text("def brightness(images, prompts, **columns):\n    return images.flatten(1).mean(dim=1)\n")
    return f"{path}:brightness"


def finish(config: Config) -> list[dict]:
    run = train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert all(line["ratio/first_max_deviation"] < 1e-3 for line in lines if "loss" in line)
    assert all(line["grad_norm"] > 0 for line in lines if "loss" in line)
    return lines


def config_of(name: str, algorithm: dict[str, Any], where: Path, updates: int = 2) -> Config:
    folder = pipelines.save(name, where / "model")
    prompts = where / "prompts.txt"
    prompts.write_text("a red circle\ntwo dogs above a blue square\na cat\n")
    return Config.of(
        {
            "name": name,
            "out": str(where / "run"),
            "model": {"path": str(folder), "call": pipelines.CALLS[name], "lora": {"rank": 4, "alpha": 8}},
            "algorithm": algorithm,
            "data": {"train": str(prompts), "test": None, **SMALL},
            "rewards": [brightness_file(where)],
            "optimizer": {"lr": 1e-3},
            "train": {"iterations": 2, "updates": updates, "micro_batch": 6},
            "eval": {"every": 0},
            "checkpoint": {"every": 0},
            "log": {"samples": 2},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "algorithm"), [(n, a) for n, both in FAMILIES.items() for a in both])
def test_two_iterations(name: str, algorithm: str, tmp_path: Path) -> None:
    finish(config_of(name, {"use": algorithm, "sampler": {"steps": 4}}, tmp_path))


NOISED_AGAIN = {"dynamics": {"use": "cps", "noise": 1.0}, "heldout_noise": True}
"""Predict and noise again: multistep consistency sampling."""
FEW_STEPS: dict[str, dict[str, Any]] = {
    "sdxl_turbo": {"use": "flow_grpo", "sampler": {"steps": 4, "dynamics": "ddim", "heldout_noise": True}},
    "sana_sprint": {"use": "flow_grpo", "sampler": {"steps": 2, **NOISED_AGAIN}},
    "sd_turbo": {"use": "diffusion_nft", "sampler": {"steps": 1}},
    "sdxl_dmd2": {"use": "dmd2", "guidance": 1.0},
}
"""Distilled models by their papers' samplers."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW_STEPS)
def test_two_iterations_of_a_distilled_model(name: str, tmp_path: Path) -> None:
    finish(config_of(name, FEW_STEPS[name], tmp_path, updates=1))


def offline(config: Config, folder: Path) -> str:
    """The recipe's rewards, brightness in place of those whose weights are not here."""
    needs = {entry.name: entry.needs for entry in list_rewards()}
    kept = []
    for reward in config.rewards:
        plain = reward.model_dump(mode="json", exclude_defaults=True)
        if any(need.startswith("weights") for need in needs.get(reward.use, ())) or reward.use in WEIGHTED:
            plain = {key: plain[key] for key in plain.keys() & {"weight", "train"}}
            plain |= {"use": brightness_file(folder), "name": reward.name or reward.use}
        kept.append(plain)
    return json.dumps(kept)


@pytest.mark.filterwarnings("error:checkpoint .* is saved without its export")
@pytest.mark.slow
@pytest.mark.parametrize("recipe", [needing_bits(recipe) for recipe in ON_A_PIPELINE])
def test_a_recipe_trains_on_a_tiny_pipeline_of_its_class(recipe: Path, tmp_path: Path) -> None:
    """The shipped recipe, with another model path, smaller pictures and less work; nothing else is changed."""
    config = Config.load(recipe)
    name = PIPELINES[kind(recipe)]
    folder = pipelines.save(name, tmp_path / "model")
    kept = {key: value for key, value in config.model.call.items() if key in ("guidance_scale", "true_cfg_scale")}
    call = {**pipelines.CALLS[name], **kept}
    spec: dict[str, Any] = {"use": config.algorithm} if isinstance(config.algorithm, str) else dict(config.algorithm)
    spec["sampler"] = {**spec.get("sampler", {}), "steps": 6}
    overrides = [
        f"model.path={folder}",
        f"model.call={json.dumps(call)}",
        "model.dtype=float32",
        f"algorithm={json.dumps(spec)}",
        f"rewards={offline(config, tmp_path)}",
        "data.prompts=2",
        "data.group=4",
        "train.iterations=2",
        f"train.updates={min(config.train.updates, 2)}",
        "eval.prompts=2",
        "eval.sampling_steps=2",
        f"out={tmp_path / 'run'}",
    ]
    finish(Config.load(recipe, overrides))


@pytest.mark.parametrize("recipe", [needing_bits(recipe) for recipe in EVERY_CONFIG])
def test_a_recipe_is_accepted(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What --dry-run checks is right: all but the model. Prompts suffice, and the header says what was measured."""
    monkeypatch.chdir(CONFIGS.parent)
    monkeypatch.setattr("flowrl.data.sources.hub_rows", lambda *_, **__: HUB_ROWS)
    plan = check_run(Config.load(recipe))
    config, work = plan.config, plan.workload
    assert work.samples == config.data.prompts * config.data.group and work.decisions > 0
    assert len(plan.train) >= config.data.prompts
    assert "Result:" in header_of(recipe)
    assert level_of(recipe) in ("learns", "measured") or expected_memory(recipe)


@pytest.mark.parametrize("recipe", EVERY_RECIPE, ids=title)
def test_a_recipe_states_only_what_differs_from_its_preset(recipe: Path) -> None:
    spec = Config.load(recipe).algorithm
    if isinstance(spec, dict):
        defaults = inspect.signature(composition.find_preset(spec["use"])).parameters
        same = [key for key, value in spec.items() if key in defaults and defaults[key].default == value]
        assert not same, f"{same} of {recipe.name} are the preset's own"
