"""flowrl: reinforcement-learning fine-tuning of generative models."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flowrl.version import __version__

if TYPE_CHECKING:
    from flowrl.evaluation import evaluate as evaluate
    from flowrl.models import load_policy as load_policy
    from flowrl.notebook import LiveCurve as LiveCurve
    from flowrl.notebook import Run as Run
    from flowrl.notebook import train as train
    from flowrl.runtime.callbacks import Callback as Callback
    from flowrl.runtime.callbacks import Stop as Stop

__all__ = ["Callback", "LiveCurve", "Run", "Stop", "__version__", "evaluate", "load_policy", "train"]

_HOMES = {
    "Callback": "flowrl.runtime.callbacks",
    "LiveCurve": "flowrl.notebook",
    "Run": "flowrl.notebook",
    "Stop": "flowrl.runtime.callbacks",
    "evaluate": "flowrl.evaluation",
    "load_policy": "flowrl.models",
    "train": "flowrl.notebook",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `flowrl --help` does not wait for torch and diffusers.
    if name not in _HOMES:
        raise AttributeError(f"module 'flowrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """Python would let the module ``flowrl.train`` take the place of the function ``flowrl.train`` when it is
    imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
