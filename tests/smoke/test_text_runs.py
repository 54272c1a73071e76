"""Language models of every kind are trained from a config, continued bit for bit, exported, and loaded by others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowrl.composition import build
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.models import export_formats, export_policy, load_policy
from flowrl.startup.policies import make_live, policy_of_run
from flowrl.train import train
from flowrl.types import Draw, prompts_of
from tests.components_text import folder
from tests.recipes import LANGUAGE_MODELS, ON_A_LANGUAGE_MODEL, kind, needing_bits

SIZES = {"length": 8, "steps": 4, "block": 4}
CASES = [
    ("llada", "bgpo", {"trust_remote_code": True}),
    ("llada", "diffu_grpo", {"trust_remote_code": True}),
    ("dream", "coupled_grpo", {"trust_remote_code": True}),
    ("modernbert", "spg", {}),
    ("modernbert", "trajectory_pg", {}),
    ("bert", "gdpo_dllm", {}),
    ("llada2", "tracerl", {"trust_remote_code": True}),
    ("diffusion_gemma", "elbo_pg", {}),
    ("llama", "grpo", {}),
    ("llama", "ppo", {}),
    ("gpt2", "ppo", {"critic": "head"}),
    ("qwen3", "dapo", {}),
    ("gpt2", "remax", {}),
]
REWARD = """
def digits(completions, prompts, **columns):
    return [sum(letter.isdigit() for letter in text) / 8 for text in completions]

def short(completions, prompts, **columns):
    return [0.0]
