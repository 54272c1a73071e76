"""Language models as policies: their scores, gradients and decoding are the models' own, whatever the batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowrl.math.random import seeds
from flowrl.models import check_parity
from flowrl.models.causal.load import load_causal
from flowrl.models.causal.policy import CausalPolicy
from flowrl.models.lora import LoRAOptions
from flowrl.models.masked.layout import Blocks
from flowrl.models.masked.load import load_masked
from flowrl.models.masked.policy import MaskedPolicy
from flowrl.models.masked.reader import keeps_prefixes
from flowrl.models.text import layout
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.network import Head
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import Draw, prompts_of
from tests import components_text
from tests.parity.conftest import move

CAUSAL = ("llama", "qwen2", "qwen3", "gemma2", "cohere", "gpt2", "opt", "mamba")
LLADA2 = ("llada2", "llada2-blocks", "llada2-square")
MASKED = ("bert", "roberta", "modernbert", "llada", "dream", *LLADA2, "diffusion_gemma")
REMOTE = ("llada", "dream", *LLADA2)
PROMPTS = ["3+4=", "12*(5-1)=", "3+4=", "7=", "3+4="]
LENGTH = 6


def load(name: str, **options: Any) -> Any:
    loader = load_causal if name in CAUSAL else load_masked
    return loader(components_text.folder(name), trust_remote_code=name in REMOTE, **options)


def rows(policy, seed: int = 0) -> tuple[TextCondition, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(condition, inputs, targets, labels)`` of five rows, one of which has no target."""
    generator = torch.Generator().manual_seed(seed)
    words = len(policy.codec.tokenizer)
    tokens, labels = (torch.randint(4, words, (len(PROMPTS), LENGTH), generator=generator) for _ in range(2))
    targets = torch.rand(tokens.shape, generator=generator) < 0.6
    targets[3] = False
    targets[1, -1] = False  # a row that ends early
    if isinstance(policy, MaskedPolicy):
        tokens = torch.where(torch.rand(tokens.shape, generator=generator) < 0.5, policy.mask_token, tokens)
    else:
        tokens = labels
    return policy.condition(prompts_of(PROMPTS)), tokens, targets, labels


def model_logits(policy, name: str, prompt: list[int], tokens: list[int], place: int) -> torch.Tensor:
    """[V] logits for one position, by one call of the bare model on one row."""
    model, whole = policy.network.model, len(prompt) + len(tokens)
    if name == "diffusion_gemma":
        start = place // 4 * 4
        prefix, canvas = torch.tensor([prompt + tokens[:start]]), torch.tensor([tokens[start : start + 4]])
        return model(input_ids=prefix, decoder_input_ids=canvas).logits[0, place - start]
    if name.startswith("llada2"):
        end = ((len(prompt) + place) // 4 + 1) * 4
        filler = [policy.mask_token] * max(end - whole, 0)
        ids = torch.tensor([(prompt + tokens + filler)[:end]])
        inside = (torch.arange(end)[None] < whole).long()
        if name == "llada2-square":
            block = torch.arange(end) // 4
            inside = torch.where((block <= block[:, None]) & (inside == 1), 0.0, -math.inf)[None, None]
        output = model(ids, attention_mask=inside, position_ids=torch.arange(end)[None])
        return output.logits[0, len(prompt) + place]
    shift = name in CAUSAL or name == "dream"
    return model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) + place - shift]


