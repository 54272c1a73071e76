"""Algorithms from configs: a preset, its arguments, and parts that are adjusted, replaced, or a user's own."""

from flowrl.composition.building import build
from flowrl.composition.description import describe
from flowrl.composition.names import own_code
from flowrl.composition.presets import families, find_preset, paper, preset_names, summary
from flowrl.composition.slots import SLOTS, part_name, shipped_parts

__all__ = [
    "SLOTS",
    "build",
    "describe",
    "families",
    "find_preset",
    "own_code",
    "paper",
    "part_name",
    "preset_names",
    "shipped_parts",
    "summary",
]
