"""Attention backends and compiled blocks: the same numbers by other kernels, or a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers.models.attention_dispatch as dispatch
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from flowrl.errors import UserError
from flowrl.models.adapters.peft import shared_base
from flowrl.models.deviation import deviation
from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.attention import use_attention
from flowrl.models.placement import checkpoint_blocks, compile_blocks
from flowrl.types import prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS, move, points

MATH = dispatch.AttentionBackendName._NATIVE_MATH


@pytest.fixture
def flux(folder: Callable) -> Any:
    return load_policy(folder("flux"), call=pipelines.CALLS["flux"], parity="skip")


# ------------------------------------------------------------------------------------------------------------ attention
@pytest.mark.parametrize("name", ["sdpa", "_native_math", "_native_flash"])
def test_an_attention_backend_is_the_one_network_s_and_computes_the_same(name, flux, monkeypatch):
    calls = []
    backend = {"sdpa": "native"}.get(name, name)
    real = dispatch._AttentionBackendRegistry._backends[backend]
    monkeypatch.setitem(
        dispatch._AttentionBackendRegistry._backends, backend, lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    monkeypatch.setitem(
        dispatch._AttentionBackendRegistry._supported_arg_names,
        backend,
        dispatch._AttentionBackendRegistry._supported_arg_names[backend],
    )
    default = dispatch._AttentionBackendRegistry._active_backend
    assert use_attention(flux, name) <= (0 if name == "sdpa" else 1e-5)
    assert calls and dispatch._AttentionBackendRegistry._active_backend == default  # of other networks


@pytest.mark.parametrize(
    ("pipeline", "name", "sentence"),
    [
        (
            "flux",
            "_native_efficient",
            "'_native_efficient' cannot compute FluxTransformer2DModel on cpu in float32: No ",
        ),
        (
            "flux",
            "flex",
            "cannot compute FluxTransformer2DModel on cpu in float32: FlexAttention does not support backw",
        ),
        (
            "sd3",
            "flex",
            "'flex' would change nothing: SD3Transformer2DModel does not ask diffusers' dispatcher; set mo",
        ),
        ("sd15", "_native_math", "would change nothing: UNet2DConditionModel does not ask"),
        ("flux", "flsh", "model.attention: attention backend 'flsh' is not available: .*did you mean 'flash'"),
    ],
)
def test_what_a_backend_cannot_do_is_said_while_the_model_is_loaded(pipeline, name, sentence, folder):
    with pytest.raises(UserError, match=sentence):
        load_policy(folder(pipeline), call=pipelines.CALLS[pipeline], attention=name, parity="skip")


def test_a_backend_without_a_gradient_is_refused(flux, monkeypatch):
    real = dispatch._AttentionBackendRegistry._backends[MATH]
    monkeypatch.setitem(dispatch._AttentionBackendRegistry._backends, MATH, lambda **k: real(**k).detach())
    with pytest.raises(UserError, match=r"a velocity deviates by .*, its gradient by .* for inference alone"):
        use_attention(flux, "_native_math")


def test_a_backend_of_other_numbers_is_refused(flux, monkeypatch):
    real = dispatch._AttentionBackendRegistry._backends[MATH]
    monkeypatch.setitem(dispatch._AttentionBackendRegistry._backends, MATH, lambda **k: real(**k) * 1.01)
    with pytest.raises(UserError, match="does not compute what torch's own does"):
        use_attention(flux, "_native_math")


@pytest.mark.parametrize(
    ("name", "package"), [("xformers", "xformers"), ("flash", "flash_attn"), ("sage", "sageattention")]
)
def test_installed_backends_compute_what_torch_does(name, package, folder):
    pytest.importorskip(package)
    if not torch.cuda.is_available():
        pytest.skip("its kernels are for GPUs")
    policy = load_policy(folder("flux"), call=pipelines.CALLS["flux"], dtype="bfloat16", device="cuda")
    if name == "sage":  # for inference
        with pytest.raises(UserError, match="attention backend 'sage'"):
            use_attention(policy, name)
    else:
        assert use_attention(policy, name) < 0.2


# ------------------------------------------------------------------------------------------------------------- compiled
class Graphs:
    """A backend of torch.compile that counts."""

    def __init__(self) -> None:
        self.gradients: list[bool] = []

    def __call__(self, module: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.gradients.append(torch.is_grad_enabled())
        return aot_eager(module, inputs)


@pytest.fixture
def graphs() -> Any:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield Graphs()
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def velocities(policy: Any, rows: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Without and with gradients, and the gradients."""
    x, t = points(policy, rows)
    condition = policy.condition(prompts_of((PROMPTS * rows)[:rows]))
    with torch.no_grad():
        free = policy.velocity(x, t, condition, guidance=1.0)
    bound = policy.velocity(x, t, condition, guidance=1.0)
    bound.square().mean().backward()
    gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    for parameter in policy.parameters():
        parameter.grad = None
    return free, bound.detach(), gradients


