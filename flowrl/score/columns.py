"""What a prompt's row holds beside its text, as rewards of other frameworks expect it: messages, nested answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flowrl.types import Prompt, Samples

NESTED = ("extra_info", "metadata", "answer", "ground_truth", "reward_model")
"""Columns that may hold others, the later before the earlier: verl's ``reward_model: {style, ground_truth}`` and
``extra_info``, and an answer that is an object, such as TinyZero's ``ground_truth: {target, numbers}``."""
PARSED = 100_000
"""Characters of a column that is read as JSON."""

Message = dict[str, Any]


def flatten_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A row's columns, and what lies inside those of `NESTED` where no column has that name. ``answer`` may also be
    called ``ground_truth``, as in verl. JSON texts count as what they hold."""
    found: dict[str, Any] = {}
    for key in NESTED:
        inner = _object(columns.get(key))
        found |= {**inner, **_object(inner.get("ground_truth"))}
    truth = {**found, **columns}.get("ground_truth")
    if truth is not None and not _object(truth):
        found["answer"] = truth
    return {**found, **columns}


def _object(value: object) -> Mapping[str, Any]:
    if isinstance(value, str) and value.lstrip().startswith("{") and len(value) <= PARSED:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def columns_of(samples: Samples) -> dict[str, list[Any]]:
    """The prompts' other fields as lists of N (`flatten_columns`); None where a prompt does not have one. What a data
    set or an environment says of the samples is the column ``feedback``: numbers, or a list of them for each event."""
    rows = [flatten_columns(prompt.columns) for prompt in samples.prompts]
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row.get(name) for row in rows] for name in names}
    return found if samples.feedback is None else {**found, "feedback": samples.feedback.tolist()}


def prompt_messages(prompt: Prompt) -> list[Message]:
    """The messages that the model answered."""
    return [{"role": "user", "content": prompt.text}] if prompt.chat is None else prompt.chat.messages


def as_messages(samples: Samples) -> dict[str, list[list[Message]]]:
    """``prompts`` and ``completions`` in TRL's conversational form: N lists of messages each. What the model went on
    with (a prefilled answer) belongs to the completion, as in TRL."""
    prompts, completions = [], []
    for prompt, completion in zip(samples.prompts, samples.completions or (), strict=True):
        messages, begun = prompt_messages(prompt), ""
        if messages[-1]["role"] == "assistant":
            begun = str(messages.pop().get("content") or "")
        prompts.append(messages)
        completions.append([{"role": "assistant", "content": begun + completion}])
    return {"prompts": prompts, "completions": completions}


def whole_conversations(samples: Samples) -> list[list[Message]]:
    """[N] whole conversations, the answer last: what a reward with a parameter ``messages`` gets."""
    parts = as_messages(samples)
    return [[*prompt, *answer] for prompt, answer in zip(parts["prompts"], parts["completions"], strict=True)]
