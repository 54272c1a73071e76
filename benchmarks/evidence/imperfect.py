"""Imperfect scorers of the shapes world: small networks that learned from noisy labels of the base's own pictures.

``python -m benchmarks.evidence.imperfect imperfect`` trains one (40 seconds on one thread), says how good it is on
pictures for held-out prompts, with right labels, and writes ``imperfect.safetensors``, which the reward reads;
``judge`` trains one with more pictures and fewer wrong labels (80 seconds). A scorer has a gradient, so that it can be
followed directly; and because it has seen the base's samples alone, it can be led where it knows nothing.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowrl.worlds.images.measuring import sample
from flowrl.worlds.images.scenes import CLASSES, COLORS, RELATIONS, Metadata
from flowrl.worlds.shapes import BASE, prompts
from flowrl.worlds.shapes.verifier import score


@dataclass(frozen=True)
class Schooling:
    """What a scorer has learned from."""

    pictures: int
    wrong: float
    """Share of the labels that are."""
    epochs: int


SCORERS = {"imperfect": Schooling(2000, 0.25, 40), "judge": Schooling(6000, 0.15, 30)}
CLAUSES = 2
"""Of the metadata, at most."""
WIDE = len(CLASSES) + len(COLORS) + 4 + len(RELATIONS)
BATCH, RATE, SEED = 128, 3e-3, 0


class Scorer(nn.Module):
    """[N] logits of pictures [N, 3, 32, 32] in [0, 1] showing what is asked for, [N, CLAUSES * WIDE]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 2 * width)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(sizes))
        self.asked = nn.ModuleList(nn.Linear(CLAUSES * WIDE, 2 * b) for b in sizes[1:])
        self.head = nn.Sequential(nn.Linear(2 * width * 16, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, images: Tensor, asked: Tensor) -> Tensor:
        x = 2 * images - 1
        for convolution, of in zip(self.convolutions, self.asked, strict=True):
            scale, shift = of(asked)[:, :, None, None].chunk(2, dim=1)
            x = nn.functional.silu(convolution(x) * (1 + scale) + shift)
        return self.head(x.flatten(1))[:, 0]


def encoded(include: Sequence[Metadata]) -> list[float]:
    """What is asked for, as numbers: class, colour, count and relation of every clause."""
    found = torch.zeros(CLAUSES, WIDE)
    for k, item in enumerate(include):
        found[k, CLASSES.index(item["class"])] = 1
        if item.get("color"):
            found[k, len(CLASSES) + list(COLORS).index(item["color"])] = 1
        found[k, len(CLASSES) + len(COLORS) + item["count"] - 1] = 1
        if item.get("position"):
            found[k, len(CLASSES) + len(COLORS) + 4 + list(RELATIONS).index(item["position"][0])] = 1
    return found.flatten().tolist()


def asked_for(include: Sequence[Sequence[Metadata]]) -> Tensor:
    """[N, CLAUSES * WIDE]."""
    return torch.tensor([encoded(each) for each in include])


def _weights(which: str) -> Path:
    return Path(__file__).parent / f"{which}.safetensors"


@cache
def _loaded(which: str) -> Scorer:
    scorer = Scorer()
    scorer.load_state_dict({name: value.float() for name, value in load_file(_weights(which)).items()})
    return scorer.requires_grad_(False).eval()


class Imperfect:
    """How probable a scorer finds it that a picture shows what its metadata asks for. [N] in [0, 1]"""

    def __init__(self, which: Literal["imperfect", "judge"] = "imperfect") -> None:
        self._which = which
        self.version = f"{which}:1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Sequence[Any]) -> Tensor:
        """Without a gradient; ``include`` is needed."""
        with torch.no_grad():
            return self.gradient(images, prompts, **columns)

    def gradient(self, images: Tensor, prompts: Sequence[str], **columns: Sequence[Any]) -> Tensor:
        """With a gradient to the images."""
        return _loaded(self._which)(images, asked_for(columns["include"]).to(images)).sigmoid()


def train(which: str) -> dict[str, float]:
    """Train a scorer on samples of the base for training prompts, a share of whose strict labels is wrong: each as
    an answer to its own prompt and, at half the weight, to another one. Returns what it is worth on samples of the base
    for held-out prompts, whose labels are right."""
    from diffusers import StableDiffusion3Pipeline

    of = SCORERS[which]
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    pipe = StableDiffusion3Pipeline.from_pretrained(BASE, dtype=torch.float32)
    known, held = prompts("train"), prompts("test")
    rows, tests = [rng.choice(known) for _ in range(of.pictures)], [row for row in held for _ in range(12)]
    others = [rng.choice(known) for _ in rows]
    images, clean = sample(pipe, rows, SEED, steps=8), sample(pipe, tests, SEED + 1, steps=8)
    told = [
        (_asked(asked), _flipped(_strict(images, asked), of.wrong), weight)
        for asked, weight in ((rows, 1.0), (others, 0.5))
    ]
    right = _strict(clean, tests)
    scorer = Scorer()
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=of.epochs * (of.pictures // BATCH))
    for _ in range(of.epochs):
        for part in torch.randperm(of.pictures)[: of.pictures // BATCH * BATCH].view(-1, BATCH):
            moved = tuple(torch.randint(-1, 2, (2,)).tolist())
            seen = torch.roll(images[part] + 0.03 * torch.randn_like(images[part]), moved, (2, 3))
            loss = torch.stack([w * _entropy(scorer(seen, a[part]), label[part]) for a, label, w in told]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    save_file({name: value.half().contiguous() for name, value in scorer.state_dict().items()}, _weights(which))
    _loaded.cache_clear()
    with torch.no_grad():
        said = _loaded(which)(clean, _asked(tests))
    above = said[right == 1][:, None] - said[right == 0][None]
    return {
        "accuracy": float(((said > 0).float() == right).float().mean()),
        "accuracy of always saying the same": float(max(right.mean(), 1 - right.mean())),
        "area under the curve": float(((above > 0).float() + (above == 0).float() / 2).mean()),
        "mean score": float(said.sigmoid().mean()),
        "strict score": float(right.mean()),
        "parameters": float(sum(value.numel() for value in scorer.parameters())),
    }


_entropy = nn.functional.binary_cross_entropy_with_logits


def _strict(images: Tensor, rows: Sequence[Metadata]) -> Tensor:
    return score(images, rows)[0].float()


def _flipped(labels: Tensor, wrong: float) -> Tensor:
    return torch.where(torch.rand(len(labels)) < wrong, 1 - labels, labels)


def _asked(rows: Sequence[Metadata]) -> Tensor:
    return asked_for([row["include"] for row in rows])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=list(SCORERS))
    torch.set_num_threads(1)
    for name, value in train(parser.parse_args().which).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
