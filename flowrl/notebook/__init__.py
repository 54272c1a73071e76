"""What notebooks and scripts use: a run started from Python, with functions as rewards, callbacks and a live curve."""

from flowrl.notebook.live_curve import LiveCurve
from flowrl.notebook.run import Run
from flowrl.notebook.training import train

__all__ = ["LiveCurve", "Run", "train"]
