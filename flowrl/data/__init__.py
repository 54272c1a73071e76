"""Prompt sets: reading them, and drawing from them without state."""

from flowrl.data.pictures import with_pictures
from flowrl.data.prompt_format import TEXT_KEYS, PromptFormat
from flowrl.data.prompt_set import PromptSet
from flowrl.data.sources import hub_rows, load_prompts

__all__ = ["TEXT_KEYS", "PromptFormat", "PromptSet", "hub_rows", "load_prompts", "with_pictures"]
