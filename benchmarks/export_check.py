"""An exported adapter in plain diffusers, in another process, against flowrl's own sampler: largest pixel difference.

flowrl export RUN --to diffusers --out LORA
python benchmarks/export_check.py RUN LORA
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flowrl.types import prompts_of

PROMPTS = ("a red circle and a blue square", "three crosses", "a circle left of a triangle")


def ours(run: str, file: Path) -> None:
    """Sample with flowrl and keep the noise."""
    from flowrl.math.random import seeds
    from flowrl.samplers.flow import FlowSampler
    from flowrl.startup.policies import policy_of_run
    from flowrl.types import Draw

    policy = policy_of_run(run)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    policy.initial = lambda drawn, times: noise  # the same start on both sides
    group = torch.arange(len(PROMPTS))
    with policy.using("ema"):
        draw = Draw.of(seeds(0, "x", count=len(PROMPTS)), group, 0, 0)
        made = FlowSampler(steps=8, guidance=1.0)(policy, policy.condition(prompts_of(PROMPTS)), draw)
    save_file({"noise": noise, "images": policy.decode(made.final).contiguous()}, file)


def theirs(lora: str, file: Path) -> None:
    """The same pictures by diffusers alone."""
    from diffusers import StableDiffusion3Pipeline

    from flowrl.worlds.shapes import BASE, CALL

    kept = load_file(file)
    pipe = StableDiffusion3Pipeline.from_pretrained(BASE)
    call = {"num_inference_steps": 8, "latents": kept["noise"], "output_type": "pt", **CALL}
    before = pipe(list(PROMPTS), **call).images
    pipe.load_lora_weights(lora)
    after = pipe(list(PROMPTS), **call).images
    print(f"tuned, diffusers against flowrl: {float((after - kept['images']).abs().max()):.2e}")
    print(f"tuned against base, for scale:   {float((after - before).abs().max()):.2e}")


if __name__ == "__main__":
    if sys.argv[1] == "--theirs":
        theirs(sys.argv[2], Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            ours(sys.argv[1], Path(folder) / "made.safetensors")
            command = [sys.executable, __file__, "--theirs", sys.argv[2], str(Path(folder) / "made.safetensors")]
            subprocess.run(command, check=True)
