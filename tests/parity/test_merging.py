"""Merged adapters: the same predictions but for rounding, never stale, and the base's own weights left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers.pytorch_utils import Conv1D

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models.lora import LoRAOptions, adapt, trained_parameters
from flowrl.models.merging import MergedAdapter, check_merging
from flowrl.models.weights import PointerWeights
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import open_session
from flowrl.startup.model_checks import check_model
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from tests.training import apart, config_of


class Mixed(nn.Module):
    """A layer of each kind that an adapter can be on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.turned = nn.Conv2d(3, 6, 3), nn.Linear(6, 5), Conv1D(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.turned(self.linear(self.conv(x).mean(dim=(2, 3))).tanh())


class Asked:
    """A network with a LoRA and weight sets, asked with merged weights and without."""

    def __init__(self, targets: tuple[str, ...] = ("conv", "linear")) -> None:
        torch.manual_seed(0)
        self.network, self.x = Mixed(), torch.randn(2, 3, 5, 5)
        options = LoRAOptions(rank=2, alpha=6, targets=targets)
        adapt(self.network, options)
        self.adaptation = trained_parameters(self.network, options)
        self.weights = PointerWeights(self.adaptation.parameters)
        self.merged = MergedAdapter(self.network, self.weights)

    @torch.no_grad()
    def move(self) -> None:
        for parameter in self.adaptation.parameters.values():
            parameter.add_(torch.randn(parameter.shape) * 0.3)

    @torch.no_grad()
    def both(self) -> tuple[Tensor, Tensor]:
        """Answers with merged weights, and without."""
        with self.merged.predicting():
            assert all(layer.merged for layer in self.layers)
            found = self.network(self.x)
        assert not any(layer.merged for layer in self.layers)
        return found, self.network(self.x)

    @property
    def layers(self) -> list[Any]:
        return [module for module in self.network.modules() if hasattr(module, "lora_A")]

    def agree(self) -> None:
        found, wanted = self.both()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", [("conv", "linear"), ("turned",)])
def test_predictions_are_those_of_the_adapter_on_every_kind_of_layer(targets: tuple[str, ...]) -> None:
    asked = Asked(targets)
    base, _ = asked.both()
    asked.move()
    asked.agree()
    assert float((asked.both()[0] - base).abs().max()) > 1e-2


@pytest.mark.parametrize("fused", [False, True])
def test_no_merged_copy_outlives_an_optimiser_step(fused: bool) -> None:
    asked = Asked()
    asked.move()
    optimizer = torch.optim.AdamW(asked.adaptation.parameters.values(), lr=0.1, fused=fused)
    before, _ = asked.both()
    for _ in range(2):
        with asked.merged.predicting():  # a gradient is taken: the adapter itself computes
            asked.network(asked.x).square().sum().backward()
        asked.both()  # asked once more before the step
        optimizer.step()
        found, _ = asked.both()
        asked.agree()
        assert float((found - before).abs().max()) > 1e-2
        before = found


@pytest.mark.parametrize("fused", [False, True])
def test_a_set_that_learns_beside_the_live_one_is_never_stale(fused: bool) -> None:
    asked = Asked()
    asked.move()
    asked.weights.update_ema("fake", 0.0)
    optimizer = torch.optim.AdamW(asked.adaptation.parameters.values(), lr=0.1, fused=fused)
    live, _ = asked.both()
    before = live
    for _ in range(2):
        with asked.weights.learning("fake"):
            asked.agree()
            asked.network(asked.x).square().sum().backward()
            optimizer.step()
            asked.agree()
        with asked.weights.using("fake"):
            asked.agree()
            found, _ = asked.both()
        assert float((found - before).abs().max()) > 1e-2
        before = found
    assert torch.equal(asked.both()[0], live)


def test_every_way_to_write_a_set_is_noticed() -> None:
    asked = Asked()
    asked.move()
    asked.weights.update_ema("old", 0.0)
    state = {key: tensor.clone() for key, tensor in asked.weights.state().items()}
    asked.move()
    for change in (
        lambda: asked.weights.update_ema("old", 0.5),
        lambda: asked.weights.update_ema("old", 0.0),
        lambda: asked.weights.load(state),
        lambda: asked.weights.drop("old") or asked.weights.update_ema("old", 0.0),
    ):
        for _ in range(2):
            for name in ("old", "live", "old", "reference"):
                with asked.weights.using(name):
                    asked.agree()
            change()
            asked.move()
    for _ in range(2):
        asked.move()
        with asked.weights.disturbed():
            asked.agree()


def test_one_set_is_merged_once_and_a_fresh_reference_never(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowrl.models import merging

    made: list[bool] = []
    merge = merging._merged
    monkeypatch.setattr(merging, "_merged", lambda layer: made.append(True) or merge(layer))
    asked = Asked()
    asked.move()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with asked.weights.using("reference"):
        asked.both()
        assert asked.merged._merged == [None, None]
        optimizer.step()  # no optimiser steps on a frozen set
        asked.both()
    assert len(made) == 2
    asked.both(), asked.both()
    assert len(made) == 4 and None not in asked.merged._merged


def test_the_base_comes_back_bit_for_bit_also_after_an_error() -> None:
    asked = Asked()
    asked.move()
    own = {name: (p, p.data_ptr(), p._version, p.detach().clone()) for name, p in asked.network.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), torch.no_grad(), asked.merged.predicting():
        assert asked.network.linear.base_layer.weight.data_ptr() != own["linear.base_layer.weight"][1]
        raise RuntimeError("stop")
    asked.both()
    for name, parameter in asked.network.named_parameters():
        same, place, written, values = own[name]
        assert parameter is same and parameter.data_ptr() == place and torch.equal(parameter, values)
        assert parameter._version == written


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"dtype": "bfloat16"}, "model.dtype=bfloat16"),
        ({"quantize": "nf4"}, "model.quantize=nf4"),
        ({"shard": "fsdp"}, "model.shard=fsdp"),
        ({"offload": "sequential"}, "model.offload=sequential"),
        ({"compile": True}, "model.compile"),
        ({"lora": LoRAOptions(dora=True)}, "model.lora.dora"),
        ({"lora": None}, "model.full"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_its_key(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.merge_adapters .*{key}.*false$"):
        check_merging(**{"merge": True, "lora": LoRAOptions(), "dtype": "float32", **options})


def test_a_config_is_refused_before_a_model_is_loaded() -> None:
    config = Config.of(config_of("flow_grpo", "shapes", model__merge_adapters=True, model__dtype="bfloat16"))
    with pytest.raises(UserError, match=r"model\.merge_adapters .*model\.dtype=bfloat16"):
        check_model(config, "diffusion")


class Watched:
    """An iteration from weights that have moved, and every gradient that its optimiser got."""

    def __init__(self, merge: bool, preset: str, base: str, **changes: Any) -> None:
        values = config_of(preset, base, model__merge_adapters=merge, **changes)
        values["model"].pop("full", None)
        values["model"].setdefault("lora", {"rank": 4, "alpha": 8})
        self.session = open_session(check_run(Config.of(values)))
        self.network = getattr(self.session.policy.network, "model", self.session.policy.network)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.session.policy.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        for name in self.session.policy.weights.names()[2:]:  # old, ema
            self.session.policy.update_ema(name, 0.5)
        self.frozen = {name: (p, p.detach().clone()) for name, p in self.network.named_parameters()}
        self.gradients: list[Tensor] = []

    def iterate(self) -> Watched:
        self.metrics, batch, _ = iterate(self.session, PhaseTimer())
        self.final = batch.rollout.final
        self.decoded = batch.samples.images if batch.samples.images is not None else batch.samples.completions
        return self

    def note(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is self.session.optimizer:
            every = [p for group in optimizer.param_groups for p in group["params"]]
            self.gradients.append(torch.cat([p.grad.flatten().double() for p in every if p.grad is not None]))


@pytest.fixture
def twins(request: pytest.FixtureRequest) -> Iterator[tuple[Watched, Watched]]:
    """The same iteration with merged adapters and without."""
    preset, base, changes = request.param
    found = [Watched(merge, preset, base, **changes) for merge in (True, False)]
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: [each.note(optimizer) for each in found] and None)
    yield found[0].iterate(), found[1].iterate()
    handle.remove()


CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("flow_grpo", "shapes", {}),
    ("diffusion_nft", "shapes", {}),
    ("grpo", "sudoku", {"algorithm__kl": 0.1}),
    ("spg", "sudoku", {}),
)


@pytest.mark.slow
@pytest.mark.parametrize("twins", CASES, ids=[case[0] for case in CASES], indirect=True)
def test_an_iteration_is_that_of_the_adapter(twins: tuple[Watched, Watched]) -> None:
    merged, plain = twins
    if isinstance(plain.decoded, Tensor):
        torch.testing.assert_close(merged.decoded, plain.decoded, rtol=0, atol=1e-5)
        torch.testing.assert_close(merged.final, plain.final, rtol=0, atol=1e-4)
    else:
        assert merged.decoded == plain.decoded and torch.equal(merged.final, plain.final)
    assert merged.metrics["ratio/first_max_deviation"] < 1e-5
    assert len(merged.gradients) == len(plain.gradients) == 2
    assert apart(merged.gradients[0], plain.gradients[0]) < 1e-5
    trained = {id(p) for p in merged.session.policy.parameters()}
    for name, parameter in merged.network.named_parameters():
        same, values = merged.frozen[name]
        assert parameter is same and (id(parameter) in trained) != torch.equal(parameter, values), name