def expected(policy, name: str, case, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """``(logp, entropy)`` [N, T] position by position."""
    condition, tokens, targets, labels = case
    logp, entropy = torch.zeros(tokens.shape).tolist(), torch.zeros(tokens.shape)
    for row, place in targets.nonzero().tolist():
        u = condition.index[row]
        prompt = condition.prompts[u, : condition.lengths[u]].tolist()
        logits = model_logits(policy, name, prompt, tokens[row].tolist(), place).double() / temperature
        if isinstance(policy, MaskedPolicy):
            logits = logits.index_fill(0, torch.tensor(policy.mask_token), -math.inf)
        law = logits.log_softmax(-1)
        logp[row][place] = law[labels[row, place]]
        entropy[row, place] = torch.special.entr(law.detach().exp()).sum()
    return torch.stack([torch.stack([torch.as_tensor(v).double() for v in line]) for line in logp]), entropy


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_scores_and_gradients_are_the_models_own(name):
    """Log-probabilities, entropies and gradients against one plain call of the model per position."""
    policy = load(name)
    move(policy, 0.1)
    case = rows(policy)
    scores = policy.score(*case, temperature=0.7, entropy=True)
    logp, entropy = expected(policy, name, case, 0.7)
    assert not scores.logp[3].any() and (scores.logp != 0).equal(case[2])
    torch.testing.assert_close(scores.logp.double(), logp, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.entropy, entropy, atol=1e-5, rtol=1e-5)
    assert not scores.entropy.requires_grad
    upstream = torch.randn(logp.shape, generator=torch.Generator().manual_seed(2))
    parameters = policy.parameters()
    ours = torch.autograd.grad((scores.logp * upstream).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((logp * upstream).sum(), parameters, allow_unused=True)
    scale = max(float(g.abs().max()) for g in theirs if g is not None)
    assert scale > 1e-3
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert", "llada", "diffusion_gemma"])
def test_gradients_of_all_parameters(name):
    """Full fine-tuning, with tied and untied vocabulary layers and capped logits."""
    policy = load(name, full=True)
    case = rows(policy)
    ours = torch.autograd.grad(policy.score(*case).logp.sum(), policy.parameters(), allow_unused=True)
    theirs = torch.autograd.grad(expected(policy, name, case)[0].sum(), policy.parameters(), allow_unused=True)
    names = list(policy.network.adaptation.parameters)
    scale = max(float(g.abs().max()) for g in theirs if g is not None)
    for key, mine, other in zip(names, ours, theirs, strict=True):
        assert (mine is None) == (other is None), key
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "roberta", "modernbert", "llada", "dream", "llada2"])
def test_a_row_does_not_depend_on_its_batch(name):
    policy = load(name)
    condition, tokens, targets, labels = rows(policy)
    with torch.no_grad():
        together = policy.score(condition, tokens, targets, labels).logp
        for row in range(len(tokens)):
            one = torch.tensor([row])
            alone = policy.score(condition.take(one), tokens[one], targets[one], labels[one]).logp
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
        order = torch.tensor([4, 1, 1, 0])
        mixed = policy.score(condition.take(order), tokens[order], targets[order], labels[order]).logp
    torch.testing.assert_close(mixed, together[order], atol=1e-5, rtol=1e-5)


def test_models_that_cannot_be_padded_are_not():
    """LLaDA's code ignores attention masks, so its rows go by prompt length; the others share a call."""
    for name, calls in (("llada", 2), ("bert", 1), ("dream", 1)):
        policy = load(name)
        assert len(list(policy.layout(*rows(policy)[:3]))) == calls, name


@pytest.mark.parametrize("name", ["bert", "dream", "llada2", "diffusion_gemma"])
def test_logits_come_row_by_row(name):
    policy = load(name)
    condition, tokens, targets, labels = rows(policy)
    with torch.no_grad():
        logits = policy.logits(condition, tokens, targets)
        logp = policy.score(condition, tokens, targets, labels).logp
    assert logits.shape == (int(targets.sum()), policy.vocabulary)
    assert bool((logits[:, policy.mask_token] == -math.inf).all()) and not logits.isinf().sum() > len(logits)
    found = logits.log_softmax(-1).gather(1, labels[targets][:, None])[:, 0]
    torch.testing.assert_close(found, logp[targets], atol=1e-5, rtol=1e-5)
    none = policy.logits(condition, tokens, torch.zeros_like(targets))
    assert none.shape == (0, policy.vocabulary)


