"""How block-wise masked-diffusion models are called, as by the diffusers pipelines that sample from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.models.text.condition import TextCondition
from flowrl.models.text.layout import Forward, TokenLayout, join


@dataclass(frozen=True)
class Blocks:
    """LLaDA 2: blocks of ``size`` from the prompt's first token on; a block is predicted from all tokens up to its end.
    The last block is filled up with masks that nothing attends to."""

    size: int
    mask: int
    square: bool
    """Whether the attention mask is [n, 1, W, W], added to the attention scores, and hides later blocks, as the code
    released with LLaDA 2 wants it; otherwise it is [n, W], as diffusers' ``LLaDA2Pipeline`` makes it."""
    joint: bool
    """Whether one call may predict all blocks, which is so where later blocks are hidden, be it by the model itself."""

    def __call__(self, condition: TextCondition, tokens: Tensor, targets: Tensor) -> Iterator[Forward]:
        for rows, length in _by_length(condition, targets):
            row, place = targets[rows].nonzero(as_tuple=True)
            block = (length + place) // self.size
            for last in block.max()[None] if self.joint else block.unique():
                here = torch.ones_like(block, dtype=torch.bool) if self.joint else block == last
                chosen, renumbered = row[here].unique(return_inverse=True)
                inputs = self._window(condition, tokens, rows[chosen], length, (int(last) + 1) * self.size)
                columns = length + place[here]
                yield Forward(inputs, renumbered, columns, rows[row[here]] * tokens.shape[1] + place[here])

    def fallbacks(self) -> list[TokenLayout]:
        """One call per block."""
        return [replace(self, joint=False)] if self.joint else []

    def fixed(self, length: int, settled: int) -> int:
        """Columns whose keys and values no later token changes, ``settled`` tokens after a prompt of ``length``."""
        return (length + settled) // self.size * self.size

    def behind(self, call: Forward, columns: int) -> Forward:
        """The same predictions where the keys and values of the first ``columns`` are known."""
        inputs = {name: value[..., columns:] for name, value in call.inputs.items() if name != "attention_mask"}
        mask = call.inputs["attention_mask"]
        inputs["attention_mask"] = mask[:, :, columns:] if self.square else mask
        return replace(call, inputs=inputs, columns=call.columns - columns)

    def _window(
        self, condition: TextCondition, tokens: Tensor, rows: Tensor, length: int, width: int
    ) -> dict[str, Tensor]:
        whole = length + tokens.shape[1]
        ids, _ = join(condition, tokens, rows, torch.full((len(rows),), tokens.shape[1]), self.mask)
        filler = torch.full((len(rows), max(width - whole, 0)), self.mask)
        column = torch.arange(width)
        inside = (column < whole).expand(len(rows), -1)
        block = column // self.size
        hidden = (block > block[:, None]) | ~inside[:, None, None]  # [n, 1, W, W]
        return {
            "input_ids": torch.cat([ids, filler], dim=1)[:, :width],
            "attention_mask": torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
            if self.square
            else inside.long(),
            "position_ids": column.expand(len(rows), -1),
        }


@dataclass(frozen=True)
class Canvases:
    """DiffusionGemma: a causal encoder reads the prompt and the canvases before, a bidirectional decoder predicts one
    canvas of at most ``size`` tokens. Without self-conditioning, as in a first denoising step."""

    size: int

    def __call__(self, condition: TextCondition, tokens: Tensor, targets: Tensor) -> Iterator[Forward]:
        for rows, length in _by_length(condition, targets):
            row, place = targets[rows].nonzero(as_tuple=True)
            canvas = place // self.size
            for number in canvas.unique().tolist():
                here = canvas == number
                chosen, renumbered = row[here].unique(return_inverse=True)
                start, asked = number * self.size, rows[chosen]
                prefix, _ = join(condition, tokens, asked, torch.full((len(asked),), start), 0)
                inputs = {
                    "input_ids": prefix[:, : length + start],
                    "decoder_input_ids": tokens[asked, start : start + self.size],
                }
                flat = rows[row[here]] * tokens.shape[1] + place[here]
                yield Forward(inputs, renumbered, place[here] - start, flat)

    def fallbacks(self) -> list[TokenLayout]:
        """None: rows that share a call are of equal length already."""
        return []

    def fixed(self, length: int, settled: int) -> int:
        """Columns that the encoder need not read again, ``settled`` tokens after a prompt of ``length``."""
        return length + settled // self.size * self.size

    def behind(self, call: Forward, columns: int) -> Forward:
        """The same predictions where the encoder has read the first ``columns``."""
        inputs = dict(call.inputs)
        unread = inputs.pop("input_ids")[:, columns:]
        return replace(call, inputs={"input_ids": unread, **inputs} if unread.shape[1] else inputs)


def _by_length(condition: TextCondition, targets: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Rows with a target, by prompt length."""
    asked = targets.any(dim=1).nonzero()[:, 0]
    lengths = condition.row_lengths[asked]
    for length in lengths.unique().tolist():
        yield asked[lengths == length], length
