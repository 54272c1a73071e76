"""What cannot be read off a watched run: the one place where pipelines are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CALLS: Mapping[str, Mapping[str, Any]] = {}
"""Arguments a pipeline class needs to be replayable, below the user's own ``call``."""

REFUSED: Mapping[str, str] = {}
"""Pipeline classes that look replayable and are not, and why."""
