"""Likelihoods and gradients of whole optimiser batches in the memory of one micro-batch: block by block, of losses that
couple decisions, and of several channels that are combined. Each process measures the samples that it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.devices import exact, put, to_host, wide
from flowrl.models.sharding import is_sharded, whole_of
from flowrl.runtime.ranks import together
from flowrl.types import (
    Batch,
    Combination,
    Condition,
    Estimator,
    Likelihood,
    Policy,
    Ranks,
    Rows,
    Share,
    Table,
    exchange,
    iterate_blocks,
    token_blocks,
)


class Block(NamedTuple):
    """A part of the matrices [N, D], measured."""

    numbers: Tensor
    """[n] numbers of its samples among all."""
    held: Tensor
    """[n] their rows among those that this process holds."""
    decisions: slice
    probe: Rows
    live: Likelihood

    @property
    def idle(self) -> bool:
        """Whether it stands for nothing: it was measured because another process measures one meanwhile."""
        return not len(self.numbers)

    def pass_nothing(self) -> None:
        """A backward that adds exactly 0 to every gradient."""
        outputs = [out for out in (self.live.logp, *self.live.extra.values()) if out.requires_grad]
        torch.autograd.backward(outputs, [torch.zeros_like(out) for out in outputs])


@dataclass(frozen=True)
class Measure:
    """Asks a policy how likely the decisions of a rollout are."""

    policy: Policy
    estimator: Estimator
    condition: Condition
    """Of the samples that this process holds."""
    share: Share
    """Which ones they are."""
    micro_batch: int
    """Network rows per forward."""
    micro_tokens: int | None = None
    """Tokens per forward instead, padding included."""
    level: bool = False
    """Whether all processes have to run the network equally often, because each holds a part of it."""

    def blocks(self, table: Table, index: Tensor, references: Sequence[str]) -> Iterator[Block]:
        """Of those of the samples ``index`` that are held here, micro-batch by micro-batch; ``references`` are weight
        sets to measure distances to. Where all have to be `level`, `idle` ones follow, until there are as many as on
        the process with the most."""
        numbers, places = self.share.held(index)
        cuts = list(self._cuts(table, places))
        most = self.share.ranks.largest(len(cuts)) if self.level else len(cuts)  # asked first: the others compute then
        for rows, decisions in cuts:
            yield self._block(table, numbers[rows], places[rows], decisions, references)
        first = torch.tensor([0])
        for _ in range(most - len(cuts)):
            _, decisions = next(self._cuts(table, first))
            yield self._block(table, numbers[:0], first, decisions, references)

    def _cuts(self, table: Table, places: Tensor) -> Iterator[tuple[Tensor | slice, slice]]:
        """Which of the rows ``places`` are measured together, and which of their decisions."""
        probe = table.rows if table.held is None else table.held
        lengths = None if self.micro_tokens is None else probe.row_tokens(self.condition)
        if self.micro_tokens is None or lengths is None:
            return iterate_blocks(len(places), table.mask.shape[1], probe.unit, self.micro_batch)
        return token_blocks(lengths[places], table.mask.shape[1], probe.unit, self.micro_tokens)

    def _block(self, table: Table, numbers: Tensor, held: Tensor, decisions: slice, references: Sequence[str]) -> Block:
        probe = (table.rows if table.held is None else table.held).block(held, decisions)
        live = self.estimator(self.policy, probe, self.condition.take(held), references)
        # the small space is computed in float64, where there is float64
        live = Likelihood(exact(live.logp), {name: exact(value) for name, value in live.extra.items()})
        return Block(numbers, held, decisions, probe, live)

    def whole(self, table: Table, index: Tensor, references: Sequence[str]) -> Likelihood:
        """Of the samples ``index`` of all processes as [N, D] matrices, without gradient; other rows are 0."""
        with together(self.share.ranks), torch.no_grad():
            every = list(self.blocks(table, index, references))
            parts = [(block.held, block.decisions, block.live) for block in every if not block.idle]
            here = assemble(parts, torch.Size((len(self.share.here), table.mask.shape[1])))
        return gathered(here, self.share)


def gathered(likelihood: Likelihood, share: Share) -> Likelihood:
    """[N, D] of all samples from that of a share [n, D]. A process that measured nothing knows no names: it has the
    others'."""
    if share.whole:
        return likelihood
    names = next((said for said in exchange(share.ranks, list(likelihood.extra)) if said), [])
    nothing = torch.zeros_like(likelihood.logp)
    extra = {name: share.gather(likelihood.extra.get(name, nothing)) for name in names}
    return Likelihood(share.gather(likelihood.logp), extra)


def assemble(parts: Sequence[tuple[Tensor, slice, Likelihood]], shape: torch.Size) -> Likelihood:
    """Blocks put back into [N, D] matrices in float64 on the host; entries that no block covers are 0."""
    names = list(parts[0][2].extra) if parts else []
    matrices = [torch.zeros(shape, dtype=torch.float64) for _ in ("logp", *names)]
    # all blocks in one copy, so that the host waits once
    found = iter(to_host([value for _, _, live in parts for value in (live.logp, *map(live.need, names))]))
    for block, decisions, _ in parts:
        columns = torch.arange(shape[1])[decisions]
        for matrix in matrices:
            matrix[block[:, None], columns] = next(found).double()
    return Likelihood(matrices[0], dict(zip(names, matrices[1:], strict=True)))


