"""Benchmarks that say how samples are made: what they say, and where an evaluation was not so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowrl.errors import UserError
from flowrl.evaluation.suite import SamplingProtocol
from flowrl.evaluation.suites import entries
from flowrl.evaluation.target import Target


def find_protocol(suites: Sequence[str]) -> SamplingProtocol | None:
    """The protocol of these suites, if any has one. Names that are none are left to who looks suites up."""
    return next((entries()[name].protocol for name in suites if name in entries() and entries()[name].protocol), None)


def filled(
    protocol: SamplingProtocol | None,
    steps: int | Sequence[int] | None,
    guidance: float | None,
    samples: int | None,
) -> tuple[int | Sequence[int] | None, float | None, int | None]:
    """Steps, guidance and samples per prompt as the user says, else as the protocol says."""
    if protocol is None:
        return steps, guidance, samples
    return steps or protocol.steps, protocol.guidance if guidance is None else guidance, samples or protocol.samples


def check_alone(suites: Sequence[str], target: Target) -> None:
    """Raise `UserError` for suites whose samples would be made differently; images that exist are made already."""
    known = [name for name in suites if name in entries()]
    strict = [name for name in known if entries()[name].protocol]
    others = [name for name in known if not entries()[name].protocol]
    if strict and others and target.folder is None:
        raise UserError(
            f"--suite: the samples of {strict[0]} are made by its own protocol; evaluate {', '.join(others)} apart, or "
            "the images that were made"
        )


def departures(protocol: SamplingProtocol, sampling: dict[str, Any], samples: int, resolution: str) -> list[str]:
    """What was not as the protocol says, such as ``steps 28 (40)``; ``sampling`` are the facts of the sampler, empty
    for images that were made elsewhere."""
    found = {"resolution": resolution, "images per prompt": samples, **sampling}
    wanted = {
        "resolution": f"{protocol.size}x{protocol.size}",
        "images per prompt": protocol.samples,
        "steps": protocol.steps,
        "guidance": protocol.guidance,
    }
    if found.get("guidance") is None:  # it is an argument of the pipeline's call, as was asked for
        found["guidance"] = protocol.guidance
    out = [f"{name} {found[name]} ({value})" for name, value in wanted.items() if found.get(name, value) != value]
    return out if sampling else [*out, "steps, guidance and noise of images made elsewhere are not known"]
