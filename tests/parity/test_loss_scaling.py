"""float16 trains as float32 does, where gradients are as small as those of a large model: by a scaled loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.amp.grad_scaler import GradScaler

from flowrl import composition
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.models.causal.load import load_causal
from flowrl.models.diffusion import load_policy
from flowrl.models.masked.load import load_masked
from flowrl.models.reward.load import load_reward
from flowrl.samplers.chunks import sample
from flowrl.step import UNSCALED, UpdateSettings, improve
from flowrl.train import train
from flowrl.types import Draw, Scores, prompts_of
from tests import components_text, pipelines
from tests.contract.toys import Recorder, small_sampler, spec_of, taken, thorough, variants
from tests.contract.toys import family as family_of
from tests.parity.conftest import PROMPTS, move

SMALL = 1e-7
"""A loss so small that its gradient is what SD3.5's is: a mean over 65,536 latent elements of 5,760 decisions."""
PRESETS = {
    "flow_grpo": {"steps": 4, "clip": 1.0},  # float16 alone puts decisions outside 1e-4, which then have no gradient
    "diffusion_nft": {"sampler": {"steps": 4}},
    "awm": {"sampler": {"steps": 4}},
    "fpo": {"sampler": {"steps": 4}},  # coupled: a loss over all draws of a sample
    "grpo": {"length": 8},
    "gspo": {"length": 8},  # coupled
    "diffu_grpo": {"length": 8, "steps": 4, "block": 8},
    "gdpo_dllm": {"length": 8, "steps": 4, "block": 8},  # coupled
}

IMAGES = ("flow_grpo", "diffusion_nft", "awm", "fpo")


def open_policy(name: str, folder: Callable[[str], Path], dtype: str) -> Any:
    family = composition.build(name).family
    if family == "diffusion":
        policy: Any = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], dtype=dtype, parity="skip")
    else:
        load: Any = {"causal": load_causal, "reward": load_reward}.get(family, load_masked)
        policy = load(components_text.folder("bert" if family == "masked" else "llama"), dtype=dtype)
    move(policy)
    return policy


def gradient(
    name: str, policy: Any, rollout: Any, scaler: GradScaler = UNSCALED, small: float = SMALL, micro_batch: int = 64
) -> tuple[torch.Tensor, dict[str, float]]:
    algorithm = composition.build({"use": name, **PRESETS[name]})
    aggregation = algorithm.aggregation
    algorithm = replace(algorithm, aggregation=lambda *given: aggregation(*given) * small)
    count = len(rollout.group)
    rewards = torch.arange(count).double()[:, None]
    who, valid = {"source": rollout.source}, torch.ones(count).bool()
    scores = Scores(rewards, torch.ones(1).double(), ("r",), rollout.group, rollout.group, valid, **who)
    advantage = algorithm.advantage(scores, {})
    recorder = Recorder(policy.parameters())
    options = UpdateSettings(micro_batch=micro_batch, max_grad_norm=1e9)
    metrics = improve(policy, recorder, algorithm, rollout, scores, advantage, options, scaler)
    return recorder.gradients[0] if recorder.gradients else torch.zeros(()), metrics


