"""Log-probabilities of chosen tokens: values and gradients of plain autograd, without its memory."""

from __future__ import annotations

import math

import pytest
import torch

from flowrl.math import tokens as math_tokens
from flowrl.math.tokens import Readout, exclude, log_softmax_at, selective_log_softmax, vocabulary_logits
from flowrl.types import Truncation

ROWS, WIDTH, WORDS = 37, 12, 53


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).float()

    labels = torch.randint(1, WORDS, (ROWS,), generator=generator)
    return draw(ROWS, WIDTH), draw(WORDS, WIDTH), draw(WORDS), labels, draw(ROWS)


def plain(hidden, weight, bias, labels, temperature, excluded, readout):
    """The formula in double precision, by autograd."""
    x = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    x = x * readout.scale
    if readout.softcap is not None:
        x = readout.softcap * torch.tanh(x / readout.softcap)
    logp = exclude(x / temperature, excluded).log_softmax(-1)
    p = logp.exp()
    return logp[torch.arange(len(labels)), labels], -(p * logp.nan_to_num(neginf=0)).sum(-1)


@pytest.mark.parametrize("readout", [Readout(), Readout(softcap=1.5), Readout(softcap=3.0, scale=0.5)])
@pytest.mark.parametrize("excluded", [(), (0,), (0, 52)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("trained", ["hidden", "weight", "all"])
@pytest.mark.parametrize("chunk", [1, 10, None])
def test_values_and_gradients(case, readout, excluded, temperature, trained, chunk):
    _, _, bias, labels, upstream = case
    labels = labels.clamp(max=51)
    found = []
    for ours in (True, False):
        leaves = [
            t.clone().requires_grad_(trained in (n, "all")) for n, t in zip(("hidden", "weight"), case, strict=False)
        ]
        offset = bias.clone().requires_grad_(trained == "all")
        if ours:
            logp, entropy = selective_log_softmax(
                leaves[0], leaves[1], offset, labels, temperature=temperature, excluded=excluded, entropy=True,
                chunk=chunk, readout=readout,
            )  # fmt: skip
        else:
            logp, entropy = plain(leaves[0], leaves[1], offset, labels, temperature, excluded, readout)
        (logp * upstream).sum().backward()
        found.append([logp, entropy, *(t.grad for t in (*leaves, offset))])
    assert found[0][0].requires_grad and not found[0][1].requires_grad
    for mine, theirs in zip(*found, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine.double(), theirs.double(), atol=2e-5, rtol=2e-5)


def test_without_bias_and_from_logits(case):
    hidden, weight, _, labels, _ = case
    logits = vocabulary_logits(hidden, weight, None)
    ours = selective_log_softmax(hidden, weight, None, labels, temperature=0.5, excluded=(0,), entropy=True, chunk=7)
    theirs = log_softmax_at(logits, labels, temperature=0.5, excluded=(0,), entropy=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    assert selective_log_softmax(hidden, weight, None, labels)[1] is None and log_softmax_at(logits, labels)[1] is None
    assert selective_log_softmax(hidden[:0], weight, None, labels[:0])[0].shape == (0,)


def test_entropy_of_the_uniform_law():
    hidden, weight = torch.zeros(3, 4), torch.randn(10, 4)
    logp, entropy = selective_log_softmax(
        hidden, weight, None, torch.ones(3, dtype=torch.int64), excluded=(0,), entropy=True
    )
    torch.testing.assert_close(logp, torch.full((3,), -math.log(9)))
    torch.testing.assert_close(entropy, torch.full((3,), math.log(9)))


def test_half_precision_weights_accumulate_in_float32(case):
    hidden, weight, bias, labels, _ = case
    h, w, b = (t.bfloat16() for t in (hidden, weight, bias))
    ours, _ = selective_log_softmax(h, w, b, labels)
    theirs, _ = plain(h.double(), w.double(), b.double(), labels, 1.0, (), Readout())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # whose matrix products would be in half precision
        inside, _ = selective_log_softmax(h, w, b, labels)
    torch.testing.assert_close(inside, ours, atol=0, rtol=0)
    leaf = h.clone().requires_grad_()
    selective_log_softmax(leaf, w, b, labels)[0].sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("train_weight", [False, True])
def test_no_logits_are_kept_for_backward(case, train_weight):
    hidden, weight, bias, labels, _ = case
    kept = []

    def pack(tensor):
        kept.append(tensor.shape)
        return tensor

    leaf, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(train_weight)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        logp, _ = selective_log_softmax(leaf, head, bias, labels, chunk=5, entropy=True)
    assert kept and all(math.prod(shape) <= max(ROWS * WIDTH, WORDS * WIDTH) for shape in kept)
    assert not any(WORDS in shape and (ROWS in shape or 5 in shape) for shape in kept)
    logp.sum().backward()
    assert leaf.grad is not None


def test_greedy_has_no_log_probability(case):
    hidden, weight, _, labels, _ = case
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        selective_log_softmax(hidden, weight, None, labels, temperature=0.0)
    with pytest.raises(ValueError, match="temperature above 0"):
        log_softmax_at(hidden @ weight.T, labels, temperature=-1.0)


def test_excluded_tokens_are_of_the_last_axis():
    logits = torch.arange(24.0).reshape(2, 3, 4)
    found = exclude(logits, (1, 3))
    assert bool((found[..., [1, 3]] == -torch.inf).all()) and torch.equal(found[..., [0, 2]], logits[..., [0, 2]])
    assert exclude(logits, ()) is logits


@pytest.mark.parametrize("trained", [True, False])
def test_logits_are_those_of_single_precision_whatever_is_cast_around(case, trained):
    hidden, weight, bias, _, _ = case
    leaf = hidden.clone().requires_grad_(trained)
    expected = Readout(softcap=2.0, scale=0.5)(hidden @ weight.T + bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = vocabulary_logits(leaf, weight, bias, Readout(softcap=2.0, scale=0.5))
    assert found.dtype == torch.float32 and found.requires_grad == trained
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)
    if trained:
        slope = torch.autograd.grad(found.sum(), leaf)[0]
        logits = hidden @ weight.T + bias
        torch.testing.assert_close(slope, (0.5 * (1 - (logits * 0.5 / 2).tanh() ** 2)) @ weight, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "excluded": (0,)}, {"truncation": Truncation(top_k=9)}])
@pytest.mark.parametrize("readout", [Readout(), Readout(scale=0.5), Readout(softcap=3.0)])
def test_probabilities_kept_or_computed_again_are_the_same(case, options, readout, monkeypatch):
    """Bit for bit, also of a second backward, whose kept ones the first has overwritten."""
    found, made = [], []
    product = math_tokens._product
    monkeypatch.setattr(math_tokens, "_product", lambda *given: made.append(0) or product(*given))
    for keep in (ROWS * WORDS, ROWS * WORDS - 1):
        made.clear()
        leaves = [t.clone().requires_grad_() for t in case[:3]]
        logp, entropy = selective_log_softmax(
            *leaves, case[3], entropy=True, chunk=10, readout=readout, keep=keep, **options
        )
        assert len(made) == 4
        first = torch.autograd.grad(logp, leaves, case[4], retain_graph=True)
        kept = keep == ROWS * WORDS and readout.softcap is None
        assert len(made) == (4 if kept else 8)
        second = torch.autograd.grad(logp, leaves, case[4])
        assert all(a.equal(b) for a, b in zip(first, second, strict=True))
        found.append([logp, entropy, *first])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))