"""


def values(name: str, algorithm: str, where: Path, **changes: Any) -> dict[str, Any]:
    """A run of two iterations."""
    where.mkdir(parents=True, exist_ok=True)
    (where / "mine.py").write_text(REWARD)
    (where / "prompts.txt").write_text("2+3=\na longer prompt: 4*4=\n1\n")
    sizes = {"length": 8} if build(algorithm).family == "causal" else SIZES
    extra = {"draws": 4} if algorithm == "bgpo" else {"merge": 2} if algorithm == "tracerl" else {}
    # random weights move by tens of nats in a step of .01, of which the k3 penalty's exponential makes 1e20
    rate = 0.001 if algorithm in ("tracerl", "coupled_grpo") else 0.01
    return {
        "name": name,
        "model": {"path": str(folder(name)), "lora": {"rank": 4, "alpha": 8}, **changes.pop("model", {})},
        "algorithm": {"use": algorithm, **sizes, **extra},
        "data": {"train": str(where / "prompts.txt"), "test": None, "prompts": 2, "group": 4},
        "rewards": [f"{where / 'mine.py'}:digits"],
        "optimizer": {"lr": rate},
        "train": {"iterations": 2, "updates": 2, "micro_batch": 8, "threads": 1, "ema": None},
        "eval": {"every": 0, "weights": "live"},
        "checkpoint": {"every": 1},
        "out": str(where / "run"),
        **changes,
    }


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "algorithm", "model"), CASES)
def test_two_iterations_then_export_and_reload(name: str, algorithm: str, model: dict, tmp_path: Path) -> None:
    run = train(Config.of(values(name, algorithm, tmp_path, model=model)))
    found = lines(run)
    assert [line["step"] for line in found] == [1, 2]
    assert all(line["ratio/first_max_deviation"] < 1e-3 for line in found)
    assert all(line["completion/length"] > 0 for line in found)
    policy = policy_of_run(run, "latest")
    make_live(policy, "live")
    for to in export_formats(policy):  # verified by reloading with transformers and PEFT
        assert export_policy(policy, tmp_path / to, to=to) < 1e-4
    checkpoint = run / "checkpoints" / "step_000002"
    adapter = load_file(checkpoint / "peft" / "adapter_model.safetensors")
    assert any(float(tensor.abs().max()) > 0 for key, tensor in adapter.items() if "lora_B" in key)


@pytest.mark.slow
def test_a_critic_learns_at_its_own_rate_and_alone_at_first(tmp_path: Path) -> None:
    """In two of three iterations Adam moves the critic by steps of its own rate, and the policy not at all."""
    given = values("llama", "ppo", tmp_path)
    given["train"] |= {"iterations": 3, "updates": 1}
    given["optimizer"] |= {"lr": 0.01, "critic_lr": 0.02, "critic_warmup": 2, "weight_decay": 0.0}
    given["checkpoint"]["keep"] = 3
    run = train(Config.of(given))
    first, second, third = (
        load_file(run / f"checkpoints/step_{step:06d}/state/state.safetensors") for step in (1, 2, 3)
    )
    policy = [key for key in first if key.startswith("weights/live/") and "critic" not in key]
    assert all(torch.equal(first[key], second[key]) for key in policy)
    assert any(not torch.equal(second[key], third[key]) for key in policy)
    bias = "weights/live/critic.bias"
    assert float(first[bias].abs().max()) == pytest.approx(0.02, rel=1e-3)  # Adam's first step is its rate
    assert not torch.equal(first[bias], second[bias])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "algorithm"), [("modernbert", "spg"), ("llama", "ppo"), ("llama", "reinforce_pp")])
def test_a_resumed_run_is_the_same_run(name: str, algorithm: str, tmp_path: Path) -> None:
    whole = values(name, algorithm, tmp_path / "whole")
    whole["train"]["iterations"] = 3
    split = values(name, algorithm, tmp_path / "split")
    split["train"]["iterations"] = 1
    train(Config.of(whole))
    train(Config.of(split))
    split["train"]["iterations"] = 3
    train(Config.of(split), resume="auto")
    states = [
        load_file(tmp_path / side / "run/checkpoints/step_000003/state/state.safetensors")
        for side in ("whole", "split")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


ROW = {
    **{"question": "2+3=", "problem": "2+3=", "prompt": "2+3=", "answer": "5", "numbers": [2, 3], "target": 5},
    **{"puzzle": "1000341200430321", "solution": "1234341221434321"},
}
"""A row with the columns of every task."""


@pytest.mark.filterwarnings("error:checkpoint .* is saved without its export")
@pytest.mark.slow
@pytest.mark.parametrize("recipe", [needing_bits(recipe) for recipe in ON_A_LANGUAGE_MODEL])
def test_a_recipe_trains_on_a_tiny_model_of_its_kind(recipe: Path, tmp_path: Path) -> None:
    """The shipped recipe with another model, shorter completions and less work; nothing else is changed."""
    name = LANGUAGE_MODELS[kind(recipe)]
    small = ["algorithm.steps=4", "algorithm.block=4"]
    short = {
        "llada_spg": small,
        "dream_coupled_grpo": ["algorithm.steps=8"],
        "qwen_dapo": [f"rewards.1.options.tokenizer={folder(name)}"],
        "qwen3_grpo": [],
    }.get(recipe.stem, [*small, "data.template='{question}'"])  # the tiny tokenizer knows few letters
    rows = [ROW, {**ROW, "prompt": "4*4=", "question": "4*4=", "answer": "16"}]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        f"model.path={folder(name)}",
        "model.dtype=float32",
        f"data.train={tmp_path / 'short.jsonl'}",
        "data.test=null",
        "data.prompts=2",
        "data.group=4",
        "train.iterations=2",
        "eval.every=0",
        "optimizer.warmup=0",
        "algorithm.length=8",
        *short,
        f"out={tmp_path / 'run'}",
    ]
    config = Config.load(recipe, overrides)
    assert [line["step"] for line in lines(train(config))] == [1, 2]


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        train(Config.of(values))
    message = str(caught.value)
    assert message.count("\n") == 0 and len(message) < 400
    return message


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    assert "holds a causal model, and this algorithm trains masked" in refusal(values("llama", "elbo_pg", tmp_path))
    assert "holds a masked model, and this algorithm trains causal" in refusal(values("modernbert", "grpo", tmp_path))
    assert "world shapes has no masked model" in refusal(values("bert", "spg", tmp_path, model={"path": "shapes"}))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert "has no config.json" in refusal(values("llama", "grpo", tmp_path, model={"path": str(adapter)}))
    (adapter / "adapter_config.json").write_text("{}")
    assert "model.adapter" in refusal(values("llama", "grpo", tmp_path, model={"path": str(adapter)}))
    assert "trust_remote_code" in refusal(values("llada", "elbo_pg", tmp_path / "code"))
    assert "mask_token_id" in refusal(values("unmasked", "elbo_pg", tmp_path / "unmasked"))
    other = values("llama", "rloo", tmp_path / "other", model={"path": "sudoku", "lora": {}})
    assert "cannot be read by the model's tokenizer" in refusal(other)
    long = values("llama", "grpo", tmp_path / "long")
    (tmp_path / "long/prompts.txt").write_text("1" * 80 + "\n")
    assert "context" in refusal(long)
    (tmp_path / "long/prompts.txt").write_text("2+3=\n" * 40 + "1" * 63 + "\n")  # would be drawn late
    assert "more than the model's context of 64" in refusal(long)
    empty = values("llama", "grpo", tmp_path)
    empty["algorithm"]["length"] = 0
    assert "empty completions" in refusal(empty)
    greedy = values("modernbert", "elbo_pg", tmp_path)
    greedy["algorithm"]["temperature"] = 0.0
    assert "greedy" in refusal(greedy)
    wrong = values("llama", "grpo", tmp_path / "wrong")
    wrong["rewards"] = [f"{tmp_path / 'mine.py'}:short"]
    assert "8 scores for 8 samples" in refusal(wrong)
    assert "model.critic=network" in refusal(values("llama", "ppo", tmp_path, model={"critic": False}))
    lonely = values("llama", "grpo", tmp_path)
    lonely["optimizer"]["critic_lr"] = 1e-3
    assert "optimizer.critic_lr is a critic's" in refusal(lonely)
    endless = values("llama", "ppo", tmp_path)
    endless["optimizer"]["critic_warmup"] = 2
    assert "critic_warmup=2 leaves no iteration of 2" in refusal(endless)
    stranger = values("llama", "grpo", tmp_path, model={"mask_token_id": 3})
    assert "mask_token_id means nothing for causal models" in refusal(stranger)
    uneven = values("modernbert", "elbo_pg", tmp_path)
    uneven["algorithm"]["block"] = 3
    assert "not a multiple of block" in refusal(uneven)


def test_a_completion_follows_from_its_seed_whatever_the_batch() -> None:
    for name, family in (("llama", "causal"), ("modernbert", "masked")):
        from flowrl.samplers.causal import CausalSampler
        from flowrl.samplers.masked import MaskedSampler

        policy = load_policy(str(folder(name)), family=family, device="cpu")
        sampler = CausalSampler(length=6) if family == "causal" else MaskedSampler(length=6, steps=6, block=3)
        prompts = ["2+3=", "a longer prompt: 4*4=", "1"]
        draw = Draw.of(seeds(0, "s", count=3), torch.arange(3), 0, 0)
        together = sampler(policy, policy.condition(prompts_of(prompts)), draw).final
        for row, prompt in enumerate(prompts):
            alone = sampler(policy, policy.condition(prompts_of([prompt])), draw.take(torch.tensor([row]))).final
            assert torch.equal(alone[0], together[row])