def rolled(name: str, policy: Any) -> Any:
    algorithm = composition.build({"use": name, **PRESETS[name]})
    for held in algorithm.weight_sets:
        policy.update_ema(held, 0.0)
    group = torch.arange(3).repeat_interleave(2)
    draw = Draw.of(seeds(0, "s", count=6), group, 0, 1)
    return sample(algorithm.sampler, policy, policy.condition(prompts_of([PROMPTS[g] for g in group])), draw, rows=6)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    left, right = a.double(), b.double()  # torch's own similarity clamps norms at 1e-8, which these are far below
    return float(left @ right / (left.norm() * right.norm()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in IMAGES[1:] else name for name in PRESETS]
)
@pytest.mark.slow
def test_the_gradient_of_a_small_loss(name: str, folder: Callable[[str], Path]) -> None:
    """Without scaling float16 loses it; with scaling it is float32's, for one micro-batch or several."""
    exact, half = open_policy(name, folder, "float32"), open_policy(name, folder, "float16")
    rollout = rolled(name, exact)
    for held in composition.build(name).weight_sets:
        half.update_ema(held, 0.0)
    wanted, _ = gradient(name, exact, rollout)
    plain, _ = gradient(name, half, rollout)
    assert wanted.norm() > 0 and not plain.any()
    for micro_batch in (64, 1):
        scaler = GradScaler("cpu", init_scale=2.0**32 if name in IMAGES else 2.0**20)
        scaled, metrics = gradient(name, half, rollout, scaler, micro_batch=micro_batch)
        assert metrics["scaler/skipped_steps"] == 0 and metrics["optimizer_steps"] == 1
        assert scaled.dtype == torch.float32 and all(p.dtype == torch.float32 for p in half.parameters())
        assert cosine(scaled, wanted) > 0.999
        assert float(scaled.norm() / wanted.norm()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_a_step_that_overflows_is_skipped(folder: Callable[[str], Path]) -> None:
    """The weights stay, the scale is halved, and the metric counts it; the next smaller scales train."""
    policy = open_policy("grpo", folder, "float16")
    rollout = rolled("grpo", policy)
    scaler = GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
    before = policy.weights.sha256("live")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, fused=True)
    algorithm = composition.build({"use": "grpo", **PRESETS["grpo"]})
    scores = Scores(
        torch.arange(6.0).double()[:, None], torch.ones(1).double(), ("r",), rollout.group, rollout.group,
        torch.ones(6).bool(),
    )  # fmt: skip
    advantage = algorithm.advantage(scores, {})
    seen: list[dict[str, float]] = []
    for _ in range(40):
        seen.append(
            improve(
                policy,
                optimizer,
                algorithm,
                rollout,
                scores,
                advantage,
                UpdateSettings(),
                scaler,
            )
        )
        if seen[-1]["scaler/skipped_steps"]:
            assert policy.weights.sha256("live") == before and seen[-1]["optimizer_steps"] == 0
        elif len(seen) > 1 and not seen[-2]["scaler/skipped_steps"]:
            break
    skipped = sum(line["scaler/skipped_steps"] for line in seen)
    assert 0 < skipped < 30
    assert seen[-2]["scaler/scale"] == 2.0 ** (40 - skipped)
    assert seen[-1]["scaler/scale"] == 2.0 ** (41 - skipped)  # two good steps in a row
    assert policy.weights.sha256("live") != before


def test_a_gradient_that_no_scale_mends_ends_the_run(folder: Callable[[str], Path]) -> None:
    policy = open_policy("grpo", folder, "float16")
    rollout = rolled("grpo", policy)
    before = policy.weights.sha256("live")
    parameter = policy.parameters()[0]
    parameter.register_hook(lambda gradient: gradient * torch.nan)
    scaler = GradScaler("cpu", init_scale=4.0)
    for _ in range(2):  # 4, 2
        _, metrics = gradient("grpo", policy, rollout, scaler)
        assert metrics["scaler/skipped_steps"] == 1
    with pytest.raises(UserError, match="gradient is not finite"):
        gradient("grpo", policy, rollout, scaler)
    assert policy.weights.sha256("live") == before


