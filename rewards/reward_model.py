"""A sequence-classification model (reward model, sentiment, toxicity) as reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.scorers.conversations import Conversations, Layout, Row
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
        layout: Layout = "auto",
        system: str | None = None,
        label: int | str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"reward_model: dtype={dtype!r} does not exist{did_you_mean(dtype, DTYPES)}")
        self.model, self.tokenizer = _load(path, DTYPES[dtype], trust_remote_code)
        self.model.to(device).eval().requires_grad_(False)
        self.conversations = Conversations.of(self.model, self.tokenizer, layout, max_length, system, path)
        self.label = _label(label, self.model.config, path)
        self.max_length, self.batch_size, self.device = self.conversations.max_length, batch_size, device
        self.truncated = 0
        """Conversations that were too long, so far."""

    @torch.no_grad()
    def __call__(self, completions: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """[N] float64 logits."""
        found = [self.conversations.row(*each) for each in zip(prompts, completions, strict=True)]
        rows = [row for row, _ in found]
        self.truncated += sum(cut for _, cut in found)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        scores = torch.zeros(len(rows), dtype=torch.float64)
        for start in range(0, len(rows), self.batch_size):
            chosen = order[start : start + self.batch_size]
            scores[chosen] = self._forward([rows[index] for index in chosen]).double().cpu()
        return scores

    def _forward(self, rows: Sequence[Row]) -> Tensor:
        """[n] logits of rows in one batch."""
        batch, padding = self.conversations.batch(rows)
        self.model.config.get_text_config().pad_token_id = padding  # where decoder heads look for the last token
        logits = self.model(**{key: value.to(self.device) for key, value in batch.items()}).logits
        return logits[:, self.label].float()


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
