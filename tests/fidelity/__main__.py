"""Write docs/fidelity.md from the registered tests: ``python -m tests.fidelity``."""

from pathlib import Path

from tests.fidelity import PAGE, render

(Path(__file__).parents[2] / PAGE).write_text(render())
