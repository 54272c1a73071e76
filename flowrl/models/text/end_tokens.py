"""Which tokens end a completion: those of the tokenizer, the generation config and the chat template together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flowrl.models.text.config import text_value

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ANSWER = "42"
"""Stands for an answer where the chat template is asked what comes behind one."""
DERIVED = "_from_model_config"
"""Key of a generation config that transformers made from the model's config, whose ids may be defaults of a class."""


def end_tokens(
    tokenizer: Any,
    config: PreTrainedConfig,
    generation: Mapping[str, Any] | None,
    template: Mapping[str, Any] | None,
) -> tuple[int, ...]:
    """All end tokens, none twice; empty where nothing names one.

    A model stops at the first of: the special token that the chat template closes an answer with (``template`` holds
    its arguments; ``None``: no chat), every ``eos_token_id`` of ``generation_config.json``, the tokenizer's
    ``eos_token``. ``eos_token_id`` of the model's config counts where it is a special token of the tokenizer and not
    the unknown, mask, beginning or padding one: many configs hold ids that nobody set. Models without any of these
    end at the tokenizer's ``sep_token``, as BERT does.
    """
    found: dict[int, None] = {}
    generation = generation or {}
    if template is not None:
        found |= dict.fromkeys(_turn_end(tokenizer, template))
    declared = list(_ids(generation.get("eos_token_id")))
    if not generation.get(DERIVED):
        found |= dict.fromkeys(token for token in declared if 0 <= token < len(tokenizer))
        declared = []
    found |= dict.fromkeys(_ids(tokenizer.eos_token_id))
    other = {tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    for token in (*declared, *_ids(text_value(config, "eos_token_id"))):
        if token not in other and _is_special(tokenizer, token):
            found[token] = None
    return tuple(found) or tuple(_ids(tokenizer.sep_token_id)) or tuple(_ids(text_value(config, "eos_token_id")))


def _ids(value: Any) -> Iterator[int]:
    for token in value if isinstance(value, list | tuple) else [value]:
        if isinstance(token, int) and not isinstance(token, bool):
            yield token


def _is_special(tokenizer: Any, token: int) -> bool:
    known = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (known is not None and known.special)


def _turn_end(tokenizer: Any, template: Mapping[str, Any]) -> list[int]:
    """The added token that the chat template closes an answer with, if any. The end tokens of Gemma's and Phi-3's
    tokenizers are others, which their chat models never say."""
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": ANSWER}, {"role": "assistant", "content": ANSWER}]
    try:
        behind = tokenizer.apply_chat_template(messages, tokenize=False, **template).rpartition(ANSWER)[2].lstrip()
    except TemplateError:
        return []
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    known = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    # Gemma's vocabulary has added tokens of newlines, which are no ends
    return [ids[0]] if known is not None and (known.special or known.content.strip()) else []
