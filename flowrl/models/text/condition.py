"""Prompts as tokens, and the rows that prompts and completions make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.math.random import uniform

CORRUPTION_STREAM = 3_000_000
ANSWER = "42"
"""Stands for an answer where the chat template is asked what comes behind one."""


@dataclass(frozen=True)
class TextCondition:
    """Implements :class:`flowrl.types.TextCondition`: unique prompts, and which one each row has."""

    prompts: Tensor
    """[U, W] int64 on the CPU; what follows a prompt's end is arbitrary."""
    lengths: Tensor  # [U] int64
    index: Tensor  # [N] int64: the prompt of each row

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> TextCondition:
        """The condition of the rows with these indices [n] (repeats allowed)."""
        return replace(self, index=self.index[rows.to(self.index.device)])

    def corrupted(self, seeds: Tensor, share: float, token: int) -> TextCondition:
        """Every prompt token replaced by ``token`` with probability ``share``; row i's draw is a function of
        ``seeds[i]`` alone, so each row gets a prompt of its own."""
        prompts, lengths = self.prompts[self.index].clone(), self.lengths[self.index]
        for row, (length, seed) in enumerate(zip(lengths.tolist(), seeds.cpu(), strict=True)):
            coin = uniform(seed[None], (length,), stream=CORRUPTION_STREAM)[0]
            prompts[row, :length][coin < share] = token
        return TextCondition(prompts, lengths, torch.arange(len(prompts)))

    @property
    def row_lengths(self) -> Tensor:
        """[N] int64: prompt tokens of each row."""
        return self.lengths[self.index]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], index: Tensor | None = None) -> TextCondition:
        """From lists of token ids, one row each unless ``index`` [N] says otherwise."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        prompts = torch.zeros(len(rows), int(lengths.max()) if len(rows) else 0, dtype=torch.int64)
        for place, row in enumerate(rows):
            prompts[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return cls(prompts, lengths, torch.arange(len(rows)) if index is None else index)


@dataclass(frozen=True)
class Tokens:
    """From texts to prompts of a language model and back, by its own tokenizer."""

    tokenizer: Any
    chat: bool
    """Whether a prompt becomes the user's message in the tokenizer's chat template."""
    system: str | None
    context: int | None
    """Positions of the model; ``None`` where its config names no limit."""
    max_prompt: int | None
    end: int
    pad: int
    hidden: tuple[int, ...] = ()
    """Tokens that no text shows, besides the tokenizer's special ones."""

    def condition(self, prompts: Sequence[str]) -> TextCondition:
        """Every unique prompt tokenised once.

        Raises:
            UserError: for a prompt without tokens, or one that is longer than allowed or than the context.
        """
        places: dict[str, int] = {}
        index = torch.tensor([places.setdefault(text, len(places)) for text in prompts], dtype=torch.int64)
        return TextCondition.of([self._encode(text) for text in places], index)

    def texts(self, completions: Tensor) -> list[str]:
        """Texts of completions [N, T]: up to the first end token, without special tokens."""
        found, words = [], len(self.tokenizer)
        for row in completions.tolist():
            kept = row[: row.index(self.end)] if self.end in row else row
            # a vocabulary layer may be wider than the tokenizer, for whose further tokens there is no text
            kept = [token for token in kept if token not in self.hidden and token < words]
            found.append(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return found

    def check_room(self, condition: TextCondition, completion: int) -> None:
        """Raise `UserError` for completions of no token, or that do not fit into the context behind the prompts."""
        if completion < 1:
            raise UserError("a completion needs at least one token, got none; raise the sampler's length")
        longest = int(condition.row_lengths.max()) if len(condition) else 0
        if self.context is not None and longest + completion > self.context:
            worst = condition.prompts[condition.index[int(condition.row_lengths.argmax())]][:longest]
            raise UserError(
                f"prompt {self._short(worst.tolist())} has {longest} tokens, which with a completion of {completion} is"
                f" more than the model's context of {self.context}; shorten one of them"
            )

    def check_position(self, position: int) -> None:
        """Raise `UserError` for a token at a position [0, ...) that the model does not have."""
        if self.context is not None and position >= self.context:
            raise UserError(
                f"prompt and completion together reach the model's context of {self.context} tokens; lower the"
                " sampler's length or shorten the prompts"
            )

    def _encode(self, text: str) -> list[int]:
        shown = repr(text if len(text) <= 60 else text[:57] + "...")
        try:
            ids = self._templated(text) if self.chat else list(self.tokenizer(text)["input_ids"])
        except UserError:
            raise
        except Exception as error:  # tokenizers has no narrower one for a text outside its vocabulary
            raise UserError(
                f"prompt {shown} cannot be read by the model's tokenizer ({error}); it is of another task or language"
            ) from error
        if not ids:
            raise UserError(f"prompt {shown} has no tokens; a language model needs something to continue")
        if self.max_prompt is not None and len(ids) > self.max_prompt:
            raise UserError(
                f"prompt {shown} has {len(ids)} tokens, more than model.max_prompt={self.max_prompt}; shorten it or"
                " raise the limit"
            )
        if self.context is not None and len(ids) >= self.context:
            raise UserError(
                f"prompt {shown} has {len(ids)} tokens and the model's context is {self.context}, which leaves no room"
                " for a completion; shorten it"
            )
        return ids

    def _templated(self, text: str) -> list[int]:
        from jinja2 import TemplateError

        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages.append({"role": "user", "content": text})
        try:
            made = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except TemplateError as error:
            raise UserError(
                f"the tokenizer's chat template refuses the prompt: {error}; try without model.system, or model.chat:"
                " false"
            ) from error
        return list(made["input_ids"])

    def _short(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids)
        return repr(text if len(text) <= 60 else text[:57] + "...")


def open_tokens(
    tokenizer: Any, config: Any, *, chat: bool | None, system: str | None, max_prompt: int | None, mask: int | None
) -> Tokens:
    """A tokenizer with the options of a config, checked.

    Raises:
        UserError: for a chat template or system message that the tokenizer cannot take, or a missing end token.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has_template:
        raise UserError("model.chat is true but the tokenizer has no chat template; set model.chat: false")
    use = has_template if chat is None else chat
    if system is not None and not use:
        raise UserError("model.system needs a chat template, which is off or which the tokenizer lacks; remove it")
    # a masked model may fill up with its end token without closing the turn, so there that one counts
    turn = _turn_end(tokenizer) if use and mask is None else None
    end = _first(turn, tokenizer.eos_token_id, tokenizer.sep_token_id, getattr(config, "eos_token_id", None))
    if end is None:
        raise UserError(
            "neither the tokenizer nor the model's config names an end token (eos_token); add one to the tokenizer"
        )
    pad = _first(tokenizer.pad_token_id, getattr(config, "pad_token_id", None), end)
    context = _context(config)
    if max_prompt is not None and context is not None and max_prompt >= context:
        raise UserError(f"model.max_prompt={max_prompt} leaves no room in the model's context of {context}; lower it")
    hidden = () if mask is None else (mask,)
    return Tokens(tokenizer, use, system, context, max_prompt, end, end if pad is None else pad, hidden)


def _turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template closes an answer with, if any. The end tokens of Gemma's and Phi-3's
    tokenizers are others, which their chat models never say."""
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": ANSWER}, {"role": "assistant", "content": ANSWER}]
    try:
        behind = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(ANSWER)[2]
    except TemplateError:
        return None
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    known = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    return ids[0] if known is not None and known.special else None


def _first(*candidates: Any) -> int | None:
    for value in candidates:
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, int):
            return value
    return None


def _context(config: Any) -> int | None:
    """Positions a model takes, by the names that configs have for it."""
    get_text = getattr(config, "get_text_config", None)
    inner = get_text() if callable(get_text) else config
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len"):
        value = getattr(inner, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
