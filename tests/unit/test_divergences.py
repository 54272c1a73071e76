"""Divergences of whole distributions over a vocabulary: values, gradients, and what they hold in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowrl.math.divergences import coarse_divergence, jensen_shannon, selective_divergence
from flowrl.math.tokens import PLAIN, Readout
from flowrl.types import Distributions

K, D, V = 7, 5, 11


def tables(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, K, V, generator=generator, dtype=torch.float64))


def written_out(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """GKD's divergence from probabilities."""
    p, q = student.softmax(-1), teacher.softmax(-1)
    if beta == 0:
        return (q * (q / p).log()).sum(-1)
    if beta == 1:
        return (p * (p / q).log()).sum(-1)
    m = beta * q + (1 - beta) * p
    return (beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_values_and_slopes_are_those_of_the_formula(beta: float) -> None:
    student, teacher = tables()
    student.requires_grad_()
    wanted = written_out(student, teacher, beta)
    found = jensen_shannon(student, teacher, beta)
    assert torch.allclose(found.value, wanted)
    slope = torch.autograd.grad(wanted.sum(), student)[0]
    assert torch.allclose(found.slope, slope)
    step, direction = 1e-5, torch.randn(K, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ends = [written_out(student + sign * step * direction, teacher, beta) for sign in (1, -1)]
    assert torch.allclose((ends[0] - ends[1]) / (2 * step), (slope * direction).sum(-1), atol=1e-8)
    student = student.detach()
    same = jensen_shannon(student, student, beta)
    assert float(same.value.abs().max()) < 1e-12 and float(same.slope.abs().max()) < 1e-12


def test_the_ends_of_beta_are_no_limits() -> None:
    """The jump of GKD's loss: near 0 it is beta times the forward KL, at 0 all of it; likewise at 1."""
    student, teacher = tables()
    near, far = jensen_shannon(student, teacher, 0.001).value, jensen_shannon(student, teacher, 0.0).value
    assert torch.allclose(near / 0.001, far, rtol=0.02) and bool((near < 0.01 * far).all())
    near, far = jensen_shannon(student, teacher, 0.999).value, jensen_shannon(student, teacher, 1.0).value
    assert torch.allclose(near / 0.001, far, rtol=0.02) and bool((near < 0.01 * far).all())
    swapped = jensen_shannon(teacher, student, 0.5).value
    assert torch.allclose(jensen_shannon(student, teacher, 0.5).value, swapped) and bool((swapped < 0.6932).all())


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_few_outcomes_are_the_tables_with_the_others_added_up(beta: float) -> None:
    student, teacher = tables()
    student.requires_grad_()
    whole = jensen_shannon(student.detach(), teacher, beta)
    last = torch.zeros(K, dtype=torch.float64)
    for top in (1, 2, 5, V - 1):
        best = teacher.argsort(dim=-1, descending=True)[:, :top]
        sums = []
        for table in (student, teacher):
            p = table.softmax(-1)
            kept = p.gather(-1, best)
            sums.append(torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], dim=-1).log())
        wanted = written_out(*sums, beta)
        found = coarse_divergence(student, teacher, beta, top)
        assert torch.allclose(found.value, wanted)
        assert torch.allclose(found.slope, torch.autograd.grad(wanted.sum(), student)[0], atol=1e-12)
        assert bool((found.value >= last - 1e-12).all()) and bool((found.value <= whole.value + 1e-12).all())
        last = found.value.detach()
    assert torch.allclose(last, whole.value)  # the other outcome is one token
    for top in (V, V + 5, None):
        found = coarse_divergence(student.detach(), teacher, beta, top)
        assert torch.equal(found.value, whole.value) and torch.equal(found.slope, whole.slope)
    without = coarse_divergence(*(t.index_fill(-1, torch.tensor([3]), -torch.inf) for t in (student.detach(), teacher)),
                                beta, 4, (3,))  # fmt: skip
    kept = [v for v in range(V) if v != 3]
    assert torch.allclose(without.value, coarse_divergence(student.detach()[:, kept], teacher[:, kept], beta, 4).value)
    assert not without.slope[:, 3].any()


def layer(seed: int, width: int = V) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in ((K, D), (width, D), (width,)))


@pytest.mark.parametrize("readout", [PLAIN, Readout(softcap=2.0, scale=0.5)])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("beta", "top"), [(0.0, None), (0.5, None), (1.0, None), (0.0, 3), (0.5, 3)])
def test_chunks_are_plain_autograd(beta: float, top: int | None, trained: bool, readout: Readout) -> None:
    hidden, weight, bias = layer(0)
    states, theirs, more = layer(1)
    rows, upstream = torch.tensor([3, 0, 0, 6, 2, 1, 5]), torch.arange(1.0, K + 1)
    other = Distributions(states, torch.arange(K)[None], theirs, more, PLAIN)

    def gradients(whole: bool) -> list[Tensor]:
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained), bias.clone()]
        leaves[2].requires_grad_(trained)
        if whole:
            mine = readout(leaves[0] @ leaves[1].T + leaves[2]) / 0.7
            found = coarse_divergence(mine, (states @ theirs.T + more)[rows] / 0.7, beta, top).value
        else:
            options = {"beta": beta, "top": top, "temperature": 0.7, "readout": readout, "chunk": 2}
            found = selective_divergence(*leaves, other, rows, **options)
        return [found.detach(), *torch.autograd.grad((found * upstream).sum(), leaves[: 3 if trained else 1])]

    for found, wanted in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_excluded_tokens_and_padded_vocabularies() -> None:
    """Tokens of probability 0, and two layers of which one is padded: as if they were not there."""
    hidden, weight, bias = layer(0)
    states, theirs, more = layer(1, V + 3)
    other = Distributions(states, torch.arange(K)[None], theirs, more, PLAIN)
    hidden.requires_grad_()
    found = selective_divergence(hidden, weight, bias, other, torch.arange(K), beta=0.5, excluded=(2,))
    kept = [v for v in range(V) if v != 2]
    wanted = jensen_shannon((hidden @ weight.T + bias)[:, kept], (states @ theirs.T + more)[:, kept], 0.5).value
    assert torch.allclose(found, wanted, atol=1e-6)
    first = torch.autograd.grad(found.sum(), hidden, retain_graph=True)[0]
    assert torch.allclose(first, torch.autograd.grad(wanted.sum(), hidden)[0], atol=1e-6)
    with pytest.raises(ValueError, match="temperature above 0"):
        selective_divergence(hidden, weight, bias, other, torch.arange(K), beta=0.5, temperature=0.0)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return made


@pytest.mark.parametrize("trained", [False, True])
def test_no_table_of_all_positions_is_made(trained: bool) -> None:
    count, width = 500, 400
    hidden, weight = torch.randn(count, D, requires_grad=True), torch.randn(width, D, requires_grad=trained)
    other = Distributions(torch.randn(count, D), torch.arange(count)[None], torch.randn(width, D), None, PLAIN)
    with Largest() as seen:
        found = selective_divergence(hidden, weight, None, other, torch.arange(count), beta=0.5, chunk=10)
        found.sum().backward()
    assert hidden.grad is not None and seen.entries <= 10 * width < count * width / 40
