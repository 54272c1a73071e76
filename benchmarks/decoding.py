"""Time of decoding an iteration's images by one run of the pipeline, over a run for every 16 of them, in turns.

Usage: python -m benchmarks.decoding [--repeats 9]
The quickstart's base and its 216 images; CPU seconds of one thread. The images are compared bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from flowrl.models.diffusion import DiffusionPolicy, load_policy

IMAGES = 216


def seconds(policy: DiffusionPolicy, latents: torch.Tensor, one_run: bool) -> tuple[float, torch.Tensor]:
    """``(CPU seconds, images)`` of decoding in one run, or in a run for as many prompts as the autoencoder takes."""
    policy.decoder._one_prompt = one_run
    start = time.process_time()
    images = policy.decode(latents)
    return time.process_time() - start, images


def main(repeats: int) -> None:
    """Print medians and the median of the ratios."""
    torch.set_num_threads(1)
    policy = load_policy("shapes", device="cpu")
    latents = torch.randn(IMAGES, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    _, before = seconds(policy, latents, False)
    _, now = seconds(policy, latents, True)
    times = [(seconds(policy, latents, False)[0], seconds(policy, latents, True)[0]) for _ in range(repeats)]
    ratios = sorted(new / old for old, new in times)
    old, new = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"a run for every 16: {old:.3f} s, one run: {new:.3f} s, ratio {statistics.median(ratios):.3f}")
    print(f"ratios {ratios[0]:.3f} to {ratios[-1]:.3f}; largest difference {float((before - now).abs().max()):.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    main(parser.parse_args().repeats)
