"""What packing completions into one network row could gain over micro-batches of similar length:
`python -m benchmarks.packing`.

A Llama of 4 layers of width 128, completions with lengths exponential of mean 300, cut at 1024, as supervised data has
them. The calls are those that `flowrl.coupling` and `flowrl.models.text.layout` make; each is a forward and a backward,
in CPU seconds. Packed rows hold several completions with positions that start anew and a block-diagonal mask.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from flowrl.models.text.layout import length_groups
from flowrl.types import token_blocks

COUNT, MEAN, LONGEST, BUDGET, ROUNDS = 48, 300.0, 1024, 4096, 1
VOCABULARY = 256

Call = dict[str, Tensor]


def completions() -> list[Tensor]:
    """Random tokens of ragged lengths."""
    draw = torch.Generator().manual_seed(0)
    lengths = (-MEAN * torch.rand(COUNT, generator=draw).log()).long().clamp(8, LONGEST)
    return [torch.randint(VOCABULARY, (int(length),), generator=draw) for length in lengths]


def padded(rows: list[Tensor]) -> Call:
    """One call of rows with padding behind them, which an autoregressive model need not be told of."""
    return {"input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}


def as_they_come(rows: list[Tensor]) -> Iterator[Call]:
    """Eight rows at a time."""
    for start in range(0, len(rows), 8):
        yield padded(rows[start : start + 8])


def in_length_groups(rows: list[Tensor]) -> Iterator[Call]:
    """Eight at a time, each eight in the groups that flowrl cuts them into (``train.micro_batch``)."""
    for start in range(0, len(rows), 8):
        some = rows[start : start + 8]
        for group in length_groups(torch.tensor([len(row) for row in some])):
            yield padded([some[index] for index in group.tolist()])


def in_token_budgets(rows: list[Tensor]) -> Iterator[Call]:
    """``train.micro_tokens``."""
    for index, _ in token_blocks(torch.tensor([len(row) for row in rows]), 1, 1, BUDGET):
        some = [rows[row] for row in index.tolist()]
        for group in length_groups(torch.tensor([len(row) for row in some])):
            yield padded([some[row] for row in group.tolist()])


def packed(rows: list[Tensor], width: int) -> Iterator[Call]:
    """Rows of at most ``width`` tokens, the longest completions first into the fullest row that has room."""
    bins: list[list[Tensor]] = []
    for row in sorted(rows, key=len, reverse=True):
        fitting = [each for each in bins if sum(map(len, each)) + len(row) <= width]
        if fitting:
            max(fitting, key=lambda each: sum(map(len, each))).append(row)
        else:
            bins.append([row])
    for some in bins:
        total, number = sum(map(len, some)), torch.arange(len(some)).repeat_interleave(torch.tensor([*map(len, some)]))
        place = torch.cat([torch.arange(len(row)) for row in some])
        mask = (number[:, None] == number[None]) & torch.ones(total, total, dtype=torch.bool).tril()
        yield {
            "input_ids": torch.cat(some)[None],
            "position_ids": place[None],
            "attention_mask": torch.zeros(1, 1, total, total).masked_fill(~mask, -torch.inf),
        }


def main() -> None:
    """Prints a line for each way: padding as a share of the tokens, calls, and tokens a CPU second."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=BUDGET, **shape))
    rows = completions()
    tokens = sum(map(len, rows))
    with torch.no_grad():  # that a packed row says what its completions say alone
        two = sorted(rows[:2], key=len, reverse=True)
        alone = torch.cat([model(row[None]).logits[0] for row in two])
        together = model(**next(packed(two, 2 * LONGEST))).logits[0]
        print(json.dumps({"packed against alone": float((alone - together).abs().max())}))
    ways: dict[str, Callable[[], Iterator[Call]]] = {
        "8 rows as they come": lambda: as_they_come(rows),
        "8 rows in length groups (train.micro_batch)": lambda: in_length_groups(rows),
        f"{BUDGET} tokens (train.micro_tokens)": lambda: in_token_budgets(rows),
        "packed to 1024": lambda: packed(rows, LONGEST),
        f"packed to {BUDGET}": lambda: packed(rows, BUDGET),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, calls in ways.items():
            start = time.process_time()
            for call in calls():
                model(**call).logits.logsumexp(-1).mean().backward()
            seconds[name].append(time.process_time() - start)
            model.zero_grad()
    for name, calls in ways.items():
        sizes = [call["input_ids"].numel() for call in calls()]
        line = {"padding": round(sum(sizes) / tokens - 1, 3), "calls": len(sizes)}
        print(json.dumps({"way": name, **line, "tokens/s": round(tokens / statistics.median(seconds[name]))}))


if __name__ == "__main__":
    main()
