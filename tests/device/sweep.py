"""Every preset: an iteration on the device is the iteration on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from flowrl.composition import preset_names
from flowrl.errors import UserError
from tests.device.iterations import config, distance, first_iteration

TOLERANCE = 1e-4
"""Relative, of metrics and weights after an iteration. Kernels are the CPU's, so 0 is expected; but where the CPU and
a device are given chunks of other sizes, sums are rounded otherwise, and AdamW's first step divides by their square."""
UPDATES = 2


def main(chosen: Sequence[str]) -> int:
    """Print a line for each preset; 1 if one differs."""
    print("| preset | metrics | weights | waits: sampling | waits: an optimiser batch | blocking copies of both |")
    print("|---|---|---|---|---|---|")
    wrong = []
    for preset in chosen or preset_names():
        try:
            host, device = (first_iteration(config(preset, where)) for where in ("cpu", "fakegpu"))
        except (RuntimeError, TypeError, UserError) as error:
            wrong.append(preset)
            print(f"| {preset} | {type(error).__name__}: {str(error)[:200]} | | | | |", flush=True)
            continue
        numbers, weights = (distance(getattr(host, n), getattr(device, n)) for n in ("metrics", "weights"))
        events = device.events
        copies = "/".join(str(events.blocking_copies(phase)) for phase in ("sample", "update"))
        waits = f"{events.waits('sample')} | {events.waits('update') / UPDATES:g} | {copies}"
        print(f"| {preset} | {numbers[0]:.2g} {numbers[1]} | {weights[0]:.2g} | {waits} |", flush=True)
        if max(numbers[0], weights[0]) > TOLERANCE:
            wrong.append(preset)
    print(f"\n{len(wrong)} differ: {', '.join(wrong)}" if wrong else "\nall equal")
    return int(bool(wrong))
