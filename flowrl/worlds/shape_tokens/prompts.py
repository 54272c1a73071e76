"""The prompts of the shapes world."""

from flowrl.worlds.shapes.prompts import prompts

__all__ = ["prompts"]
