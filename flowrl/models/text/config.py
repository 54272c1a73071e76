"""Values of a transformers configuration, which models of several kinds of input keep in a part for text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def text_config(config: PreTrainedConfig) -> Any:
    """The part about text; the whole of it where there are no parts, and of configurations of models' own code."""
    part = getattr(config, "get_text_config", None)
    return part() if callable(part) else config


def text_value(config: PreTrainedConfig, name: str) -> Any:
    """A value of the configuration, or of its part about text; ``None`` where neither has it."""
    own = getattr(config, name, None)
    return getattr(text_config(config), name, None) if own is None else own
