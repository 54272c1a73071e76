"""What the image worlds share: scenes of flat figures, their renderer and detection, and how their bases are made."""

from __future__ import annotations

from typing import Any

CALL: dict[str, Any] = {"max_sequence_length": 1, "guidance_scale": 1.0}
"""Arguments of the pipeline's call: one token of the mute third encoder (default 256), and no guidance (default 7)."""
