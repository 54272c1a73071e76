"""Prompts that are too long, found at the start by tokenising all of them: refused, left out or shortened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from flowrl.errors import UserError
from flowrl.models.text.codec import TextCodec, quoted
from flowrl.types import Chat, Prompt

Overlong = Literal["error", "drop", "truncate"]
TRIES = 8
"""Times that a text is cut again: its tokens may be others once its beginning is gone."""


def fit_prompts(
    codec: TextCodec, prompts: Sequence[Prompt], completion: int, overlong: Overlong = "error"
) -> list[Prompt]:
    """The prompts that fit before a completion of that many tokens; all are tokenised, each unique one once.

    ``error``: the first that does not fit is named; ``drop``: those are left out; ``truncate``: the beginning of their
    longest message (of the text, without a chat) is cut off, so that question and chat template stay whole.

    Raises:
        UserError: for prompts that do not fit or cannot be tokenised, or where none fits.
    """
    unique = list(dict.fromkeys(prompt.model_input for prompt in prompts))
    lengths = dict(zip(unique, map(len, codec.encode(unique)), strict=True))
    limit = codec.limit(completion)
    long = [prompt for prompt in prompts if limit is not None and lengths[prompt.model_input] > limit]
    if not long or limit is None:
        return list(prompts)
    if overlong == "truncate":
        cut = {id(prompt): _shortened(codec, prompt, limit) for prompt in long}
        return [cut.get(id(prompt), prompt) for prompt in prompts]
    worst = max(long, key=lambda prompt: lengths[prompt.model_input])
    beyond = f"more than model.max_prompt={limit}"
    if limit != codec.max_prompt:
        beyond = f"which with a completion of {completion} is more than the model's context of {codec.context}"
    some = f"entry {worst.id + 1}, {quoted(worst.model_input)}, has {lengths[worst.model_input]} tokens, {beyond}"
    if overlong == "error":
        others = f" ({len(long)} of {len(prompts)} prompts do not fit)" if len(prompts) > 1 else ""
        raise UserError(f"prompt {some}{others}; shorten one of them, or set data.overlong: drop or truncate")
    left = [prompt for prompt in prompts if lengths[prompt.model_input] <= limit]
    if not left:
        raise UserError(f"data.overlong: drop leaves no prompt of {len(prompts)}; {some}")
    return left


def _shortened(codec: TextCodec, prompt: Prompt, limit: int) -> Prompt:
    """The prompt with the beginning of its longest message cut off."""
    whole = longest = _longest(prompt)
    for _ in range(TRIES):
        excess = len(codec.encode([prompt.model_input])[0]) - limit
        if excess <= 0:
            return prompt
        shorter = _without(codec, longest, excess)
        if not shorter.strip():
            break
        prompt, longest = _replaced(prompt, longest, shorter), shorter
    raise UserError(
        f"prompt {quoted(whole)} cannot be cut to {limit} tokens: what stands around it alone is longer; raise"
        " model.max_prompt, or lower the sampler's length"
    )


def _longest(prompt: Prompt) -> str:
    if prompt.chat is None:
        return prompt.text
    messages = [m for m in prompt.chat.messages if m["role"] not in ("system", "developer")]
    return max((m.get("content") or "" for m in messages), key=len)


def _without(codec: TextCodec, words: str, count: int) -> str:
    """``words`` without their first ``count`` tokens."""
    if codec.tokenizer.is_fast:
        spans = codec.tokenizer(words, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return words[spans[count][0] :] if count < len(spans) else ""
    ids = codec.tokenizer(words, add_special_tokens=False)["input_ids"]
    return codec.tokenizer.decode(ids[count:])


def _replaced(prompt: Prompt, old: str, new: str) -> Prompt:
    if prompt.chat is None:
        return replace(prompt, text=new)
    messages = [{**m, "content": new} if m.get("content") == old else m for m in prompt.chat.messages]
    chat = Chat.of(messages, prompt.chat.tools, prompt.chat.options)
    return replace(prompt, text=prompt.text.replace(old, new), chat=chat)
