"""Every family of pipelines trains from a folder, with no file of its own in flowrl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowrl.config import Config
from flowrl.train import train
from tests import pipelines

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
}
CLASS_OF = {"sd15": "sd15", "sdxl": "sdxl", "sd35": "sd3", "flux": "flux"}
EVERY_RECIPE = [p for p in sorted(Path(__file__).parents[2].glob("configs/*_*.yaml")) if "quickstart" not in p.stem]
RECIPES = [path for path in EVERY_RECIPE if path.stem.split("_")[0] in CLASS_OF]
SMALL = {"prompts": 2, "group": 3}


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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "algorithm"), [(n, a) for n, both in FAMILIES.items() for a in both])
def test_two_iterations(name: str, algorithm: str, tmp_path: Path) -> None:
    folder = pipelines.save(name, tmp_path / "model")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\ntwo dogs above a blue square\na cat\n")
    finish(
        Config.of(
            {
                "name": name,
                "out": str(tmp_path / "run"),
                "model": {"path": str(folder), "call": pipelines.CALLS[name], "lora": {"rank": 4, "alpha": 8}},
                "algorithm": {"use": algorithm, "sampler": {"steps": 4}},
                "data": {"train": str(prompts), "test": None, **SMALL},
                "rewards": [brightness_file(tmp_path)],
                "optimizer": {"lr": 1e-3},
                "train": {"iterations": 2, "updates": 2, "micro_batch": 6},
                "eval": {"every": 0},
                "checkpoint": {"every": 0},
                "log": {"images": 2},
            }
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_on_a_tiny_pipeline_of_its_class(recipe: Path, tmp_path: Path) -> None:
    """The shipped recipe, with another model path, smaller pictures and less work; nothing else is changed."""
    name = CLASS_OF[recipe.stem.split("_")[0]]
    folder = pipelines.save(name, tmp_path / "model")
    guidance = Config.load(recipe).model.call["guidance_scale"]
    call = {**pipelines.CALLS[name], "guidance_scale": guidance}
    overrides = [
        f"model.path={folder}",
        f"model.call={json.dumps(call)}",
        "model.dtype=float32",
        "algorithm.sampler.steps=4",
        "data.prompts=2",
        "data.group=4",
        "train.iterations=2",
        "eval.prompts=2",
        "eval.steps=2",
        f"out={tmp_path / 'run'}",
    ]
    if isinstance(Config.load(recipe).algorithm, str):
        overrides[3] = f"algorithm={{use: {Config.load(recipe).algorithm}, sampler: {{steps: 4}}}}"
    finish(Config.load(recipe, overrides))


@pytest.mark.parametrize("recipe", EVERY_RECIPE, ids=lambda path: path.stem)
def test_a_recipe_is_complete(recipe: Path) -> None:
    """Keys, algorithm, prompts, rewards and batch geometry are right, without the model."""
    from flowrl import algorithms
    from flowrl.data import load_prompts
    from flowrl.runtime.geometry import geometry
    from flowrl.score import load_rewards

    config = Config.load(recipe)
    work = geometry(config, algorithms.build(config.algorithm))
    assert work.samples == config.data.prompts * config.data.group and work.decisions > 0
    assert len(load_prompts(config.data.train)) >= config.data.prompts
    assert load_rewards(config.rewards).names
    header = recipe.read_text().split("name:")[0]
    assert "Result:" in header and "Memory to expect" in header
