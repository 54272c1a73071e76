"""Methods on pairs and denoising errors on a real (if small) image model: whole iterations, alone and as two
processes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.media import picture
from flowrl.worlds.shapes.prompts import prompts
from flowrl.worlds.shapes.scenes import random_scene, render
from tests.training import Processes, Work, apart, config_of, train

SAMPLED = ("epg", "pepg", "par", "v_grpo", "crd", "ram", "orw_cfm", "dgpo", "diffusion_dpo", "fdfo", "diffusion_art")
STEPS = {"d3po": {"steps": 3}, "spo_step": {"steps": 3, "siblings": 2, "first": 0}}
PICTURES: dict[str, dict[str, Any]] = {
    "diffusion_kto": {"column": "chosen", "label": "good"},
    "dspo": {},
    "seppo": {"refresh": 2},
    "ddrl": {"columns": ["chosen"], "share": 1.0},
    "diffusion_dpo": {"pairs": "recorded"},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of the world with two pictures each, of other scenes."""
    folder = tmp_path_factory.mktemp("data")
    rows = list(prompts("train"))[:8]
    images = render([random_scene(rows[n % 8], random.Random(n)) for n in range(16)])
    for n, image in enumerate(images):
        picture(image).save(folder / f"{n}.png")
    named = [{"chosen": str(folder / f"{n}.png"), "rejected": str(folder / f"{8 + n}.png")} for n in range(8)]
    lines = [json.dumps({**row, **named[n], "good": n % 3 > 0}) for n, row in enumerate(rows)]
    path = folder / "pictures.jsonl"
    path.write_text("\n".join(lines))
    return path


def values_of(name: str, path: Path, recorded: bool, **changes: Any) -> dict[str, Any]:
    values = config_of(name, "shapes", data__group=4, **changes)
    if not recorded:
        if name in STEPS:
            values["algorithm"] = {"use": name, **STEPS[name]}
        return values
    values["data"] |= {"train": str(path), "test": "shapes:test", "prompts": 4}
    values["algorithm"] = {"use": name, **PICTURES[name]}
    if name in ("seppo", "ddrl"):
        values["algorithm"]["sampler"] = {"sampler": {"steps": 3}}
        values["data"]["group"] = 2 if name == "seppo" else 4
    else:
        values["algorithm"]["steps"] = 3
        del values["data"]["group"]
    return values


CASES = [*((name, False) for name in (*SAMPLED, *STEPS)), *((name, True) for name in PICTURES)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recorded"), CASES)
def test_two_iterations(name: str, recorded: bool, pictures: Path) -> None:
    found = train(values_of(name, pictures, recorded), Work(2))
    assert len(found.weights) == 2 and all(bool(w.isfinite().all()) for w in found.weights)
    assert all(abs(metrics["ratio/first_max_deviation"]) < 1e-4 for metrics in found.metrics)
    assert any(float(gradient.norm()) > 0 for gradient in found.gradients)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recorded"), [("dgpo", False), ("fdfo", False), ("diffusion_kto", True)])
def test_two_processes_are_as_one(name: str, recorded: bool, pictures: Path) -> None:
    """Draws that a group shares, directions within it, and a mean over the whole optimiser batch."""
    values = values_of(name, pictures, recorded)
    wanted = train(values, Work(2))
    with Processes(2) as processes:
        found = processes.train(2, values, Work(2))
    for each in found:
        assert apart(each.gradients[0], wanted.gradients[0]) < 1e-4
        assert torch.equal(each.weights[-1], found[0].weights[-1])
