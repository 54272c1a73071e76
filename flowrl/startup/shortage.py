"""Whether the machine at hand has the memory that a run is estimated to take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowrl.config import Config
from flowrl.devices import count
from flowrl.runtime.memory_log import room
from flowrl.startup.memory import ON_HOST, Estimate, device_kind, size

NEAR = 0.85
"""Share of the memory above which a run is near its end: what the estimate does not count comes on top."""


@dataclass(frozen=True)
class Shortage:
    """What a machine has too little of."""

    lacking: bool
    """Whether the estimate is above what there is; else it is near it."""
    sentence: str


def shortage(found: Estimate, config: Config) -> Shortage | None:
    """Whether the machine at hand has less memory than a run takes, of the device first; ``None`` where it has enough
    or nobody knows what it has."""
    kind = device_kind(config)
    which = torch.device(config.model.device if ":" in config.model.device else kind)
    places = [("the host", "host", room([]))]
    if kind != "cpu":
        devices = [which] if which.index is not None else [torch.device(kind, i) for i in range(count(kind))]
        places.insert(0, ("the device", "device", room(devices) if devices else None))
    for lacking, share in ((True, 1.0), (False, NEAR)):
        for place, name, there in places:
            phase, needed = max(((p, getattr(v, name)) for p, v in found.phases.items()), key=lambda item: item[1])
            if there is None or needed <= share * there:
                continue
            keys = found.phases[phase].keys if name == "device" or kind == "cpu" else ON_HOST
            than = "which has" if lacking else "which has no more than"
            return Shortage(
                lacking,
                f"the phase {phase} takes about {size(needed)} of {place}, {than} {size(there)} for it; lower: {keys}",
            )
    return None
