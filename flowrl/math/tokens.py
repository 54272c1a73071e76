"""Log-probabilities of chosen tokens without keeping the vocabulary-wide logits for backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.masking import truncate
from flowrl.types import ALL_TOKENS, Truncation

CELLS = {"cpu": 2**22}
"""Entries of a chunk of logits, by device type; elsewhere 2**26 (256 MB in float32)."""
KEPT = 2**26
"""Probabilities that are kept for backward where the vocabulary layer is trained (256 MB); beyond, backward computes
the logits again."""


@dataclass(frozen=True)
class Readout:
    """How a vocabulary layer's output ``x`` becomes logits: ``softcap * tanh(scale * x / softcap)``, or ``scale * x``.

    The cap is Gemma 2's (arXiv:2408.00118, section 2), the scale Cohere's and Granite's.
    """

    softcap: float | None = None
    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of the layer's output, the same shape; may overwrite it where no gradient is taken."""
        if x.requires_grad:
            return x * self.scale if self.softcap is None else (x * (self.scale / self.softcap)).tanh() * self.softcap
        x = x if self.scale == 1.0 else x.mul_(self.scale)
        return x if self.softcap is None else x.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """``gradient`` with respect to the logits, turned in place into that with respect to the layer's output."""
        if self.softcap is not None:
            gradient.mul_(1 - (logits / self.softcap).square_())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


PLAIN = Readout()


def selective_log_softmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    excluded: Sequence[int] = (),
    entropy: bool = False,
    collision: bool = False,
    chunk: int | None = None,
    readout: Readout = PLAIN,
    truncation: Truncation = ALL_TOKENS,
    keep: int = KEPT,
) -> tuple[Tensor, Tensor | None]:
    """``log softmax(readout(hidden @ weight.T + bias) / temperature)`` at ``labels``, chunk by chunk.

    Neither forward nor backward holds more than ``chunk`` rows of logits. Where only ``hidden`` needs a gradient, its
    derivative ``(onehot - p) @ weight`` is formed in the forward pass, while ``p`` is there, and backward scales it;
    where ``weight`` needs one too, backward computes the logits again, unless there are at most ``keep`` of them:
    then ``p`` is kept instead. The numbers are the same either way.

    Args:
        hidden: [K, d]. weight: [V, d]. bias: [V] or ``None``. labels: [K] int64.
        excluded: token ids of probability 0.
        entropy: also return the distribution's entropy in nats, without gradient.
        collision: beside it ``-log sum_v p_v^2``, the entropy of order 2 (Renyi's), likewise.
        chunk: rows of logits at a time; ``None``: as many as make some MB.
        truncation: tokens outside of it have probability 0, labels excepted; the set is not differentiated.
        keep: probabilities [K, V] to keep for backward at most.

    Returns:
        ``(logp [K] float32, entropy [K] float32 or None)``; with ``collision`` both entropies [K, 2].
    """
    if not temperature > 0:
        raise ValueError(f"log-probabilities need a temperature above 0, got {temperature}")
    rows = chunk or max(1, CELLS.get(hidden.device.type, 2**26) // len(weight))
    fits = len(labels) * len(weight) <= keep
    options = _Options(temperature, tuple(excluded), entropy, collision, rows, readout, truncation, fits)
    # under inference there is nothing to prepare for a backward pass
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    if not wanted:
        made = _forward(hidden, weight, bias, labels, options, direction=False)
        logp, found = made.logp, made.entropy
    else:
        logp, found = _Selective.apply(hidden, weight, bias, labels, options)  # pyright: ignore[reportGeneralTypeIssues]
    return logp, found if entropy or collision else None


def log_softmax_at(
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    excluded: Sequence[int] = (),
    entropy: bool = False,
    collision: bool = False,
    truncation: Truncation = ALL_TOKENS,
) -> tuple[Tensor, Tensor | None]:
    """The same from logits [K, V] that exist already, by plain autograd."""
    if not temperature > 0:
        raise ValueError(f"log-probabilities need a temperature above 0, got {temperature}")
    logp = truncate(exclude(logits.float() / temperature, excluded), truncation, labels).log_softmax(dim=-1)
    found = torch.special.entr(logp.detach().exp()).sum(dim=-1) if entropy or collision else None
    if found is not None and collision:
        found = torch.stack([found, -(2 * logp.detach()).logsumexp(dim=-1)], dim=-1)
    return logp.gather(1, labels[:, None])[:, 0], found


def exclude(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """``logits`` [..., V] with -inf at ``tokens``."""
    if not tokens:
        return logits
    return logits.index_fill(-1, put(torch.tensor(tokens), logits.device), -torch.inf)


def vocabulary_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, readout: Readout = PLAIN) -> Tensor:
    """[K, V] float32 logits of ``hidden`` [K, d], accumulated in float32, with gradient where enabled."""
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            product = torch.nn.functional.linear(hidden.float(), weight.float(), None if bias is None else bias.float())
            return readout(product)
        return readout(_product(hidden, weight, bias))


@dataclass(frozen=True)
class _Options:
    temperature: float
    excluded: tuple[int, ...]
    entropy: bool
    collision: bool
    rows: int
    readout: Readout
    truncation: Truncation
    fits: bool
    """Whether all probabilities may be kept for backward."""

    @property
    def cut(self) -> bool:
        """Whether some tokens have probability 0."""
        return bool(self.excluded) or not self.truncation.off


class _Selective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor]:
        ctx.options, ctx.kind = options, hidden.dtype
        ctx.trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        keep = ctx.trained and options.fits and options.readout.softcap is None
        found = _forward(hidden, weight, bias, labels, options, direction=not ctx.trained, keep=keep)
        ctx.kept = found.probability if keep else None
        if ctx.trained:
            ctx.save_for_backward(hidden, weight, bias, labels, found.total)
        else:
            ctx.save_for_backward(found.direction)
        ctx.mark_non_differentiable(found.entropy)
        return found.logp, found.entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        upstream = grad_outputs[0]
        if not ctx.trained:
            (direction,) = ctx.saved_tensors
            return (upstream[:, None] * direction).to(ctx.kind), None, None, None, None
        hidden, weight, bias, labels, total = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None  # they are overwritten: a second backward computes them again
        known = (bias, labels, total, kept)
        return (*_backward(upstream, hidden, weight, known, ctx.options, ctx.needs_input_grad), None, None)


