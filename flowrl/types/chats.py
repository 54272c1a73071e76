"""A conversation as a noun: hashable, and the same in every process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Chat:
    """A conversation that a model answers, or whose last message it goes on with where that is the assistant's.

    ``content`` is a JSON object with ``messages`` (``role``, ``content`` and what the chat template knows besides),
    and where there are any ``tools`` (JSON schemas) and ``options`` (arguments of the chat template).
    """

    content: str

    @classmethod
    def of(
        cls,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """From plain data. Raises `TypeError` for what JSON cannot hold."""
        whole = {"messages": list(messages), "tools": list(tools), "options": dict(options or {})}
        return cls(json.dumps({key: value for key, value in whole.items() if value}, ensure_ascii=False))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages; a copy."""
        return json.loads(self.content)["messages"]

    @property
    def tools(self) -> list[dict[str, Any]]:
        """Schemas of the functions that the model may call; a copy."""
        return json.loads(self.content).get("tools", [])

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the chat template, such as Qwen3's ``enable_thinking``; a copy."""
        return json.loads(self.content).get("options", {})

    @property
    def continued(self) -> bool:
        """Whether the last message is the assistant's, which the model then goes on with."""
        return self.messages[-1]["role"] == "assistant"