@pytest.mark.parametrize("route", ["rows", "whole"])
@pytest.mark.parametrize("name", ["gemma2", "bert"])
def test_other_routes_to_the_predictions(route, name):
    """What is left where the vocabulary layer is not a plain one: the same numbers and gradients."""
    policy = load(name)
    move(policy, 0.1)
    case = rows(policy)
    found = []
    for head in (policy.network.head, Head(route)):
        policy.network.head = head
        scores = policy.score(*case, temperature=0.7, entropy=True)
        gradient = torch.autograd.grad(scores.logp.sum(), policy.parameters(), allow_unused=True)
        found.append([scores.logp, scores.entropy, *(g for g in gradient if g is not None)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_an_adapted_vocabulary_layer_takes_another_route():
    targets = ("q_proj", "lm_head")
    policy = load("qwen2", lora=LoRAOptions(rank=4, targets=targets))
    assert policy.network.head == Head("rows")
    move(policy, 0.3)
    case = rows(policy)
    logp, _ = expected(policy, "qwen2", case)
    torch.testing.assert_close(policy.score(*case).logp.double(), logp, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["padded", "by length", "recomputed"])
@pytest.mark.parametrize("name", CAUSAL)
def test_decoding(name, way):
    """Logits of every step are those of the whole sequence, through selections, repeats and reordering."""
    policy = load(name)
    assert policy.decoding == ("by length" if name == "mamba" else "padded")
    if name == "mamba" and way == "padded":
        pytest.skip("has states, which padding changes")
    policy.decoding = way
    move(policy, 0.1)
    condition, tokens, _, _ = rows(policy)
    calls = policy.network_calls
    assert calls == 0  # start-up checks are not counted
    decoder, kept = policy.decoder(condition), torch.arange(len(tokens))
    assert policy.network_calls - calls == (len(tokens) if way == "recomputed" else 3)  # three unique prompts
    for step in range(LENGTH):
        for at, row in enumerate(kept.tolist()):
            u = condition.index[row]
            whole = [*condition.prompts[u, : condition.lengths[u]].tolist(), *tokens[row, :step].tolist()]
            with torch.no_grad():
                direct = policy.network.model(input_ids=torch.tensor([whole])).logits[0, -1]
            torch.testing.assert_close(decoder.logits[at], direct, atol=1e-4, rtol=1e-4)
        if step == 1:
            decoder.keep(torch.tensor([4, 1, 3]))
            kept = kept[[4, 1, 3]]
        if step == 3:
            decoder.keep(torch.tensor([1, 2]))
            kept = kept[[1, 2]]
        decoder.push(tokens[kept, step])
    assert decoder.logits.dtype == torch.float32 and not decoder.logits.requires_grad


def test_no_vocabulary_wide_tensor_is_kept():
    """Neither saved for backward nor computed for positions that nobody asked about."""
    policy = load("llama")
    case, kept, seen = rows(policy), [], []
    hook = policy.network.model.lm_head.register_forward_hook(lambda _, given, out: seen.append(out.shape))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        policy.score(*case)
    hook.remove()
    weight = {policy.vocabulary, 32}  # of the layer itself, which is no copy
    assert kept and not any(policy.vocabulary in shape and set(shape) != weight for shape in kept)
    assert seen == [(4, 0, policy.vocabulary)]


def test_only_needed_columns_are_computed():
    policy = load("llama")
    condition, tokens, targets, _ = rows(policy)
    targets[:] = torch.tensor([True, False, False, True, False, False])
    targets[3] = False
    (call,) = policy.layout(condition, tokens, targets)
    assert call.inputs["input_ids"].shape == (4, len(PROMPTS[1]) + 3)  # nothing at or after the last target
    assert "attention_mask" not in call.inputs
    before = policy.network_calls
    with torch.no_grad():
        policy.score(condition, tokens, targets, tokens)
    assert policy.network_calls - before == 4


def test_rows_of_similar_length_share_a_call(monkeypatch):
    """Whatever the calls are, the results are the same; they are split where it saves padding."""
    policy = load("llama")
    case = rows(policy)
    whole = policy.score(*case, entropy=True)
    assert len(list(policy.layout(*case[:3]))) == 1
    monkeypatch.setattr(layout, "WORTHWHILE_PADDING", 3)
    parts = list(policy.layout(*case[:3]))
    assert len(parts) > 1 and sum(len(c.inputs["input_ids"]) for c in parts) == 4
    split = policy.score(*case, entropy=True)
    torch.testing.assert_close(split.logp, whole.logp)
    torch.testing.assert_close(split.entropy, whole.entropy)
    groups = layout.length_groups(torch.tensor([9, 1, 1, 8, 1, 9]))
    assert [sorted(g.tolist()) for g in groups] == [[1, 2, 4], [0, 3, 5]]


@pytest.mark.parametrize("name", ["llama", "opt", "bert", "diffusion_gemma", "llada"])
@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_gradient(name):
    found = []
    for on in (False, True):
        policy = load(name, gradient_checkpointing=on)
        move(policy, 0.1)
        depth = _graph_tensors(policy)
        gradient = torch.autograd.grad(policy.score(*rows(policy)).logp.sum(), policy.parameters(), allow_unused=True)
        found.append((depth, torch.cat([g.flatten() for g in gradient if g is not None])))
        if isinstance(policy, CausalPolicy):
            policy.decoder(policy.condition(prompts_of(PROMPTS)))  # keeps its cache
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[1][0] < 0.7 * found[0][0]


def _graph_tensors(policy) -> int:
    """Numbers kept for backward."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        policy.score(*rows(policy))
    return sum(kept)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_half_precision(name):
    """Frozen weights in bfloat16: near the float32 scores, and with gradients in float32."""
    exact, half = load(name), load(name, dtype="bfloat16")
    case = rows(exact)
    scores = half.score(*case)
    assert scores.logp.dtype == torch.float32
    assert float((scores.logp - exact.score(*case).logp).detach().abs().max()) < 0.3
    gradient = torch.autograd.grad(scores.logp.sum(), half.parameters(), allow_unused=True)
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradient if g is not None)


def test_a_critic_on_the_policys_states():
    """Zero at first, on detached states one position before the token, and trained with the rest."""
    policy = load("llama", critic="head")
    case = rows(policy)
    scores = policy.score(*case)
    assert scores.value is not None and not scores.value.any()
    head = policy.critic.head
    assert policy.parameters()[-1] is head.bias and policy.parameters()[-2] is head.weight
    assert len(policy.parameters()) == len(load("llama").parameters()) + 2
    move(policy, 0.1)
    value = policy.score(*case).value
    condition, tokens, targets, _ = case
    u = condition.index[0]
    ids = [*condition.prompts[u, : condition.lengths[u]].tolist(), *tokens[0].tolist()]
    with torch.no_grad():
        states = policy.network.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        plain = head(states)[:, 0][len(ids) - LENGTH - 1 : -1]
    torch.testing.assert_close(value[0], plain * targets[0], atol=1e-5, rtol=1e-5)
    gradient = torch.autograd.grad(value.sum(), policy.parameters(), allow_unused=True)
    assert all(g is None for g in gradient[:-2]) and all(g is not None for g in gradient[-2:])
    assert {"live/critic.weight", "live/critic.bias"} <= policy.weights.state().keys()
    with policy.using("reference"):
        assert policy.score(*case).value is None  # only the live policy is valued


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"gradient_checkpointing": True}),
        ("llama", {"full": True, "lora": None}),
        ("gpt2", {}),
        ("gpt2", {"gradient_checkpointing": True}),
    ],
)
def test_a_critic_with_a_network_of_its_own(name: str, options: dict):
    """It starts as the policy's, shares what is frozen, and learns without moving the policy, and the other way
    round."""
    policy = load(name, critic="network", **options)
    case = rows(policy)
    mine = policy.critic_parameters()
    others = policy.parameters()[: -len(mine)]
    assert len(mine) > 2 and not {id(p) for p in mine} & {id(p) for p in others}
    with torch.no_grad():
        policy.critic.head.weight.normal_()
    value, logp = policy.score(*case).value, policy.score(*case).logp
    condition, tokens, _, _ = case
    u = condition.index[0]
    ids = [*condition.prompts[u, : condition.lengths[u]].tolist(), *tokens[0].tolist()]
    with torch.no_grad():
        states = policy.network.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        plain = policy.critic.head(states)[:, 0][len(ids) - LENGTH - 1 : -1]
    torch.testing.assert_close(value[0], plain * case[2][0], atol=1e-5, rtol=1e-5)
    by_value = torch.autograd.grad(value.pow(2).sum(), policy.parameters(), allow_unused=True)
    assert all(g is None for g in by_value[: len(others)])
    assert sum(g is not None and bool(g.any()) for g in by_value[len(others) :]) > 2
    frozen = {id(p) for p in policy.network.model.parameters() if not p.requires_grad}
    assert frozen <= {id(p) for p in policy.critic.network.model.parameters()}
    kept = {key: tensor.clone() for key, tensor in policy.weights.state().items()}
    assert any(key.startswith("live/critic.network.") for key in kept)
    assert not any("critic" in key for key in kept if not key.startswith("live/"))
    for changed, still, moved in ((mine, "logp", "value"), (others, "value", "logp")):
        before = policy.score(*case)
        with torch.no_grad():
            for parameter in changed:
                parameter.add_(torch.randn(parameter.shape))
        after = policy.score(*case)
        assert torch.equal(getattr(after, still), getattr(before, still))
        assert not torch.equal(getattr(after, moved), getattr(before, moved))
    policy.weights.load(kept)
    again = policy.score(*case)
    assert torch.equal(again.value, value) and torch.equal(again.logp, logp)
    assert policy.network_calls == 2 * policy.network.calls


def test_weight_sets():
    policy = load("bert")
    case = rows(policy)
    start = policy.score(*case).logp.detach()
    move(policy, 0.2)
    moved = policy.score(*case).logp
    assert float((moved.detach() - start).abs().max()) > 1e-2 and moved.requires_grad
    with policy.using("reference"):
        torch.testing.assert_close(policy.score(*case).logp, start, atol=0, rtol=0)
    assert check_parity(policy) < 1e-4


# --------------------------------------------------------------------------------------- masked models, block by block
CACHED = ("llada2-square", "diffusion_gemma")


@pytest.mark.parametrize("name", MASKED)
def test_prefixes_are_kept_where_that_is_exact(name):
    assert load(name).keeps_prefixes == (name in CACHED)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.3}, {"guidance": 0.5}, {"block": 2}, {"block": 8, "steps": 8}])
@pytest.mark.parametrize("name", [CACHED[0], pytest.param(CACHED[1], marks=pytest.mark.slow)])
def test_sampling_with_kept_prefixes_is_sampling_by_full_passes(name, options):
    """Prompts of unequal length, rows that end early, and blocks of half and of twice the model's."""
    policy = load(name)
    move(policy, 0.1)
    condition = policy.condition(prompts_of(PROMPTS))
    sampler = MaskedSampler(**{"length": 16, "steps": 16, "block": 4, **options})
    draw = Draw.of(seeds(0, "cache", count=len(PROMPTS)), torch.arange(len(PROMPTS)), 0, 1)
    policy.end_tokens = (int(sampler(policy, condition, draw).final[1, 1]),)  # the second row ends in its first block
    found, widths = {}, {}
    for kept in (True, False):
        policy.keeps_prefixes = kept
        seen: list[int] = []
        hook = policy.network.model.register_forward_pre_hook(
            lambda _, args, given, seen=seen: seen.append(given["input_ids"].numel() if "input_ids" in given else 0),
            with_kwargs=True,
        )
        found[kept], widths[kept] = sampler(policy, condition, draw), seen
        hook.remove()
    assert found[True].final.equal(found[False].final) and found[True].trace.order.equal(found[False].trace.order)
    assert sum(widths[True]) < 0.8 * sum(widths[False])
    ended = (found[True].trace.order < 0).any(dim=1)
    assert bool(ended[1]) and not bool(ended.all())


def test_a_prefix_that_later_tokens_change_is_not_kept():
    """The same model with nothing hidden."""
    policy = load("llada2-square")

    class Open(Blocks):
        def __call__(self, *args):
            for call in super().__call__(*args):
                yield replace(
                    call, inputs={**call.inputs, "attention_mask": torch.zeros_like(call.inputs["attention_mask"])}
                )

    policy.layout = Open(**vars(policy.layout))
    assert not keeps_prefixes(policy)