def coupled_gradient(
    measure: Measure,
    table: Table,
    index: Tensor,
    weight: Tensor,
    references: Sequence[str],
    loss: Callable[[Likelihood, Batch], Tensor],
    scale: Callable[[Tensor], Tensor],
) -> None:
    """Exact gradient of a loss that couples rows or decisions, in the memory of one micro-batch.

    First the whole [N, D] likelihood without gradient, of all processes; then, on each of them alike, the loss on that
    matrix, whose derivative with respect to every entry is kept; then each micro-batch again with gradient, seeded with
    its part of the derivative.
    """
    whole = measure.whole(table, index, references)
    leaves = [whole.logp[index], *(value[index] for value in whole.extra.values())]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    live = Likelihood(leaves[0], dict(zip(whole.extra, leaves[1:], strict=True)))
    value = loss(live, table.batch(index, slice(None), weight[index], live))
    slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    where = torch.zeros(len(table.mask), dtype=torch.long)
    where[index] = torch.arange(len(index))
    with together(measure.share.ranks):
        for block in measure.blocks(table, index, references):
            if block.idle:
                block.pass_nothing()
                continue
            outputs = [block.live.logp, *block.live.extra.values()]
            pairs = [  # the loss is in float64, the network may be in float16
                (
                    out,
                    put(scale(slope[where[block.numbers]][:, block.decisions]), out),
                )
                for out, slope in zip(outputs, slopes, strict=True)
                if slope is not None and out.requires_grad
            ]
            torch.autograd.backward([out for out, _ in pairs], [slope for _, slope in pairs])


Gradients = list[Tensor | None]
"""One for each parameter; ``None`` where there is none."""


def take_gradients(parameters: Sequence[torch.nn.Parameter]) -> Gradients:
    """The accumulated gradients, which are removed from the parameters."""
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


BUCKET = 2**25
"""Numbers that are summed over processes at a time, about."""


def summed(gradients: Sequence[Tensor | None], parameters: Sequence[torch.nn.Parameter], ranks: Ranks) -> Gradients:
    """The sums over processes. A parameter has a gradient on all of them or on none: where a process owns no sample
    that moves it, its part is 0. Parts of a tensor that several processes hold together are sums already."""
    if ranks.size == 1:
        return list(gradients)
    some = ranks.total(torch.tensor([gradient is not None for gradient in gradients], dtype=torch.int64)) > 0
    found: Gradients = [
        (torch.zeros_like(parameter) if gradient is None else gradient) if there else None
        for gradient, parameter, there in zip(gradients, parameters, some.tolist(), strict=True)
    ]
    for bucket in _buckets(found):
        parts = [gradient for index in bucket if (gradient := found[index]) is not None]
        flat = ranks.total(torch.cat([part.reshape(-1) for part in parts]))
        for index, part, whole in zip(bucket, parts, flat.split([part.numel() for part in parts]), strict=True):
            found[index] = whole.reshape(part.shape)
    return found


def _buckets(gradients: Gradients) -> Iterator[list[int]]:
    """Neighbours of one type on one device, at most about `BUCKET` numbers together."""
    bucket: list[int] = []
    size, kind = 0, None
    for index, gradient in enumerate(gradients):
        if gradient is None or is_sharded(gradient):
            continue
        if bucket and (size >= BUCKET or kind != (gradient.dtype, gradient.device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(index)
        size, kind = size + gradient.numel(), (gradient.dtype, gradient.device)
    if bucket:
        yield bucket


def add_combined(
    channels: Sequence[Gradients],
    parameters: Sequence[torch.nn.Parameter],
    combination: Combination,
    scale: float,
    ranks: Ranks,
    note: Callable[[Tensor, Tensor], None],
) -> None:
    """Add ``sum_c w_c g_c`` to the gradients of the parameters, with the weights that a combination makes of the inner
    products ``g_c . g_d``, which are those of the whole gradients, over all processes and without the ``scale`` of the
    loss; the sum is of this process'. ``note`` is told weights [C] and inner products [C, C]."""
    sums = [summed(channel, parameters, ranks) for channel in channels]
    whole = [[None if g is None else wide(g) / scale for g in channel] for channel in sums]
    products = torch.stack(to_host([_inner(a, b) for a in whole for b in whole]))
    gram = products.view(len(whole), len(whole))
    weights = combination(gram)
    note(weights, gram)
    for parameter, column in zip(parameters, zip(*channels, strict=True), strict=True):
        gradient = _weighted(weights, column)
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _inner(a: Gradients, b: Gradients) -> Tensor:
    pairs = [(x * y).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack(pairs).sum() if pairs else torch.zeros((), dtype=torch.float64)


def _weighted(weights: Tensor, column: Sequence[Tensor | None]) -> Tensor | None:
    terms = [weight.to(g) * g for weight, g in zip(weights, column, strict=True) if g is not None]
    return torch.stack(terms).sum(dim=0) if terms else None


def clip(parameters: list[torch.nn.Parameter], most: float) -> Tensor:
    """Scale the gradients of a group down to a norm of at most ``most``; returns their norm before."""
    found = [p for p in parameters if p.grad is not None]
    if not any(map(is_sharded, found)):
        return torch.nn.utils.clip_grad_norm_(found, most) if found else torch.zeros(())
    parts = [[p for p in found if is_sharded(p)], [p for p in found if not is_sharded(p)]]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts if part]
    norm = torch.stack([whole_of(norm) for norm in norms]).norm()
    for part in parts:
        torch.nn.utils.clip_grads_with_norm_(part, most, norm)
    return norm
