"""Pre-training of the text worlds' tiny language models, masked (LLaDA) and causal, on (prompt, completion) pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from flowrl.worlds.text.tokenizer import build_tokenizer

Pair = tuple[str, str]
"""Prompt and completion."""
IGNORED = -100
INITIAL = 0.1
"""Standard deviation of initial weights. The usual 0.02 is meant for widths near 768; here it leaves attention uniform
and nothing is learned in the first minutes."""


@dataclass(frozen=True)
class Shape:
    """Size of a network, and the fixed lengths in characters of its prompts and completions."""

    prompt: int
    completion: int
    width: int = 96
    layers: int = 4
    heads: int = 4


@dataclass(frozen=True)
class Recipe:
    """One training run. Duration counts CPU seconds of this process, so a busy machine changes nothing."""

    seconds: float
    batch_size: int = 32
    lr: float = 2e-3
    warmup: int = 200
    decay_from: float = 0.5  # share of the run after which the rate falls linearly to 2 %
    ema: float = 0.998
    seed: int = 0


def build(family: str, characters: str, shape: Shape, seed: int) -> tuple[Any, PreTrainedTokenizerFast]:
    """An untrained model of a family, `masked` or `causal`, and its tokenizer. No dropout: a likelihood is a number."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(characters, masked=family == "masked")
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "initializer_range": INITIAL,
    }
    if family == "causal":
        length = shape.prompt + shape.completion + 1
        config = LlamaConfig(**sizes, intermediate_size=3 * shape.width, max_position_embeddings=2 * length)
        return LlamaForCausalLM(config), tokenizer
    config = BertConfig(
        **sizes,
        intermediate_size=3 * shape.width,
        max_position_embeddings=shape.prompt + shape.completion,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.mask_token_id = tokenizer.mask_token_id
    return BertForMaskedLM(config), tokenizer


def encode(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerFast, shape: Shape) -> Tensor:
    """[N, prompt + completion] ids for a masked model, the rest of the canvas filled with <eos>; for a causal one
    [N, prompt + completion + 1], one <eos> and then <pad>. Raises ValueError if a text has another length."""
    ids, eos, pad = tokenizer.get_vocab(), tokenizer.eos_token_id, tokenizer.pad_token_id
    masked = tokenizer.mask_token is not None
    rows = []
    for prompt, completion in pairs:
        spare = shape.completion - len(completion)
        if len(prompt) != shape.prompt or spare < 0:
            raise ValueError(f"{prompt + completion!r} does not fit {shape.prompt} + {shape.completion} characters")
        rest = [eos] * spare if masked else [eos] + [pad] * spare
        rows.append([ids[character] for character in prompt + completion] + rest)
    return torch.tensor(rows)


def masked_loss(model: PreTrainedModel, ids: Tensor, prompt: int, mask: int, generator: torch.Generator) -> Tensor:
    """LLaDA's objective with an exact number of masks: k uniform in 1..L, the mean cross-entropy over k masked tokens
    (arXiv:2502.09992; the same bound as with 1/t weights, with less variance)."""
    length = ids.shape[1] - prompt
    count = torch.randint(1, length + 1, (len(ids), 1), generator=generator)
    order = torch.rand(len(ids), length, generator=generator).argsort(1).argsort(1)
    hidden = F.pad(order < count, (prompt, 0))
    logits = model(input_ids=ids.masked_fill(hidden, mask)).logits
    losses = F.cross_entropy(logits[hidden], ids[hidden], reduction="none")
    weights = (1 / count).expand(-1, length)[hidden[:, prompt:]]
    return (losses * weights).sum() / len(ids)


def causal_loss(model: PreTrainedModel, ids: Tensor, prompt: int, pad: int) -> Tensor:
    """Cross-entropy of the completion and its <eos>, mean over tokens."""
    logits = model(input_ids=ids).logits[:, prompt - 1 : -1]
    targets = ids[:, prompt:].masked_fill(ids[:, prompt:] == pad, IGNORED)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    shape: Shape,
    stream: Iterator[Sequence[Pair]],
    recipe: Recipe,
    log: Callable[[dict[str, float]], None] = lambda row: None,
) -> None:
    """Trains in place and leaves the averaged weights. Also the control "as much compute spent on more pre-training".

    `stream` yields batches of pairs; `log` gets the step, the share done, the running loss and the pairs seen.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(recipe.seed)
    start, step, running, done, seen = time.process_time(), 0, 0.0, 0.0, 0
    model.train()
    while done < 1:
        done = (time.process_time() - start) / recipe.seconds
        falling = min(1.0, max(0.02, (1 - done) / max(1e-3, 1 - recipe.decay_from)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, (step + 1) / recipe.warmup) * falling
        ids = encode(next(stream), tokenizer, shape)
        if tokenizer.mask_token is None:
            loss = causal_loss(model, ids, shape.prompt, _id(tokenizer.pad_token_id))
        else:
            loss = masked_loss(model, ids, shape.prompt, _id(tokenizer.mask_token_id), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + len(ids)
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(recipe.ema, step / (step + 10)))
        running += (loss.item() - running) * max(0.005, 1 / step)
        if step % 500 == 0:
            log({"step": step, "done": done, "loss": running, "pairs": seen})
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)
    model.eval()


def _id(token: Any) -> int:
    return int(token)