# the last block of SD3 is a kind of its own
KINDS = {"sd3": 2, "sd15": 3}


@pytest.mark.parametrize("name", ["sd3", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sd15",))])
@pytest.mark.slow
def test_compiled_blocks_share_their_graphs_over_numbers_of_rows(name, folder, graphs):
    policy = load_policy(folder(name), call=pipelines.CALLS[name], parity="skip")
    move(policy)
    plain = {rows: velocities(policy, rows) for rows in (3, 7, 2, 5)}
    compile_blocks(policy.network, graphs)
    first = None
    for rows, (free, bound, gradients) in plain.items():
        found = velocities(policy, rows)
        assert deviation(found[0], free) < 1e-6 and deviation(found[1], bound) < 1e-6
        assert all(deviation(a, b) < 1e-5 for a, b in zip(found[2], gradients, strict=True))
        first = first or len(graphs.gradients)
    assert len(graphs.gradients) == first  # further numbers of rows compile nothing
    kinds = KINDS[name]
    assert graphs.gradients.count(False) <= kinds and graphs.gradients.count(True) <= 2 * kinds


@pytest.mark.slow
def test_compiled_blocks_follow_weight_sets_and_checkpoints(folder, graphs):
    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], gradient_checkpointing=True, parity="skip")
    reference = velocities(policy, 3)[0]
    move(policy)
    live = velocities(policy, 3)
    compile_blocks(policy.network, graphs)
    found = velocities(policy, 3)
    x, t = points(policy, 3)
    with policy.using("reference"):
        base = policy.velocity(x, t, policy.condition(prompts_of(PROMPTS)), guidance=1.0)
    again = velocities(policy, 3)
    assert deviation(base, reference) < 1e-6 < deviation(live[0], reference)
    for answer in (found, again):
        assert deviation(answer[0], live[0]) < 1e-6
        assert all(deviation(a, b) < 1e-5 for a, b in zip(answer[2], live[2], strict=True))


@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_blocks_of_a_language_model(recomputed, graphs):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 40}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    ids = torch.randint(0, 40, (7, 9))
    plain = {rows: model(ids[:rows]).logits.detach() for rows in (3, 7, 2, 5)}
    if recomputed:
        checkpoint_blocks(model)
    compile_blocks(model, graphs)
    for rows, logits in plain.items():
        with torch.no_grad():
            free = model(ids[:rows], use_cache=False).logits
        bound = model(ids[:rows], use_cache=False).logits
        bound.sum().backward()
        assert deviation(free, logits) < 1e-6 and deviation(bound, logits) < 1e-6
    assert len(graphs.gradients) <= 3


class Blocks(nn.Module):
    """Two blocks of a linear layer."""

    _no_split_modules = ("Linear",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("changes", [(checkpoint_blocks,), (compile_blocks,), (checkpoint_blocks, compile_blocks)])
def test_a_base_for_exports_computes_without_what_was_put_around_its_blocks(changes):
    network, x = Blocks(), torch.randn(2, 3)
    before = network(x)
    for change in changes:
        change(network)
    other = shared_base(network)
    assert torch.equal(other(x), before)
    for block, theirs in zip(other.blocks, network.blocks, strict=True):
        assert block.weight is theirs.weight and block is not theirs
        assert block.forward.__func__ is nn.Linear.forward and block.forward.__self__ is block
