"""Write docs/recipes.md from headers and curves: ``python -m tests.recipes``."""

from tests.recipes import CONFIGS, PAGE, render

(CONFIGS.parent / PAGE).write_text(render())
