"""A sequence-classification model (reward model, sentiment, toxicity) as reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.scorers.loading import DTYPES, from_hub, missing_weights

RANGE = "unbounded (a logit)"
NEEDS = ("path: a folder or hub name with safetensors",)


class reward_model:  # noqa: N801 - the name a config uses
    """The model's logit for each conversation of prompt and completion.

    ``layout``: ``chat`` is the tokenizer's chat template over an optional ``system`` message, the prompt and the
    completion, tokenized without adding special tokens a second time; ``pair`` the tokenizer's pair of sequences;
    ``joined`` the prompt directly followed by the completion; ``completion`` the completion alone. ``auto`` is ``chat``
    where the tokenizer has a template, else ``joined``. ``label`` names or numbers the logit of a model with several.

    Sequences over ``max_length`` tokens (or what the model can take) lose their beginning (``truncated`` counts them).
    Batches are right-padded and sorted by length; decoder models read the score at the last token that is not padding,
    found by its number, so padding uses a token that no row of the batch contains (where padding and end token are the
    same, the score would be read one token too early). Scores do not depend on the batch beyond rounding: in float32
    about 1e-6.

    Weights are safetensors only. Code from the hub runs only with ``trust_remote_code: true``. Raises `UserError` where
    the model or a part of it (an untrained score head) is missing, and for an unknown label, layout or dtype.
    """

    def __init__(
        self,
        *,
        path: str,
        device: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        batch_size: int = 16,
        max_length: int = 2048,
        layout: Literal["auto", "chat", "pair", "joined", "completion"] = "auto",
        system: str | None = None,
        label: int | str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"reward_model: dtype={dtype!r} does not exist{did_you_mean(dtype, DTYPES)}")
        self.model, self.tokenizer = _load(path, DTYPES[dtype], trust_remote_code)
        self.model.to(device).eval().requires_grad_(False)
        self.layout = _layout(layout, self.tokenizer, path)
        self.label = _label(label, self.model.config, path)
        self.tokenizer.truncation_side = "left"  # keeps the special tokens and the end of the completion
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", max_length)
        self.max_length = min(max_length, positions, self.tokenizer.model_max_length)
        self.system, self.batch_size, self.device = system, batch_size, device
        self.truncated = 0
        """Conversations that were too long, so far."""

    @torch.no_grad()
    def __call__(self, completions: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """[N] float64 logits."""
        rows = [self._tokens(p, c) for p, c in zip(prompts, completions, strict=True)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        scores = torch.zeros(len(rows), dtype=torch.float64)
        for start in range(0, len(rows), self.batch_size):
            chosen = order[start : start + self.batch_size]
            scores[chosen] = self._forward([rows[index] for index in chosen]).double().cpu()
        return scores

    def _tokens(self, prompt: str, completion: str) -> dict[str, list[int]]:
        """Token numbers of one conversation, and token types where the model has them."""
        if self.layout == "chat":
            messages = [{"role": "system", "content": self.system}] if self.system else []
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            encoded = self._encoded(text, add_special_tokens=False)
        elif self.layout == "pair":
            encoded = self._encoded(prompt, completion)
        else:
            encoded = self._encoded(prompt + completion if self.layout == "joined" else completion)
        row = {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}
        if not row["input_ids"]:  # an empty text of a tokenizer without special tokens
            row = {key: [self._absent([])] for key in row}
        return row

    def _encoded(self, *texts: str, **options: Any) -> Any:
        encoded = self.tokenizer(*texts, **options)
        if len(encoded["input_ids"]) <= self.max_length:
            return encoded
        self.truncated += 1
        return self.tokenizer(*texts, truncation=True, max_length=self.max_length, **options)

    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> Tensor:
        """[n] logits of rows in one batch."""
        lengths = [len(row["input_ids"]) for row in rows]
        padding = self._absent([row["input_ids"] for row in rows])
        batch = {
            key: _padded([row[key] for row in rows], padding if key == "input_ids" else 0).to(self.device)
            for key in rows[0]
        }
        mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
        self.model.config.get_text_config().pad_token_id = padding  # where decoder heads look for the last token
        logits = self.model(**batch, attention_mask=mask.long().to(self.device)).logits
        return logits[:, self.label].float()

    def _absent(self, rows: Sequence[Sequence[int]]) -> int:
        """The padding token, or the first token that occurs in no row where it occurs in one (or there is none)."""
        used = {token for row in rows for token in row}
        own = self.tokenizer.pad_token_id
        if own is not None and own not in used and own < self.model.get_input_embeddings().weight.shape[0]:
            return own
        return next(token for token in range(len(used) + 1) if token not in used)


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """[n, longest] int64, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _load(path: str, dtype: torch.dtype, trust_remote_code: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    def load() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True
        )

    model, report = from_hub(load, repr(path), "reward_model")
    tokenizer = from_hub(
        lambda: AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code), repr(path), "reward_model"
    )
    absent = missing_weights(report)
    if absent:
        raise UserError(
            f"reward_model: {path!r} has no trained weights for {', '.join(absent[:3])}: it is no reward model; "
            "give a model trained for sequence classification"
        )
    return model, tokenizer


def _layout(layout: str, tokenizer: Any, path: str) -> str:
    known = ("auto", "chat", "pair", "joined", "completion")
    if layout not in known:
        raise UserError(f"reward_model: layout={layout!r} does not exist{did_you_mean(layout, known)}")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if layout == "chat" and not has_template:
        raise UserError(f"reward_model: the tokenizer of {path!r} has no chat template; set layout: joined or pair")
    return ("chat" if has_template else "joined") if layout == "auto" else layout


def _label(label: int | str | None, config: Any, path: str) -> int:
    names = {str(name): index for index, name in (config.id2label or {}).items()}
    if label is None and config.num_labels == 1:
        return 0
    if isinstance(label, int) and 0 <= label < config.num_labels:
        return label
    if isinstance(label, str) and label in names:
        return names[label]
    found = "none" if label is None else repr(label)
    raise UserError(
        f"reward_model: {path!r} has {config.num_labels} labels; set label to one of them, found {found}"
        f"{did_you_mean(str(label), names)}"
    )
