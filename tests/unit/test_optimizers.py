"""Optimisers by name: what is passed to them, what a checkpoint keeps of them, and weights in bfloat16."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from torch import nn

from flowrl.config import Config
from flowrl.config.schema import OptimizerConfig
from flowrl.errors import UserError
from flowrl.models.weights import PointerWeights
from flowrl.runtime.half_weights import MasterWeights, StochasticRounding, add_and_cut, round_stochastically
from flowrl.runtime.optimizers import (
    build_optimizer,
    check_optimizer,
    optimizer_arguments,
    optimizer_state,
    restore_optimizer,
)


def needs(package: str, *values: Any) -> Any:
    missing = importlib.util.find_spec(package) is None
    return pytest.param(*values, marks=pytest.mark.skipif(missing, reason=f"needs {package}"))


HF = {"relative_step": False, "scale_parameter": False}
CASES = [
    *[(name, 1e-3, {}) for name in ("AdamW", "SGD", "NAdam", "RAdam", "Adagrad", "Adafactor", "ASGD", "Rprop")],
    ("SGD", 1e-3, {"momentum": 0.9, "nesterov": True}),
    ("AdamW", 1e-3, {"amsgrad": True}),
    ("transformers.optimization.Adafactor", 1e-3, HF),
    *[
        needs("bitsandbytes", n, 1e-3, {})
        for n in ("AdamW8bit", "PagedAdamW8bit", "PagedAdamW", "Lion8bit", "LAMB8bit")
    ],
    needs("prodigyopt", "Prodigy", 1.0, {}),
    needs("prodigyopt", "prodigyopt.Prodigy", 1.0, {"use_bias_correction": True}),
]


def groups(dtype: torch.dtype, critic: bool) -> list[list[nn.Parameter]]:
    """A policy's parameters, large enough for blocks of eight bits and small, and a critic's."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator).to(dtype))

    return [[made(64, 80), made(7)], *([[made(70, 64)]] if critic else [])]


def flat(held: list[list[nn.Parameter]]) -> list[nn.Parameter]:
    return [p for group in held for p in group]


def steps(optimizer: torch.optim.Optimizer, parameters: list[list[nn.Parameter]], which: range, lr: float) -> None:
    """Some steps under a schedule, the critic's rate three times the policy's."""
    for i in which:
        generator = torch.Generator().manual_seed(i)
        for number, (group, held) in enumerate(zip(optimizer.param_groups, parameters, strict=True)):
            group["lr"] = lr * (1 + i) * (3 if number else 1)
            for p in held:
                p.grad = (torch.randn(p.shape, generator=generator) + p.detach().float()).to(torch.float32)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("weights", ["float32", "masters", "stochastic"])
@pytest.mark.parametrize(("use", "lr", "options"), CASES)
def test_a_run_goes_on_bit_for_bit(use: str, lr: float, options: dict[str, Any], weights: str) -> None:
    prodigy = "Prodigy" in use  # one rate for all groups
    config = OptimizerConfig(use=use, lr=lr, options=options, masters=weights != "stochastic")
    half = weights != "float32"
    if prodigy and weights == "stochastic":
        with pytest.raises(UserError, match="Prodigy measures all of them together"):
            check_optimizer(config, half=half)
        return
    check_optimizer(config, critic=not prodigy, half=half)
    dtype = torch.bfloat16 if half else torch.float32
    whole = groups(dtype, critic=not prodigy)
    first = build_optimizer(config, whole, seed=1)
    steps(first, whole, range(3), lr)
    tensors, values = optimizer_state(first)
    saved = {key: value.clone() for key, value in tensors.items()}
    values = json.loads(json.dumps(values))
    kept = [[p.detach().clone() for p in group] for group in whole]
    steps(first, whole, range(3, 6), lr)

    again = groups(dtype, critic=not prodigy)
    second = build_optimizer(config, again, seed=1)
    with torch.no_grad():
        for group, values_of in zip(again, kept, strict=True):
            for p, value in zip(group, values_of, strict=True):
                p.copy_(value)
    restore_optimizer(second, saved, values)
    steps(second, again, range(3, 6), lr)
    for group, other, start in zip(whole, again, kept, strict=True):
        for a, b, before in zip(group, other, start, strict=True):
            assert torch.equal(a, b) and a.dtype == dtype
            assert half or not torch.equal(a, before)  # small steps may leave weights in bfloat16 where they are
    (tensors, values), (others, other_values) = optimizer_state(first), optimizer_state(second)
    assert values == other_values and tensors.keys() == others.keys()
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)


