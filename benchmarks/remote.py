"""What a reward server costs: the same reward here and over loopback, and where the time of the images goes.

python benchmarks/remote.py --images 16 --size 512
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from flowrl.clients.protocol import TOKEN_VARIABLE, RequestLimits, decode_images, encode_images
from flowrl.media import quantise
from flowrl.score import load_rewards
from flowrl.types import Prompt, Samples

REWARD = "def brightness(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n"
REPEATS = 12


def main() -> None:
    """Print medians of wall time, and CPU time of the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    given = parser.parse_args()
    images = smooth(given.images, given.size)
    samples = Samples([Prompt("a", row) for row in range(given.images)], images)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("mine.py").write_text(REWARD)
        Path("server.yaml").write_text("rewards: ['mine.py:brightness']\n")
        os.environ[TOKEN_VARIABLE] = secrets.token_urlsafe(32)
        command = [sys.executable, "-m", "flowrl", "reward-server", "server.yaml", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2]
            for label, use in (("here", "mine.py:brightness"), ("server", f"{address}/brightness")):
                rewards = load_rewards([use])
                print(f"{label:8} {wall(lambda r=rewards: r.raw(samples)):.3f} s")
                rewards.close()
            server.terminate()
    pixels = quantise(images).permute(0, 2, 3, 1).numpy()
    texts = encode_images(pixels)
    print(f"encode   {cpu(lambda: encode_images(pixels)):.3f} s of CPU, {len(texts[0]) * 3 / 4e3:.0f} kB an image")
    print(f"decode   {cpu(lambda: decode_images(texts, RequestLimits())):.3f} s of CPU")


def smooth(count: int, size: int) -> torch.Tensor:
    """[count, 3, size, size] in [0, 1]: noise at every scale, weaker the finer, as pictures have it."""
    generator, images = torch.Generator().manual_seed(0), torch.zeros(count, 3, size, size)
    for cells in (4, 8, 16, 32, 64, 128, 256):
        coarse = torch.randn(count, 3, cells, cells, generator=generator) / cells**0.8
        images += torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    images += 0.01 * torch.randn(images.shape, generator=generator)
    return (images - images.min()) / (images.max() - images.min())


def wall(call: Callable[[], object]) -> float:
    """Median seconds, after one call to warm up."""
    return statistics.median(_times(call, time.perf_counter))


def cpu(call: Callable[[], object]) -> float:
    """Median CPU seconds of all threads of this process."""
    return statistics.median(_times(call, time.process_time))


def _times(call: Callable[[], object], clock: Callable[[], float]) -> list[float]:
    call()
    times = []
    for _ in range(REPEATS):
        start = clock()
        call()
        times.append(clock() - start)
    return times


if __name__ == "__main__":
    main()
