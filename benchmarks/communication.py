"""What processes send each other in an iteration, on paper: bytes by phase for 8 and 64 GPUs.

    python -m benchmarks.communication

Nothing is measured here. Bytes follow from what `flowrl.rounds`, `flowrl.step` and `flowrl.runtime.ranks` exchange;
every assumption about models, links and kernels is a named number below. Bytes are those that one GPU sends: a ring
over n processes sends ``(n - 1) / n`` of the whole for a gather and twice that for a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

NODE = 8
"""GPUs of a node."""
NVLINK = 300e9
"""Bytes a second that a GPU sends within a node: two thirds of the 450e9 of NVLink 4 (H100), a usual share for NCCL."""
NETWORK = 40e9
"""Between nodes: four fifths of one 400 Gbit/s adapter per GPU."""
FLOPS = 400e12
"""bfloat16 operations a second that a GPU does in a transformer, 40 % of an H100's peak."""
IMAGES, PROMPTS, STEPS, TRAINED, REWARDS = 1080, 45, 10, 9, 2
"""Of an iteration of Flow-GRPO at a group of 24; all in all, whatever the number of GPUs."""
UPDATES = 2
"""Optimiser steps an iteration, as released."""
MICRO_BATCH, SAMPLE_BATCH = 4, 24
SAVED = 16
"""Images that the run directory keeps of an iteration."""


@dataclass(frozen=True)
class Model:
    """A network and its adapter, in numbers."""

    name: str
    parameters: float
    adapter: float
    tokens: int
    """Of an image and its prompt."""
    pixels: int
    branches: int
    """Forwards for each velocity: 2 with classifier-free guidance."""

    def forward_s(self, rows: int) -> float:
        """Seconds of a forward: two operations for each parameter and token."""
        return 2 * self.parameters * self.tokens * rows * self.branches / FLOPS


MODELS = (
    Model("SD3.5-M 512, LoRA 32", 2.47e9, 18.8e6, 1024 + 333, 512, 2),
    Model("FLUX.1-dev 512, LoRA 64", 11.9e9, 105e6, 1024 + 512, 512, 1),
)


def phases(model: Model, n: int, sharded: bool) -> dict[str, float]:
    """Bytes that one GPU of ``n`` sends, by phase."""
    gather, total = (n - 1) / n, 2 * (n - 1) / n
    rows = IMAGES * TRAINED * 8
    found = {
        "rewards [N, R]": gather * IMAGES * REWARDS * 8,
        "old log p, masks, events [N, D]": gather * (2 * rows + rows / 8),
        "live log p, diagnostics": gather * 3 * rows,
        "gradients": total * UPDATES * 4 * model.adapter,
        "saved images": SAVED * 3 * model.pixels**2 / n,
    }
    if sharded:  # FSDP2: the base is gathered block by block for every forward, and once more for its backward
        base, here = gather * 2 * model.parameters, IMAGES / n
        found["base, to sample"] = base * STEPS * here / min(SAMPLE_BATCH, here)
        found["base, to update"] = base * 2 * TRAINED * here / min(MICRO_BATCH, here)
    return found


def compute_s(model: Model, n: int) -> float:
    """Seconds of the network alone: sampling, and a replay with gradient (three forwards) of the trained steps."""
    return model.forward_s(1) * IMAGES / n * (STEPS + 3 * TRAINED)


def main() -> None:
    """Print the table."""
    names = list(phases(MODELS[0], NODE, sharded=True))
    titles = ["model", "GPUs", "base", *names, "sum", "s to send", "s to compute", "share"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for model, n, sharded in product(MODELS, (8, 64), (False, True)):
        sent = phases(model, n, sharded)
        seconds, work = sum(sent.values()) / (NVLINK if n <= NODE else NETWORK), compute_s(model, n)
        cells = [_bytes(sent.get(name, 0.0)) for name in names] + [_bytes(sum(sent.values()))]
        ends = [f"{seconds:.2g}", f"{work:.3g}", f"{seconds / (seconds + work):.2%}"]
        print(f"| {' | '.join([model.name, str(n), 'sharded' if sharded else 'whole', *cells, *ends])} |")


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B" if count else "-"


if __name__ == "__main__":
    main()
