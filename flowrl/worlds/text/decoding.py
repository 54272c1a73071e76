"""Plain decoding of the text worlds' models, to measure a base without the rest of flowrl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

Order = Literal["random", "confident"]


@torch.no_grad()
def unmask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    length: int,
    *,
    steps: int,
    order: Order,
    temperature: float,
    seed: int,
    batch: int = 512,
) -> list[str]:
    """Completions by a masked model from `length` masks, equally many tokens per step; temperature 0 takes the mode.

    `confident` keeps the sampled tokens of highest probability, `random` any. Reading ends at the first <eos>.
    """
    generator = torch.Generator().manual_seed(seed)
    mask: Any = tokenizer.mask_token_id
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        prompt = tokenizer(list(prompts[start : start + batch]), return_tensors="pt", padding=True)["input_ids"]
        canvas = torch.full((len(prompt), length), mask)
        for step in range(steps):
            logits = model(input_ids=torch.cat([prompt, canvas], 1)).logits[:, -length:].float()
            logits[..., [mask, tokenizer.pad_token_id]] = float("-inf")
            tokens, sureness = _draw(logits, temperature, generator)
            open_ = canvas == mask
            rank = sureness if order == "confident" else torch.rand(canvas.shape, generator=generator)
            rank = rank.masked_fill(~open_, -1).argsort(1, descending=True).argsort(1)
            now = length * (step + 1) // steps - length * step // steps
            canvas = torch.where(open_ & (rank < now), tokens, canvas)
        texts += _texts(canvas, tokenizer)
    return texts


@torch.no_grad()
def continue_(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    length: int,
    *,
    temperature: float,
    seed: int,
    batch: int = 512,
) -> list[str]:
    """Completions by a causal model's own `generate`, at most `length` tokens; temperature 0 is greedy."""
    texts: list[str] = []
    drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch):
            inputs = tokenizer(list(prompts[start : start + batch]), return_tensors="pt", padding=True)
            options = drawn if temperature else {"do_sample": False}
            made = model.generate(**inputs, max_new_tokens=length, **options)
            texts += _texts(made[:, inputs["input_ids"].shape[1] :], tokenizer)
    return texts


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(tokens, their probabilities), both [N, L], of logits [N, L, V]."""
    probabilities = (logits / temperature if temperature else logits).softmax(-1)
    if temperature:
        tokens = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(logits.shape[:2])
    else:
        tokens = logits.argmax(-1)
    return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]


def _texts(ids: Tensor, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    ended = (ids == torch.tensor(tokenizer.eos_token_id)).cumsum(1) > 0
    return [str(tokenizer.decode(row[~end], skip_special_tokens=True)) for row, end in zip(ids, ended, strict=True)]