def test_the_default_is_fused_adamw_and_its_state_what_it_was() -> None:
    config = OptimizerConfig()
    made = groups(torch.float32, critic=True)
    ours = build_optimizer(config, made, seed=0)
    assert type(ours) is torch.optim.AdamW and all(group["fused"] for group in ours.param_groups)
    other = groups(torch.float32, critic=True)
    plain = torch.optim.AdamW(
        [{"params": g} for g in other], lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, fused=True
    )
    steps(ours, made, range(3), 3e-4)
    steps(plain, other, range(3), 3e-4)
    for a, b in zip(flat(made), flat(other), strict=True):
        assert torch.equal(a, b)
    tensors, values = optimizer_state(ours)
    assert values == {} and set(tensors) == {f"{i}/{k}" for i in range(3) for k in ("step", "exp_avg", "exp_avg_sq")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use": "AdmaW"}, "torch.optim has no optimiser 'AdmaW'; did you mean 'AdamW'"),
        ({"use": "nowhere.Fast"}, "optimizer.use=nowhere.Fast: nowhere cannot be imported"),
        ({"use": "torch.nn.Linear"}, "torch.nn has no optimiser 'Linear'"),
        ({"options": {"amsgard": True}}, "AdamW has no 'amsgard'; did you mean 'amsgrad'"),
        ({"options": {"lr": 1.0}}, "the learning rate is optimizer.lr"),
        ({"use": "SGD", "betas": (0.8, 0.9)}, "optimizer.betas means nothing for SGD"),
        ({"use": "SGD", "options": {"momentum": -1}}, "cannot be used with .*momentum=-1: Invalid momentum"),
        ({"use": "SparseAdam"}, "does not support dense gradients"),
        ({"use": "LBFGS", "lr": 1.0}, "closure"),
        ({"use": "Adadelta"}, "chooses the size of its steps.*set optimizer.lr=1"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_optimizer(OptimizerConfig(**changes))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_eight_bits_are_found_by_name_and_misspelt_ones_suggested() -> None:
    tensors, _ = _after_a_step("AdamW8bit")
    moments = [value for key, value in tensors.items() if key.endswith(("state1", "state2"))]
    assert moments and {value.dtype for value in moments if value.numel() >= 4096} == {torch.uint8}
    with pytest.raises(UserError, match="did you mean 'AdamW8bit'"):
        check_optimizer(OptimizerConfig(use="AdmaW8bit"))


def _after_a_step(use: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    made = groups(torch.float32, critic=False)
    optimizer = build_optimizer(OptimizerConfig(use=use), made, seed=0)
    steps(optimizer, made, range(1), 1e-3)
    return optimizer_state(optimizer)


def test_shared_keys_go_where_they_fit() -> None:
    assert optimizer_arguments(OptimizerConfig(use="SGD", weight_decay=0.1)) == {"lr": 3e-4, "weight_decay": 0.1}
    adafactor = optimizer_arguments(OptimizerConfig(use="Adafactor", options={"eps": [None, 1e-2]}))
    assert adafactor == {"lr": 3e-4, "weight_decay": 1e-4, "eps": (None, 1e-2)}


# ---- weights in bfloat16


def test_stochastic_rounding_is_right_on_average() -> None:
    """Over all 65536 numbers that can be drawn, the mean of a number's roundings is the number itself, exactly."""
    bits = torch.arange(1 << 16, dtype=torch.int32)
    for value in (1.0, 1.001, -3.14159, 1e-30, 65504.7, 0.0, -7.00001e-5):
        x = torch.tensor(value)
        made = add_and_cut(x.expand(1 << 16), bits)
        assert len(made.unique()) <= 2
        assert float(made.double().mean()) == float(x)
    drawn = round_stochastically(torch.full((200_000,), 1.001), seed=5)
    low, high = 1.0, 1.0078125
    share = float((drawn == high).double().mean())
    assert abs(share - 0.001 / (high - low)) < 0.002 and set(drawn.unique().tolist()) == {low, high}
    assert torch.equal(drawn, round_stochastically(torch.full((200_000,), 1.001), seed=5))
    assert not torch.equal(drawn, round_stochastically(torch.full((200_000,), 1.001), seed=6))


def test_infinite_and_large_numbers_stay_what_they_are() -> None:
    x = torch.tensor([float("inf"), -float("inf"), 0.0])
    assert torch.equal(add_and_cut(x, torch.full((3,), 65535, dtype=torch.int32)).float(), x)


def small_steps(optimizer: torch.optim.Optimizer, p: nn.Parameter, count: int) -> None:
    for _ in range(count):
        p.grad = torch.ones(p.shape)
        optimizer.step()


def test_steps_below_the_next_number_are_not_lost() -> None:
    """SGD by 1e-4 from 1: bfloat16's next number below is 0.0039 away, so plain rounding would never move."""
    config = OptimizerConfig(use="SGD", lr=1e-4, weight_decay=0.0)
    for masters in (True, False):
        p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = build_optimizer(config.model_copy(update={"masters": masters}), [[p]], seed=3)
        assert isinstance(optimizer, MasterWeights if masters else StochasticRounding)
        small_steps(optimizer, p, 200)
        assert abs(float(p.detach().float().mean()) - 0.98) < (2e-3 if masters else 5e-4)


def test_masters_are_float32_training_of_the_rounded_network() -> None:
    """The masters are what AdamW makes of float32 weights with the same gradients, bit for bit; the network's weights
    are the masters rounded to nearest."""
    half, whole = groups(torch.bfloat16, critic=True), groups(torch.bfloat16, critic=True)
    whole = [[nn.Parameter(p.detach().float()) for p in group] for group in whole]
    ours = build_optimizer(OptimizerConfig(), half, seed=0)
    plain = build_optimizer(OptimizerConfig(), whole, seed=0)
    for i in range(4):
        generator = torch.Generator().manual_seed(i)
        for p, q in zip(flat(half), flat(whole), strict=True):
            q.grad = torch.randn(q.shape, generator=generator)
            p.grad = q.grad.clone()
        ours.step()
        plain.step()
    masters = {key: value for key, value in optimizer_state(ours)[0].items() if key.endswith("master")}
    for i, (p, q) in enumerate(zip(flat(half), flat(whole), strict=True)):
        assert torch.equal(masters[f"{i}/master"], q.detach())
        assert torch.equal(p.detach(), q.detach().to(torch.bfloat16))


def test_gradients_of_bfloat16_weights_are_summed_in_float32() -> None:
    p = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    build_optimizer(OptimizerConfig(), [[p]], seed=0)
    for _ in range(1000):
        (p.float() * 1e-3).sum().backward()
    assert p.grad is not None and p.grad.dtype == torch.float32
    torch.testing.assert_close(p.grad, torch.ones(8), rtol=5e-3, atol=0)  # each term is rounded; their sum is not


def test_an_average_of_bfloat16_weights_is_float32() -> None:
    p = nn.Parameter(torch.ones(16, dtype=torch.bfloat16))
    sets = PointerWeights({"w": p})
    sets.update_ema("ema", 0.0)
    with torch.no_grad():
        p.fill_(1.5)
    for _ in range(100):
        sets.update_ema("ema", 0.999)
    state = sets.state()
    expected = 1.5 - 0.5 * 0.999**100
    torch.testing.assert_close(state["ema/w"], torch.full((16,), expected), rtol=1e-5, atol=0)
    other = PointerWeights({"w": nn.Parameter(torch.zeros(16, dtype=torch.bfloat16))})
    other.load(state)
    assert torch.equal(other.state()["ema/w"], state["ema/w"]) and torch.equal(other.state()["live/w"], p.detach())
    with sets.using("ema"):
        assert torch.equal(p.detach(), state["ema/w"])
    assert p.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "optimizer", "words"),
    [
        ({"trained_dtype": "bfloat16"}, {}, "needs a network in bfloat16"),
        ({}, {"masters": False}, "optimizer.masters=false means nothing"),
        ({"full": True, "quantize": "nf4"}, {}, "model.quantize=nf4 holds in a few bits"),
    ],
)
def test_keys_that_do_not_fit_together(model: dict[str, Any], optimizer: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Config.of(
            {"name": "x", "model": {"path": "shapes", **model}, "algorithm": "flow_grpo", "optimizer": optimizer,
             "rewards": ["jpeg_compressibility"], "train": {"iterations": 1}}
        )  # fmt: skip