@dataclass(frozen=True)
class _Found:
    """What a forward pass leaves, all float32."""

    logp: Tensor  # [K]
    entropy: Tensor  # [K], [K, 2] with the entropy of order 2, or [0]
    direction: Tensor  # [K, d] or [0]: d logp / d hidden
    total: Tensor  # [K]: logsumexp
    probability: list[Tensor]
    """[k, V] of every chunk, or none."""


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: _Options, *,
    direction: bool, keep: bool = False,
) -> _Found:  # fmt: skip
    count, device = len(hidden), hidden.device
    logp, total = torch.empty(count, device=device), torch.empty(count, device=device)
    wanted = options.entropy or options.collision
    entropy = torch.empty(((count if wanted else 0), 1 + options.collision), device=device)
    slope = torch.empty((count, hidden.shape[1]) if direction else 0, device=device)
    kept: list[Tensor] = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        wide = widened(weight)
        first = _workspace(hidden, weight, options)
        room = None if keep else torch.empty_like(first)
        for part in _chunks(count, options):
            label = labels[part, None]
            logits = options.readout(_product(hidden[part], wide, bias, first[: part.stop - part.start]))
            heated = _heat_(logits, options, labels[part])
            # logsumexp writes as much again, so it takes the room that the probabilities need afterwards
            probability = torch.empty_like(heated) if room is None else room[: len(heated)]
            total[part] = _logsumexp(heated, probability)
            logp[part] = heated.gather(1, label)[:, 0] - total[part]
            if not (wanted or direction or keep):
                continue
            torch.sub(heated, total[part, None], out=probability).exp_()
            if wanted:
                entropy[part, 0] = _entropy(heated, total[part, None], probability, options)
            if options.collision:
                entropy[part, 1] = -torch.linalg.vecdot(probability, probability).log()
            if direction:
                slope[part] = multiply(_log_gradient_(probability, label, logits, options), wide)
            if keep:
                kept.append(probability)
    return _Found(logp, entropy if options.collision else entropy[:, 0], slope, total, kept)


