"""Autoregressive decoding, with the model's own cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.tokens import exclude
from flowrl.models.causal.caches import SelectMethod, select_rows
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.known_masks import known
from flowrl.models.text.layout import join_left
from flowrl.models.text.policy import TextPolicy


class CachedDecoder:
    """Implements :class:`flowrl.types.Decoder`: one batch, or one per prompt length where a model cannot be padded."""

    def __init__(
        self, policy: TextPolicy, condition: TextCondition, *, padded: bool, select_method: SelectMethod
    ) -> None:
        lengths = condition.row_lengths
        groups = [lengths >= 0] if padded else [lengths == n for n in lengths.unique()]
        self._rows = [group.nonzero()[:, 0] for group in groups]
        self._batches = [_Batch(policy, condition.take(rows), select_method) for rows in self._rows]
        self._where: Sequence[Tensor | None] = ()
        """On the device, the rows of every batch; ``None`` for all of them in order."""
        self._gather()

    def push(self, tokens: Tensor) -> None:
        """Append one token [n] to every row, and compute the next logits."""
        for rows, batch in zip(self._where, self._batches, strict=True):
            batch.push(tokens if rows is None else tokens[rows])
        self._gather()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [m] only (indices into the present ones)."""
        rows = rows.cpu()
        kept_rows, kept = [], []
        for mine, batch in zip(self._rows, self._batches, strict=True):
            where = (rows[:, None] == mine).nonzero()  # (new place, place in the batch)
            if len(where):
                batch.keep(where[:, 1])
                kept_rows.append(where[:, 0])
                kept.append(batch)
        self._rows, self._batches = kept_rows, kept
        self._gather()

    def _gather(self) -> None:
        if len(self._batches) == 1 and bool((self._rows[0].diff() > 0).all()):
            self.logits, self._where = self._batches[0].logits, [None]
            return
        order = torch.cat(self._rows).argsort()
        logits = torch.cat([batch.logits for batch in self._batches])
        self.logits = logits[put(order, logits.device)]
        self._where = [put(rows, logits.device) for rows in self._rows]


class _Batch:
    """Rows that are decoded together: padded on the left, with an attention mask only where that is needed."""

    def __init__(self, policy: TextPolicy, condition: TextCondition, select_method: SelectMethod) -> None:
        from flowrl.models.causal.growing import grow  # transformers: only once a model of it is loaded

        self._policy, self._network = policy, policy.network
        self._select_method: SelectMethod = select_method
        used, expand = condition.index.unique(return_inverse=True)
        ids, inside = join_left(condition.prompts[used], condition.lengths[used], policy.pad_token)
        self._inside = None if bool(inside.all()) else put(inside, policy.device)
        self._width, self._lengths = ids.shape[1], condition.lengths[used]
        position = (torch.arange(self._width) - (self._width - self._lengths[:, None])).clamp(min=0)
        self._cache: Any = None
        self._run(ids, position)
        grow(self._cache)
        if len(expand) != len(used) or bool((expand.diff() != 1).any()):
            self.keep(expand)

    @torch.no_grad()
    def push(self, tokens: Tensor) -> None:
        """As `CachedDecoder.push`."""
        position = self._lengths
        self._policy.codec.check_position(int(position.max()))
        self._lengths, self._width = self._lengths + 1, self._width + 1
        if self._inside is not None:
            self._inside = torch.nn.functional.pad(self._inside, (0, 1), value=True)
        with known(padded=bool((self._lengths < self._width).any())):
            self._run(tokens[:, None], position[:, None])

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """As `CachedDecoder.keep`."""
        there = put(rows, self.logits.device)
        self._cache = select_rows(self._cache, there, self._select_method)
        self.logits = self.logits[there]
        self._lengths = self._lengths[rows]
        self._inside = None if self._inside is None else self._inside[there]

    @torch.no_grad()
    def _run(self, ids: Tensor, position: Tensor) -> None:
        network = self._network
        inputs = {"input_ids": ids}
        if "position_ids" in network.takes and self._inside is not None:
            inputs["position_ids"] = position
        if self._inside is not None:
            inputs["attention_mask"] = self._inside.long()
        rows = torch.arange(len(ids), device=network.device)
        reading = network.read(inputs, rows, torch.full_like(rows, ids.shape[1] - 1), keep=True, cache=self._cache)
        if reading.cache is None:
            raise NotImplementedError(f"{network.name} returns no cache")
        self._cache = reading.cache
        self.logits = exclude(network.logits(reading), self._policy.excluded)


class RecomputingDecoder:
    """Implements :class:`flowrl.types.Decoder` for models without a cache of keys and values: slow, but right."""

    def __init__(self, policy: TextPolicy, condition: TextCondition) -> None:
        self._policy, self._condition = policy, condition
        self._tokens = torch.zeros(len(condition), 1, dtype=torch.int64)  # the last column is yet to come
        self._run()

    def push(self, tokens: Tensor) -> None:
        """Append one token [n] to every row, and compute the next logits."""
        self._tokens[:, -1] = tokens.cpu()
        self._tokens = torch.nn.functional.pad(self._tokens, (0, 1))
        self._run()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [m] only (indices into the present ones)."""
        self._condition, self._tokens = self._condition.take(rows), self._tokens[rows.cpu()]
        self.logits = self.logits[rows.to(self.logits.device)]

    @torch.no_grad()
    def _run(self) -> None:
        targets = torch.zeros_like(self._tokens, dtype=torch.bool)
        targets[:, -1] = True
        self.logits = self._policy.logits(self._condition, self._tokens, targets)


def decoding_remarks(name: str, way: str, length: int) -> list[str]:
    """What decoding costs where it is not the quickest: one sentence, or none."""
    if way == "by length":
        return [f"{name} is not decoded with padding: prompts of unequal length are sampled in separate batches"]
    if way == "recomputed":
        return [
            f"{name} has no cache that flowrl can use: every token is computed from the whole sequence, so a completion"
            f" of {length} tokens costs about {length // 2} times what one forward over it does; sampling will be slow"
        ]
    return []
