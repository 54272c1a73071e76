"""How much longer a run's velocities are than those of the base, at the same points for every run of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open
from torch import Tensor, nn

from benchmarks.evidence.runs import Page, read, write
from flowrl.worlds import shapes

TIMES = (0.2, 0.4, 0.6, 0.8)
KEY = "norm_growth"


class Points:
    """Noised samples of the base on the held-out prompts: 8 steps without guidance, one noise for each time."""

    @torch.no_grad()
    def __init__(self) -> None:
        pipe: Any = StableDiffusion3Pipeline.from_pretrained(shapes.BASE)
        pipe.set_progress_bar_config(disable=True)
        self.network: nn.Module = pipe.transformer
        texts, draw = [str(row["prompt"]) for row in shapes.prompts("test")], torch.Generator().manual_seed(0)
        call = {**shapes.CALL, "num_inference_steps": 8, "generator": draw, "output_type": "latent"}
        clean: Tensor = pipe(texts, **call).images
        self.text, _, self.pooled, _ = pipe.encode_prompt(texts, None, None, max_sequence_length=1)
        noise = torch.randn(clean.shape, generator=draw)
        self.noised = [(t, (1 - t) * clean + t * noise) for t in TIMES]
        self.base = self.lengths()

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """[times, prompts] norms of the velocities of the network's present weights."""
        found = []
        for t, x in self.noised:
            v = self.network(x, self.text, self.pooled, torch.full((len(x),), 1000 * t), return_dict=False)[0]
            found.append(v.double().flatten(1).norm(dim=1))
        return torch.stack(found)

    def growth(self, checkpoint: Path) -> float:
        """Mean of ``|v| / |v_base| - 1`` with the live weights of a checkpoint."""
        with safe_open(checkpoint / "state" / "state.safetensors", "pt") as file:
            start, keys = "weights/live/", list(file.keys())
            live = {key.removeprefix(start): file.get_tensor(key) for key in keys if key.startswith(start)}
        missing, unknown = self.network.load_state_dict(live, strict=False)
        trained = {name for name, _ in self.network.named_parameters()}
        assert not unknown and not trained & set(missing), "the checkpoint has other weights than the network"
        return float((self.lengths() / self.base - 1).mean())


def measure(page: Page, out: Path) -> None:
    """Keep the growth of all finished runs of a page, under `KEY`, with what was measured."""
    points, data = Points(), read(page.name)
    for arm, kept in data["arms"].items():
        for seed, run in kept["runs"].items():
            latest = out / page.name / f"{arm}-{seed}" / "checkpoints"
            steps = sorted(latest.glob("step_*"))
            if steps:
                run[KEY] = round(points.growth(steps[-1]), 4)
    write(page.name, data)