def _chunks(count: int, options: _Options) -> list[slice]:
    return [slice(start, min(start + options.rows, count)) for start in range(0, count, options.rows)]


def _workspace(hidden: Tensor, weight: Tensor, options: _Options) -> Tensor:
    """[rows, V] float32, for all chunks: new memory for each costs more than what is computed in it."""
    return torch.empty(min(options.rows, len(hidden)), len(weight), device=hidden.device)


def _logsumexp(values: Tensor, room: Tensor) -> Tensor:
    """``values.logsumexp(dim=-1)`` [k], bit for bit, computed in ``room`` [k, V]."""
    most = values.amax(dim=-1, keepdim=True)
    most.masked_fill_(most.isinf(), 0.0)
    return torch.sub(values, most, out=room).exp_().sum(dim=-1).log_().add_(most[:, 0])


def _entropy(heated: Tensor, total: Tensor, probability: Tensor, options: _Options) -> Tensor:
    """``-sum p log p`` [k]; overwrites ``heated`` where it is not the logits that a cap's slope needs."""
    logp = heated.sub(total) if options.readout.softcap is not None else heated.sub_(total)
    terms = logp.mul_(probability)
    if options.cut:
        terms.masked_fill_(probability == 0, 0.0)  # 0 * -inf
    return terms.sum(dim=-1).neg_()


def _backward(
    upstream: Tensor, hidden: Tensor, weight: Tensor,
    known: tuple[Tensor | None, Tensor, Tensor, list[Tensor] | None], options: _Options, needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients with respect to hidden, weight and bias, of probabilities that were kept or are computed again."""
    bias, labels, total, kept = known
    for_hidden = torch.empty_like(hidden) if needs[0] else None
    for_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
    for_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if bias is not None and needs[2] else None
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        wide = widened(weight)
        first = _workspace(hidden, weight, options) if kept is None else None
        room = None if first is None else torch.empty_like(first)
        for part in _chunks(len(hidden), options):
            if first is None or room is None:
                assert kept is not None
                logits = probability = kept.pop(0)
            else:
                logits = options.readout(_product(hidden[part], wide, bias, first[: part.stop - part.start]))
                heated, probability = _heat_(logits, options, labels[part]), room[: len(logits)]
                torch.sub(heated, total[part, None], out=probability).exp_()
            gradient = _log_gradient_(probability, labels[part, None], logits, options).mul_(upstream[part, None])
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
    )


def _heat_(logits: Tensor, options: _Options, labels: Tensor) -> Tensor:
    """Tempered logits with -inf at tokens that are excluded or cut away; overwrites ``logits`` except where the slope
    of a cap needs them."""
    if options.temperature == 1.0 and not options.excluded:
        return truncate(logits, options.truncation, labels)
    capped = options.readout.softcap is not None
    heated = logits / options.temperature if capped else logits.div_(options.temperature)
    outside = put(torch.tensor(options.excluded, dtype=torch.int64), logits.device)
    return truncate(heated.index_fill_(-1, outside, -torch.inf), options.truncation, labels)


def _log_gradient_(probability: Tensor, label: Tensor, logits: Tensor, options: _Options) -> Tensor:
    """``d logp / d (layer output)`` [k, V], made of ``probability`` in place."""
    gradient = probability.neg_().scatter_add_(1, label, torch.ones_like(label, dtype=probability.dtype))
    return options.readout.slope_(gradient.div_(options.temperature), logits)


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor | None = None) -> Tensor:
    """``hidden @ weight.T + bias`` in float32, written into ``room`` where the kernel can."""
    logits = multiply(hidden, weight.T, room)
    return logits if bias is None else logits.add_(bias.float())


def widened(weight: Tensor) -> Tensor:
    """The weights as `multiply` takes them: converted once, where it would do so for every chunk."""
    return weight if weight.is_cuda else weight.float()


def multiply(left: Tensor, right: Tensor, room: Tensor | None = None) -> Tensor:
    """Matrix product in float32; half-precision weights on a GPU are not converted but accumulated in float32."""
    if right.is_cuda and right.dtype != torch.float32:
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float(), out=room)
