"""Reading completions while they are filled block by block, without computing what stays the same over again."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.math.tokens import exclude
from flowrl.models.masked.layout import Blocks, Canvases
from flowrl.models.text import parity
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.layout import Forward
from flowrl.models.text.policy import TextPolicy


class PlainReader:
    """Implements :class:`flowrl.types.Reader`: every reading is a full pass. Where attention is bidirectional nothing
    else is exact, because the keys and values of a prefix depend on what follows it."""

    def __init__(self, policy: TextPolicy, condition: TextCondition) -> None:
        self._policy, self._condition = policy, condition

    def __call__(self, rows: Tensor, tokens: Tensor, targets: Tensor, settled: int) -> Tensor:
        return self._policy.logits(self._condition.take(rows), tokens, targets)


@dataclass
class _Prefix:
    rows: Tensor  # [m] rows of the condition
    columns: int
    cache: Any


class PrefixReader:
    """Implements :class:`flowrl.types.Reader` with the keys and values of prompt and finished blocks, for models in
    which these do not depend on later blocks. Rows whose prompts are equally long share a cache."""

    def __init__(self, policy: TextPolicy, condition: TextCondition) -> None:
        assert isinstance(policy.layout, (Blocks, Canvases))
        self._policy, self._condition, self._layout = policy, condition, policy.layout
        self._prefixes: dict[int, _Prefix] = {}

    @torch.no_grad()
    def __call__(self, rows: Tensor, tokens: Tensor, targets: Tensor, settled: int) -> Tensor:
        found, places = [], []
        for call in self._layout(self._condition.take(rows), tokens, targets):
            asked = torch.empty(len(next(iter(call.inputs.values()))), dtype=torch.int64)
            asked[call.rows] = rows[call.place // tokens.shape[1]]
            length = int(self._condition.row_lengths[asked[0]])  # the same for all of the call
            found.append(self._read(call, asked, length, self._layout.fixed(length, settled)))
            places.append(call.place)
        logits = torch.cat(found)[torch.cat(places).argsort().to(self._policy.device)]
        return exclude(logits, self._policy.excluded)

    def _read(self, call: Forward, rows: Tensor, length: int, fixed: int) -> Tensor:
        """[k, V] logits; remembers the first ``fixed`` columns."""
        network, known = self._policy.network, self._prefixes.get(length)
        columns = 0 if known is None else known.columns
        cache = None if known is None else _of_rows(known, rows, network.device)
        cut = self._layout.behind(call, columns)
        reading = network.read(cut.inputs, cut.rows, cut.columns, keep=True, cache=cache)
        surplus = reading.cache.get_seq_length() - fixed
        if columns < fixed and (surplus == 0 or isinstance(self._layout, Blocks)):
            if surplus:
                reading.cache.crop(-surplus)
            self._prefixes[length] = _Prefix(rows, fixed, reading.cache)
        return network.logits(reading)


def _of_rows(prefix: _Prefix, rows: Tensor, device: torch.device) -> Any:
    """The cache for some of its rows; what the network adds to it is not added to ours."""
    cache = copy.copy(prefix.cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    if not rows.equal(prefix.rows):
        cache.batch_select_indices((rows[:, None] == prefix.rows).nonzero()[:, 1].to(device))
    return cache


@torch.no_grad()
def keeps_prefixes(policy: TextPolicy) -> bool:
    """Whether what a `PrefixReader` remembers is what full passes compute, found out on random tokens: the model has
    to return a cache, and nothing in it may depend on a block that is not finished."""
    layout = policy.layout
    if not isinstance(layout, (Blocks, Canvases)):
        return False
    condition, _, _ = parity.make_probe(policy)
    longest, settled = int(condition.row_lengths.max()), layout.size
    length = 2 * settled if policy.codec.context is None else min(2 * settled, policy.codec.context - longest)
    if length <= settled:
        return False
    first, second = parity.random_completions(policy, 2 * len(condition), length).chunk(2)
    second[:, :settled] = first[:, :settled]
    rows, open_places = torch.arange(len(condition)), torch.arange(length) >= settled
    reader = PrefixReader(policy, condition)
    try:
        for tried in (first, second):  # the second reading uses what the first one left
            targets = open_places.expand(tried.shape)
            found, full = reader(rows, tried, targets, settled), policy.logits(condition, tried, targets)
            if not parity.agrees(policy, found, full):
                return False
    except parity.FAILURES as error:
        parity.raise_fault(error)
        return False
    return True
