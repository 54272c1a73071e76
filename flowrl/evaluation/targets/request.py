"""What the user asked for beside the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowrl.evaluation.decoding import Decoding
from flowrl.evaluation.targets.export_settings import ExportSettings
from flowrl.types import Sampler

Samplers = Mapping[str, Sampler]
"""By the label of the decoding (see ``decoding.grid``); none for images that exist."""


@dataclass(frozen=True)
class Request:
    """What the user asked for beside the target; None is "as the target has it"."""

    checkpoint: str = "best"
    decodings: Mapping[str, Decoding] = field(default_factory=lambda: {"": Decoding()})
    call: Mapping[str, Any] | None = None
    """Arguments of the pipeline's call, such as height."""
    size: int | None = None
    """Pixels per side that a suite's protocol asks for, where neither ``call`` nor the target's own files say more."""
    base: bool = True
    """Whether the model before training is a variant too."""
    family: str | None = None
    """Which base model of a world that has several."""
    device: str = "auto"
    """Of a model that is not a run's."""
    model: str | None = None
    """What a LoRA folder adapts, where it does not say."""
    export: ExportSettings | None = None
    """What the target's own files say of the run it came from."""
