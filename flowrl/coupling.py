"""Likelihoods and gradients of whole optimiser batches in the memory of one micro-batch: block by block, of losses that
couple decisions, and of several channels that are combined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.devices import to_host
from flowrl.types import (
    Batch,
    Combination,
    Condition,
    Estimator,
    Likelihood,
    Policy,
    Table,
    iterate_blocks,
)

Block = tuple[Tensor, slice, Likelihood]
"""Rows [n], decisions, and the likelihood of both."""


@dataclass(frozen=True)
class Measure:
    """Asks a policy how likely the decisions of a rollout are."""

    policy: Policy
    estimator: Estimator
    condition: Condition
    micro_batch: int
    """Network rows per forward."""

    def blocks(self, table: Table, index: Tensor, references: Sequence[str]) -> Iterator[Block]:
        """Of ``index`` rows, micro-batch by micro-batch; ``references`` are weight sets to measure distances to."""
        for rows, decisions in iterate_blocks(len(index), table.mask.shape[1], table.rows.unit, self.micro_batch):
            block = index[rows]
            condition = self.condition.take(block)
            cut = table.rows.block(block, decisions)
            yield block, decisions, self.estimator(self.policy, cut, condition, references)

    def whole(self, table: Table, index: Tensor, references: Sequence[str]) -> Likelihood:
        """Of ``index`` rows as [N, D] matrices, without gradient; other rows are 0."""
        with torch.no_grad():
            parts = list(self.blocks(table, index, references))
        return assemble(parts, table.mask.shape)


def assemble(parts: Sequence[Block], shape: torch.Size) -> Likelihood:
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

    First the whole [N, D] likelihood without gradient; then the loss on that matrix, whose derivative with respect to
    every entry is kept; then each micro-batch again with gradient, seeded with its part of the derivative.
    """
    whole = measure.whole(table, index, references)
    leaves = [whole.logp[index], *(value[index] for value in whole.extra.values())]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    live = Likelihood(leaves[0], dict(zip(whole.extra, leaves[1:], strict=True)))
    value = loss(live, table.batch(index, slice(None), weight[index], live))
    slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    where = torch.zeros(len(table.mask), dtype=torch.long)
    where[index] = torch.arange(len(index))
    for block, decisions, again in measure.blocks(table, index, references):
        outputs = [again.logp, *again.extra.values()]
        pairs = [
            (out, scale(slope[where[block]][:, decisions]).to(out))  # only the network computes in float16
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


def combine(
    channels: Sequence[Gradients],
    combination: Combination,
    scale: float,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> Gradients:
    """``sum_c w_c g_c`` with the weights that a combination makes of the inner products ``g_c . g_d``, which are those
    of the whole gradients, over all ranks and without the ``scale`` of the loss."""
    whole = [[None if g is None else sum_over_ranks(g).double() / scale for g in channel] for channel in channels]
    products = torch.stack(to_host([_inner(a, b) for a in whole for b in whole]))
    weights = combination(products.view(len(whole), len(whole)))
    return [_weighted(weights, column) for column in zip(*channels, strict=True)]


def _inner(a: Gradients, b: Gradients) -> Tensor:
    pairs = [(x * y).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack(pairs).sum() if pairs else torch.zeros((), dtype=torch.float64)


def _weighted(weights: Tensor, column: Sequence[Tensor | None]) -> Tensor | None:
    terms = [weight.to(g) * g for weight, g in zip(weights, column, strict=True) if g is not None]
    return torch.stack(terms).sum(dim=0) if terms else None
