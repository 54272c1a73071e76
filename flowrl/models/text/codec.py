"""From prompts to tokens of a language model and back, by its own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.config import text_config
from flowrl.models.text.end_tokens import end_tokens
from flowrl.types import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

AT_ONCE = 1000
"""Prompts that are tokenised in one call, which is many times quicker than one by one."""
RESERVED = ("add_generation_prompt", "continue_final_message", "tokenize", "return_dict", "conversation", "tools")
"""Arguments of a chat template that are not options."""


@dataclass(frozen=True)
class PromptFormat:
    """How prompts are put to a model: keys of ``model`` in a config."""

    chat: bool
    """Whether a prompt becomes the user's message in the tokenizer's chat template."""
    system: str | None = None
    """Its system message."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template, such as Qwen3's ``enable_thinking``."""
    prefill: str = ""
    """How every answer begins. It stands behind the prompt as it is (in a chat: behind the header of the answer), and
    is not part of the completion. ``continue_final_message`` of transformers gives the same tokens for templates that
    leave an answer as it is; it loses white space at the end where a template trims, and Qwen3's would put an empty
    thought before a prefilled ``<think>``."""


@dataclass(frozen=True)
class TextCodec:
    """From texts to prompts of a language model and back, by its own tokenizer."""

    tokenizer: Any
    prompt_format: PromptFormat
    context: int | None
    """Positions of the model; ``None`` where its config names no limit."""
    max_prompt: int | None
    ends: tuple[int, ...]
    """A completion ends at the first of any of these."""
    pad: int
    hidden: tuple[int, ...] = ()
    """Tokens that no text shows, besides the tokenizer's special ones."""
    keep_special: bool = False
    """Whether texts of completions show special tokens, up to the end."""
    embedded: int | None = None
    """Tokens that the model has embeddings of; a tokenizer may know more."""

    def condition(self, prompts: Sequence[str | Chat]) -> TextCondition:
        """Every unique prompt tokenised once.

        Raises:
            UserError: for a prompt without tokens, one that is longer than allowed or than the context, or a
                conversation that the chat template does not take.
        """
        places: dict[str | Chat, int] = {}
        index = torch.tensor([places.setdefault(prompt, len(places)) for prompt in prompts], dtype=torch.int64)
        rows = self.encode(list(places))
        for prompt, ids in zip(places, rows, strict=True):
            self._check_length(prompt, len(ids))
        return TextCondition.of(rows, index)

    def texts(self, completions: Tensor) -> list[str]:
        """Texts of completions [N, T]: up to the first end token, without special tokens unless they are kept."""
        found, words, ends = [], len(self.tokenizer), set(self.ends)
        for row in completions.tolist():
            stop = next((place for place, token in enumerate(row) if token in ends), len(row))
            # a vocabulary layer may be wider than the tokenizer, for whose further tokens there is no text
            kept = [token for token in row[:stop] if token not in self.hidden and token < words]
            found.append(
                self.tokenizer.decode(
                    kept, skip_special_tokens=not self.keep_special, clean_up_tokenization_spaces=False
                )
            )
        return found

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of answers that somebody wrote, with the end token that the model closes an answer with. Raises
        `UserError` for a text that the tokenizer does not take."""
        rows = []
        for text in texts:
            try:
                ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            except Exception as error:  # as in `_encoded`
                if is_out_of_memory(error):
                    raise
                raise UserError(
                    f"the completion {quoted(text)} cannot be read by the model's tokenizer ({first_line(error)})"
                ) from error
            stop = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
            rows.append([*ids[:stop], ids[stop] if stop < len(ids) else self.ends[0]])
        return rows

    def token_text(self, token: int) -> str:
        """What one token stands for; a part of a sign, which is no text by itself, is shown as the tokenizer shows
        it."""
        return self.tokenizer.decode([token], clean_up_tokenization_spaces=False) if token < len(self.tokenizer) else ""

    # ---------------------------------------------------------------------------------------------------- prompts
    def encode(self, prompts: Sequence[str | Chat]) -> list[list[int]]:
        """Token ids of each prompt, many at a time; raises `UserError` for one that the tokenizer or template does not
        take, or that has no tokens."""
        rows: list[list[int]] = []
        for start in range(0, len(prompts), AT_ONCE):
            rows += self._encoded(prompts[start : start + AT_ONCE])
        empty = next((prompt for prompt, row in zip(prompts, rows, strict=True) if not row), None)
        if empty is not None:
            raise UserError(f"prompt {quoted(empty)} has no tokens; a language model needs something to continue")
        if self.embedded is not None and len(self.tokenizer) > self.embedded:
            for prompt, row in zip(prompts, rows, strict=True):
                self._check_embedded(prompt, row)
        return rows

    def _check_embedded(self, prompt: str | Chat, row: list[int]) -> None:
        token = max(row)
        if self.embedded is not None and token >= self.embedded:
            raise UserError(
                f"prompt {quoted(prompt)} holds the token {self.tokenizer.convert_ids_to_tokens(token)!r} ({token}), of"
                f" which the model has no embedding (it has {self.embedded}); take the tokenizer that it was trained"
                " with, or leave the token out"
            )

    def _encoded(self, prompts: Sequence[str | Chat]) -> list[list[int]]:
        texts = [self.prompt_text(prompt) for prompt in prompts]
        try:
            found = self.tokenizer(texts, add_special_tokens=not self.prompt_format.chat)["input_ids"]
        except Exception as error:  # tokenizers has no narrower one for a text outside its vocabulary
            if is_out_of_memory(error):
                raise
            if len(prompts) > 1:
                return [ids for prompt in prompts for ids in self._encoded([prompt])]
            raise UserError(
                f"prompt {quoted(prompts[0])} cannot be read by the model's tokenizer ({first_line(error)}); it is of"
                " another task or language"
            ) from error
        return [list(ids) for ids in found]

    def prompt_text(self, prompt: str | Chat) -> str:
        """The text that the tokenizer reads: the prompt in its chat template, and how the answer begins."""
        prompt_format = self.prompt_format
        if isinstance(prompt, Chat) and not prompt_format.chat:
            raise UserError(
                f"prompt {quoted(prompt)} is a conversation, which needs a chat template; the tokenizer has none, or"
                " model.chat is false"
            )
        if not prompt_format.chat:
            assert isinstance(prompt, str)
            return prompt + prompt_format.prefill
        messages = prompt.messages if isinstance(prompt, Chat) else [{"role": "user", "content": prompt}]
        continued = messages[-1]["role"] == "assistant"
        if prompt_format.system is not None:
            if messages[0]["role"] in ("system", "developer"):
                raise UserError(
                    f"prompt {quoted(prompt)} has a system message of its own, and model.system is set; remove"
                    " one of them"
                )
            messages.insert(0, {"role": "system", "content": prompt_format.system})
        if continued and prompt_format.prefill:
            raise UserError(
                f"prompt {quoted(prompt)} ends in words of the assistant, and model.prefill is set; remove one of them"
            )
        return self._apply_template(prompt, messages, continued) + prompt_format.prefill

    def _apply_template(self, prompt: str | Chat, messages: list[dict[str, Any]], continued: bool) -> str:
        from jinja2 import TemplateError

        own = (prompt.tools or None, prompt.options) if isinstance(prompt, Chat) else (None, {})
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=own[0],
                add_generation_prompt=not continued,
                continue_final_message=continued,
                tokenize=False,
                **{**self.prompt_format.options, **own[1]},
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"the tokenizer's chat template refuses the prompt {quoted(prompt)}: {first_line(error)}; try"
                " without model.system, or model.chat: false"
            ) from error

    # ------------------------------------------------------------------------------------------------------- room
    def limit(self, completion: int) -> int | None:
        """The longest prompt in tokens before a completion of that many; ``None``: any. Raises `UserError`."""
        if completion < 1:
            raise UserError("a completion needs at least one token, got none; raise the sampler's length")
        room = None if self.context is None else self.context - completion
        if room is not None and room < 1:
            raise UserError(
                f"a completion of {completion} tokens fills the model's context of {self.context}, which leaves no room"
                " for a prompt; lower the sampler's length"
            )
        given = [limit for limit in (room, self.max_prompt) if limit is not None]
        return min(given) if given else None

    def check_room(self, condition: TextCondition, completion: int) -> None:
        """Raise `UserError` for completions of no token, or that do not fit into the context behind the prompts."""
        if completion < 1:
            raise UserError("a completion needs at least one token, got none; raise the sampler's length")
        longest = int(condition.row_lengths.max()) if len(condition) else 0
        if self.context is not None and longest + completion > self.context:
            worst = condition.prompts[condition.index[int(condition.row_lengths.argmax())]][:longest]
            raise UserError(
                f"prompt {quoted(self.tokenizer.decode(worst.tolist()))} has {longest} tokens, which with a completion"
                f" of {completion} is more than the model's context of {self.context}; shorten one of them"
            )

    def check_position(self, position: int) -> None:
        """Raise `UserError` for a token at a position [0, ...) that the model does not have."""
        if self.context is not None and position >= self.context:
            raise UserError(
                f"prompt and completion together reach the model's context of {self.context} tokens; lower the"
                " sampler's length or shorten the prompts"
            )

    def _check_length(self, prompt: str | Chat, count: int) -> None:
        if self.max_prompt is not None and count > self.max_prompt:
            raise UserError(
                f"prompt {quoted(prompt)} has {count} tokens, more than model.max_prompt={self.max_prompt}; shorten it"
                " or raise the limit"
            )
        if self.context is not None and count >= self.context:
            raise UserError(
                f"prompt {quoted(prompt)} has {count} tokens and the model's context is {self.context}, which leaves no"
                " room for a completion; shorten it"
            )


def quoted(prompt: str | Chat) -> str:
    """The beginning of a prompt, in quotes."""
    text = prompt if isinstance(prompt, str) else str(prompt.messages[-1].get("content") or prompt.messages[-1])
    return repr(text if len(text) <= 60 else text[:57] + "...")


def make_codec(
    tokenizer: Any,
    config: PreTrainedConfig,
    *,
    generation: Mapping[str, Any] | None = None,
    chat: bool | None = None,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    prefill: str | None = None,
    max_prompt: int | None = None,
    keep_special_tokens: bool = False,
    mask: int | None = None,
    embedded: int | None = None,
) -> TextCodec:
    """A tokenizer with the options of a config, checked. ``generation`` is the model's generation config, ``embedded``
    the number of its embeddings.

    Raises:
        UserError: for a chat template or system message that the tokenizer cannot take, or a missing end token.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has_template:
        raise UserError("model.chat is true but the tokenizer has no chat template; set model.chat: false")
    use, options = has_template if chat is None else chat, dict(chat_template_kwargs or {})
    for key, value in (("system", system), ("chat_template_kwargs", options or None)):
        if value is not None and not use:
            raise UserError(f"model.{key} needs a chat template, which is off or which the tokenizer lacks; remove it")
    reserved = next((key for key in options if key in RESERVED), None)
    if reserved is not None:
        raise UserError(f"model.chat_template_kwargs: {reserved!r} is set by flowrl; remove it")
    _check_options(tokenizer, options)
    known = len(tokenizer) if embedded is None else embedded
    ends = tuple(t for t in end_tokens(tokenizer, config, generation, options if use else None) if t < known)
    if not ends:
        raise UserError(
            "neither the tokenizer nor the model's config names an end token (eos_token); add one to the tokenizer"
        )
    named: list[int | None] = [tokenizer.pad_token_id, getattr(config, "pad_token_id", None)]
    pads = [pad for pad in named if pad is not None and pad in range(known)]
    context = _context(config)
    if max_prompt is not None and context is not None and max_prompt >= context:
        raise UserError(f"model.max_prompt={max_prompt} leaves no room in the model's context of {context}; lower it")
    hidden = () if mask is None else (mask,)
    prompt_format = PromptFormat(use, system, options, prefill or "")
    pad = pads[0] if pads else ends[-1]
    return TextCodec(tokenizer, prompt_format, context, max_prompt, ends, pad, hidden, keep_special_tokens, embedded)


def _check_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Raise `UserError` for an argument that the chat template never reads: a misspelt one would change nothing."""
    if not options:
        return
    from jinja2 import Environment, meta

    template = tokenizer.get_chat_template()
    names = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
    unread = next((key for key in options if key not in names), None)
    if unread is not None:
        own = sorted(names - {"messages", "tools", "raise_exception", "strftime_now", "add_generation_prompt"})
        raise UserError(
            f"model.chat_template_kwargs: the tokenizer's chat template reads no {unread!r} (it reads"
            f" {', '.join(own) or 'none'}); remove it"
        )


def _context(config: PreTrainedConfig) -> int | None:
    """Positions a model takes, by the names that configs have for it."""
    inner = text_config(config)
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len"):
        value = getattr(inner, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
