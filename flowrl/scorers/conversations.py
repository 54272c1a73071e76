"""What a reward model reads: prompt and completion as one row of tokens, the same whether it is trained or asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean

Layout = Literal["auto", "chat", "pair", "joined", "completion"]
Row = dict[str, list[int]]


@dataclass(frozen=True)
class Conversations:
    """How conversations become tokens.

    ``layout``: ``chat`` is the tokenizer's chat template over an optional ``system`` message, the prompt and the
    completion, tokenized without adding special tokens a second time; ``pair`` the tokenizer's pair of sequences;
    ``joined`` the prompt directly followed by the completion; ``completion`` the completion alone. Made by `of`, which
    also knows ``auto``.
    """

    tokenizer: Any
    layout: Layout
    max_length: int
    """Tokens of a row; a longer one loses its beginning."""
    system: str | None = None
    embedded: int | None = None
    """Tokens that the model has embeddings of; ``None``: all that the tokenizer knows."""

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, layout: Layout, max_length: int, system: str | None, path: str
    ) -> Conversations:
        """Of a model and its tokenizer: ``auto`` is ``chat`` where there is a template, else ``joined``; rows have at
        most what the model can take. Raises `UserError` for a layout that does not exist, or without its template."""
        known = get_args(Layout)
        if layout not in known:
            raise UserError(f"reward_model: layout={layout!r} does not exist{did_you_mean(layout, known)}")
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if layout == "chat" and not has_template:
            raise UserError(f"reward_model: the tokenizer of {path!r} has no chat template; set layout: joined or pair")
        if layout == "auto":
            layout = "chat" if has_template else "joined"
        tokenizer.truncation_side = "left"  # keeps the special tokens and the end of the completion
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", max_length)
        most = min(max_length, positions, tokenizer.model_max_length)
        return cls(tokenizer, layout, most, system, model.get_input_embeddings().weight.shape[0])

    def row(self, prompt: str, completion: str) -> tuple[Row, bool]:
        """Token numbers of one conversation, and token types where the tokenizer has them; whether its beginning was
        cut off."""
        if self.layout == "chat":
            messages = [{"role": "system", "content": self.system}] if self.system else []
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            encoded, cut = self._encoded(text, add_special_tokens=False)
        elif self.layout == "pair":
            encoded, cut = self._encoded(prompt, completion)
        else:
            encoded, cut = self._encoded(prompt + completion if self.layout == "joined" else completion)
        row = {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}
        if not row["input_ids"]:  # an empty text of a tokenizer without special tokens
            row = {key: [self.absent([])] for key in row}
        return row, cut

    def _encoded(self, *texts: str, **options: Any) -> tuple[Any, bool]:
        encoded = self.tokenizer(*texts, **options)
        if len(encoded["input_ids"]) <= self.max_length:
            return encoded, False
        return self.tokenizer(*texts, truncation=True, max_length=self.max_length, **options), True

    def absent(self, rows: Sequence[Sequence[int]]) -> int:
        """The padding token, or the first token that occurs in no row where it occurs in one (or there is none): a
        decoder reads the score in front of the first padding token at the end of a row, found by its number."""
        used = {token for row in rows for token in row}
        own = self.tokenizer.pad_token_id
        if own is not None and own not in used and (self.embedded is None or own < self.embedded):
            return own
        return next(token for token in range(len(used) + 1) if token not in used)

    def batch(self, rows: Sequence[Row]) -> tuple[dict[str, Tensor], int]:
        """``(arguments of the model, the padding token)`` of rows, padded on the right. The model's
        configuration has to know the padding token."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        padding = self.absent([row["input_ids"] for row in rows])
        found = {key: _padded([row[key] for row in rows], padding if key == "input_ids" else 0) for key in rows[0]}
        found["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return found, padding


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """[n, longest] int64, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