@pytest.mark.parametrize("algorithm", ["flow_grpo", "fpo"])
@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(algorithm: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The scale and its count of good steps are part of a checkpoint: four iterations are two and two."""
    reward = tmp_path / "mine.py"
    reward.write_text("def brightness(images, prompts, **columns):\n    return images.flatten(1).mean(dim=1)\n")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))

    def run(where: str, iterations: int, resume: str | None = None) -> Path:
        values = {
            "name": "half",
            "out": str(tmp_path / where),
            "model": {
                "path": str(folder("sd3")), "call": pipelines.CALLS["sd3"], "lora": {"rank": 4, "alpha": 8},
                "dtype": "float16", "device": "cpu",
            },
            "algorithm": {"use": algorithm, "sampler": {"steps": 4}},
            "data": {"train": str(prompts), "test": None, "prompts": 2, "group": 3},
            "rewards": [f"{reward}:brightness"],
            "optimizer": {"loss_scale": 2.0**60},
            "train": {"iterations": iterations, "updates": 2},
            "eval": {"every": 0},
            "monitor": {"samples": 0},
        }  # fmt: skip
        return train(Config.of(values), resume=resume)

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4, resume="auto")
    files = [load_file(path / "checkpoints/step_000004/state/state.safetensors") for path in (whole, parts)]
    values = [json.loads((path / "checkpoints/step_000004/state/values.json").read_text()) for path in (whole, parts)]
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    assert values[0]["scaler"] == values[1]["scaler"]
    assert values[0]["scaler"]["scale"] < 2.0**60  # it began too high, so steps were skipped, before and after
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert [line["scaler/skipped_steps"] for line in trained] == [
        line["scaler/skipped_steps"]
        for line in map(json.loads, (parts / "metrics.jsonl").read_text().splitlines())
        if "loss" in line
    ]
    assert trained[0]["scaler/skipped_steps"] > 0


HALF: dict[tuple[str, str], Any] = {}


@dataclass(frozen=True)
class Brightness:
    """A judge of pictures: their mean, whatever the words."""

    policy: Any
    names: tuple[str, ...] = ("brightness",)

    def __call__(self, clean: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.policy.decode(clean, graph=True).flatten(1).mean(dim=1, keepdim=True)

    def in_words(self, clean: torch.Tensor, rows: torch.Tensor, templates: Sequence[str]) -> list[torch.Tensor]:
        return [self(clean, rows)] * len(templates)


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", thorough([each for each in variants() if family_of(each) != "control"]))  # float32 all
def test_everything_outside_the_network_is_float32(name: str, dtype: str, folder: Callable[[str], Path]) -> None:
    """What the sampler keeps, what the estimator says, and the gradient of every trained weight."""
    family = family_of(name)
    sizes: dict[str, Any] = {"diffusion": {}, "causal": {"length": 4}, "reward": {"length": 12}}.get(
        family, {"length": 4, "steps": 2, "block": 4}
    )
    if name == "brpo":
        sizes |= {"budgets": (1, 2), "answers": 2, "think_end": "", "cut": "", "bridge": ""}
    if name == "d_treerpo":
        sizes["block"] = 2  # each of its levels takes blocks of its own
    if name in ("spg", "stable_drl"):
        sizes["estimator"] = {"views": {"block": 2}}  # its views take blocks of their own
    algorithm = composition.build({**spec_of(name), **taken(name, sizes)})
    if family == "diffusion":
        sampler: Any = algorithm.sampler
        few = replace(small_sampler(getattr(sampler, "sampler", sampler), 6), guidance=1.0)
        algorithm = replace(algorithm, sampler=replace(sampler, sampler=few) if hasattr(sampler, "prepared") else few)
    if (family, dtype) not in HALF:
        HALF[family, dtype] = open_policy(
            {"diffusion": "awm", "causal": "grpo", "reward": name}.get(family, "diffu_grpo"), folder, dtype
        )
    policy = HALF[family, dtype]
    for held in algorithm.weight_sets:
        policy.update_ema(held, 0.0)
    group = torch.arange(2) if getattr(algorithm.sampler, "group", 2) == 1 else torch.zeros(2, dtype=torch.int64)
    prompts = prompts_of([PROMPTS[g] for g in group])
    reads = (*getattr(algorithm.sampler, "columns", ()), getattr(algorithm.sampler, "column", ""))
    said = dict.fromkeys(getattr(algorithm.sampler, "ratings", ()), True)
    texts = family != "diffusion"
    led = [replace(p, columns=dict.fromkeys(reads, p.text if texts else torch.rand(3, 16, 16)) | said) for p in prompts]
    led = algorithm.sampler.prepared(led, "records") if hasattr(algorithm.sampler, "prepared") else led
    draw = Draw.of(seeds(0, "s", count=2), group, 0, 1, led)
    rollout = sample(algorithm.sampler, policy, policy.condition(prompts), draw, rows=2)
    if algorithm.judged:
        rollout = replace(rollout, judge=Brightness(policy))
    rows = algorithm.estimator.probe(rollout, policy, seeds(0, "s", count=2))
    likelihood = algorithm.estimator(policy, rows, rollout.condition, algorithm.references)
    kept = [rollout.final, *vars(rollout.trace or rollout).values(), *vars(rows).values()]
    kept += [likelihood.logp, *likelihood.extra.values()]
    numbers = [value for value in kept if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert numbers and all(value.dtype in (torch.float32, torch.float64) for value in numbers)
    outputs = [out for out in (likelihood.logp, *likelihood.extra.values()) if out.requires_grad]
    torch.stack([out.double().sum() for out in outputs]).sum().backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 for g in gradients)
    for parameter in policy.parameters():
        parameter.grad = None
