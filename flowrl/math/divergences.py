"""How far two distributions over a vocabulary are apart, position by position, without keeping either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.tokens import CELLS, PLAIN, Readout, exclude, multiply, vocabulary_logits, widened
from flowrl.types import Distributions

TABLES = 6
"""[k, V] tables that a chunk needs at once, about."""


class Apart(NamedTuple):
    """Divergences of some positions and their derivative."""

    value: Tensor  # [k]
    slope: Tensor  # [k, V]: with respect to the first distribution's logits


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float, excluded: Sequence[int] = ()) -> Apart:
    """The generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649, section 2.1) of two tables of logits [k, V]:

    ``beta KL(T | m) + (1 - beta) KL(S | m)`` with ``m = beta T + (1 - beta) S``; at ``beta = 0`` the forward
    ``KL(T | S)``, at 1 the reverse ``KL(S | T)``. The ends are not its limits, which are 0: near them it is beta, or 1
    - beta, times those. A divergence with ``dD/dS_v = g_v`` has the derivative ``S (g - sum_v S g)`` in the logits.
    """
    s, t = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    p, q = s.exp(), t.exp()
    if excluded:  # of probability 0 in both, where log p - log q would be no number
        outside = put(torch.tensor(excluded, dtype=torch.int64), s.device)
        s, t = s.index_fill(-1, outside, 0.0), t.index_fill(-1, outside, 0.0)
    if beta == 0:
        return Apart((q * (t - s)).sum(dim=-1), p - q)
    if beta == 1:
        g = s - t
        value = (p * g).sum(dim=-1)
        return Apart(value, p * (g - value[:, None]))
    middle = torch.logaddexp(t + math.log(beta), s + math.log1p(-beta))
    g = s - middle
    own = (p * g).sum(dim=-1)
    value = beta * (q * (t - middle)).sum(dim=-1) + (1 - beta) * own
    return Apart(value, (1 - beta) * p * (g - own[:, None]))


def coarse_divergence(
    student: Tensor, teacher: Tensor, beta: float, top: int | None, excluded: Sequence[int] = ()
) -> Apart:
    """`jensen_shannon` of ``top + 1`` outcomes: the teacher's ``top`` most likely tokens (the first of equals), and any
    other one. A bound from below of the divergence of the whole tables, which it is where no other token is left or
    ``top`` is ``None``."""
    left = student.shape[-1] - len(excluded)
    if top is None or top >= left:
        return jensen_shannon(student, teacher, beta, excluded)
    s, t = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    chosen = t.topk(top, dim=-1).indices
    rest = s.scatter(-1, chosen, -torch.inf)
    tail = rest.logsumexp(dim=-1, keepdim=True)
    others = t.scatter(-1, chosen, -torch.inf).logsumexp(dim=-1, keepdim=True)
    found = jensen_shannon(
        torch.cat([s.gather(-1, chosen), tail], dim=-1), torch.cat([t.gather(-1, chosen), others], dim=-1), beta
    )
    # what moves the tail's logarithm moves its tokens by their share of it
    slope = (rest - tail).exp() * found.slope[:, -1:]
    return Apart(found.value, slope.scatter(-1, chosen, found.slope[:, :-1]))


def selective_divergence(
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    other: Distributions,
    rows: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    excluded: Sequence[int] = (),
    top: int | None = None,
    readout: Readout = PLAIN,
    chunk: int | None = None,
) -> Tensor:
    """[K] float32: `coarse_divergence` of ``softmax(readout(hidden @ weight.T + bias) / temperature)`` and rows of
    another policy's distributions at the same temperature, with gradient in the first.

    Neither forward nor backward holds more than ``chunk`` rows of logits, as in
    `flowrl.math.tokens.selective_log_softmax`: where only ``hidden`` needs a gradient it is formed in the forward,
    and where the vocabulary layer does too, the logits are computed again in the backward. Vocabularies that are padded
    to different widths are compared where both have tokens.

    Args:
        hidden: [K, d], or logits [K, V] where ``weight`` is ``None``. rows: [K] of ``other``.
    """
    if not temperature > 0:
        raise ValueError(f"divergences need a temperature above 0, got {temperature}")
    width = len(hidden[0]) if weight is None and len(hidden) else 0 if weight is None else len(weight)
    each = chunk or max(1, CELLS.get(hidden.device.type, 2**26) // (TABLES * max(width, 1)))
    options = _Options(other, rows, beta, temperature, tuple(excluded), top, readout, each)
    if not len(hidden):
        return hidden.new_zeros(0, dtype=torch.float32)
    return _Divergence.apply(hidden, weight, bias, options)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class _Options:
    other: Distributions
    rows: Tensor
    beta: float
    temperature: float
    excluded: tuple[int, ...]
    top: int | None
    readout: Readout
    chunk: int

    def chunks(self) -> list[slice]:
        count = len(self.rows)
        return [slice(start, min(start + self.chunk, count)) for start in range(0, count, self.chunk)]

    def apart(self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, part: slice) -> Apart:
        """Of a chunk; the slope is that in the vocabulary layer's output."""
        logits = hidden[part].float() if weight is None else vocabulary_logits(hidden[part], weight, bias, self.readout)
        shown, rows = self.other, self.rows[part]
        states = shown.states[put(rows, shown.states.device)]
        theirs = states if shown.weight is None else vocabulary_logits(states, shown.weight, shown.bias, shown.readout)
        theirs = put(theirs.float(), logits.device)
        shared = min(logits.shape[1], theirs.shape[1])
        own, other = (exclude(table[:, :shared] / self.temperature, self.excluded) for table in (logits, theirs))
        value, slope = coarse_divergence(own, other, self.beta, self.top, self.excluded)
        whole = torch.nn.functional.pad(slope / self.temperature, (0, logits.shape[1] - shared))
        return Apart(value, whole if weight is None else self.readout.slope_(whole, logits))


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, options: _Options) -> Tensor:
        ctx.options, ctx.layer = options, (weight is not None and weight.requires_grad) or _trained(bias)
        value = torch.empty(len(hidden), device=hidden.device)
        keep = hidden.requires_grad and not ctx.layer
        direction = torch.empty(hidden.shape if keep else (0,), device=hidden.device)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            wide = None if weight is None else widened(weight)
            for part in options.chunks():
                value[part], slope = options.apart(hidden, weight, bias, part)
                if keep:
                    direction[part] = slope if wide is None else multiply(slope, wide)
        ctx.save_for_backward(*((direction,) if keep else (hidden, weight, bias)))
        ctx.kind = hidden.dtype
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        upstream = grad_outputs[0]
        if not ctx.layer:
            (direction,) = ctx.saved_tensors
            return (upstream[:, None] * direction).to(ctx.kind), None, None, None
        hidden, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        for_hidden = torch.empty_like(hidden) if needs[0] else None
        for_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
        for_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if bias is not None and needs[2] else None
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            wide = widened(weight)
            for part in ctx.options.chunks():
                gradient = ctx.options.apart(hidden, weight, bias, part).slope.mul_(upstream[part, None])
                if for_hidden is not None:
                    for_hidden[part] = multiply(gradient, wide).to(hidden.dtype)
                if for_weight is not None:
                    for_weight.addmm_(gradient.T, hidden[part].float())
                if for_bias is not None:
                    for_bias += gradient.sum(dim=0)
        return (
            for_hidden,
            None if for_weight is None else for_weight.to(weight.dtype),
            None if for_bias is None or bias is None else for_bias.to(bias.dtype),
            None,
        )


def _trained(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad
