"""Conversations in prompt files: lists of messages as OpenAI, TRL, verl and ShareGPT write them, made one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowrl.data.files import parse_json
from flowrl.errors import UserError, did_you_mean
from flowrl.types import Chat

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SHAREGPT = {"human": "user", "gpt": "assistant", "bing": "assistant", "observation": "tool"}
"""Roles of ``{"from": ..., "value": ...}``; the others are called as above."""
TOOLS, OPTIONS = "tools", "chat_template_kwargs"
"""Columns that belong to a conversation, as in TRL."""
SHOWN = ("role", "content")


def parsed_column(value: object, where: str, name: str) -> Any:
    """A nested column, which a table or Arrow file may hold as JSON text. Arrow gives every object all keys of the
    column, the missing ones as None: those are left out."""
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        value = parse_json(value, f"{where}, column {name}".removeprefix("prompts "))
    return _without_nothing(value)


def _without_nothing(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nothing(inner) for key, inner in value.items() if inner is not None}
    return [_without_nothing(inner) for inner in value] if isinstance(value, list) else value


def conversation(messages: Sequence[Any], row: Mapping[str, Any], where: str) -> tuple[str, Chat | None]:
    """``(text, chat)``: what a person reads, and the conversation; None for a single text of the user.

    Raises `UserError` for messages without role or text, unknown roles, content that is not text, or malformed tools.
    """
    said = [_message(message, number, where) for number, message in enumerate(messages, 1)]
    if not any(message["role"] not in ("system", "developer") for message in said):
        raise UserError(f"{where}: the conversation has no message to answer; add one of the user")
    tools, options = _tools(row.get(TOOLS), where), _options(row.get(OPTIONS), where)
    asked = [message for message in said if message["role"] not in ("system", "developer")]
    if len(asked) == 1 and asked[0]["role"] == "user":
        text = asked[0]["content"]
        if not text.strip():
            raise UserError(f"{where}: the user's message should be a text, found {text!r}")
    else:
        text = "\n".join(f"{message['role']}: {message.get('content') or ''}".rstrip() for message in asked)
    if len(said) == 1 and set(said[0]) == set(SHOWN) and said[0]["role"] == "user" and not tools and not options:
        return text, None
    try:
        return text, Chat.of(said, tools, options)
    except TypeError as error:
        raise UserError(f"{where}: the conversation holds what JSON cannot ({error}); remove it") from None


def _message(message: object, number: int, where: str) -> dict[str, Any]:
    here = f"{where}, message {number}"
    if not isinstance(message, Mapping):
        raise UserError(f"{here}: should be an object with 'role' and 'content', found {message!r}")
    given = _without_nothing(message)
    if "from" in given and "role" not in given:
        role = str(given.pop("from"))
        given = {"role": SHAREGPT.get(role, role), "content": given.pop("value", None), **given}
    role = given.get("role")
    if role not in ROLES:
        raise UserError(f"{here}: there is no role {role!r}{did_you_mean(str(role), ROLES)}; use {', '.join(ROLES)}")
    calls = [_call(call, here) for call in given.pop("tool_calls", None) or ()]
    found = {"role": role, **{key: value for key, value in given.items() if key not in SHOWN}}
    if given.get("content") is not None or not calls:
        found["content"] = _content(given.get("content"), here)
    return {**found, "tool_calls": calls} if calls else found


def _content(content: object, here: str) -> str:
    """A text, from one or from parts of ``{"type": "text", "text": ...}``."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise UserError(f"{here}: 'content' should be a text or a list of parts, found {content!r}")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type", part) if isinstance(part, Mapping) else part
            raise UserError(f"{here}: a language model reads text alone, found a part {kind!r}; remove it")
        texts.append(text)
    return "".join(texts)


def _call(call: object, here: str) -> dict[str, Any]:
    """A call of a tool. Its arguments are JSON text in OpenAI's form; chat templates want the object."""
    if not isinstance(call, Mapping):
        raise UserError(f"{here}: an entry of 'tool_calls' should be an object, found {call!r}")
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": _call(inner, here)}
    arguments = call.get("arguments")
    if isinstance(arguments, str) and arguments.strip().startswith("{"):
        return {**call, "arguments": parse_json(arguments, f"{here}, arguments".removeprefix("prompts "))}
    return dict(call)


def _tools(value: object, where: str) -> list[Any]:
    tools = [] if value in (None, "") else parsed_column(value, where, TOOLS)
    if not isinstance(tools, list) or not all(isinstance(tool, str | Mapping) for tool in tools):
        raise UserError(f"{where}: 'tools' should be a list of JSON schemas, found {tools!r}")
    tools = [parsed_column(tool, where, TOOLS) for tool in tools]
    wrong = next((tool for tool in tools if not isinstance(tool, Mapping)), None)
    if wrong is not None:
        raise UserError(f"{where}: a tool should be a JSON schema, found {wrong!r}")
    return tools


def _options(value: object, where: str) -> dict[str, Any]:
    options = {} if value in (None, "") else parsed_column(value, where, OPTIONS)
    if not isinstance(options, Mapping):
        raise UserError(
            f"{where}: {OPTIONS!r} should be an object such as {{'enable_thinking': false}}, found {options!r}"
        )
    return dict(options)
