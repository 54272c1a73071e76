"""Tiny pipelines on disk, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from flowrl.models.diffusion import DiffusionPolicy, load_policy
from tests import pipelines

PROMPTS = ("a red circle", "two dogs above a blue square", "a cat")


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder a tiny pipeline is saved in."""
    root = tmp_path_factory.mktemp("pipelines")

    def find(name: str) -> Path:
        return root / name if (root / name).exists() else pipelines.save(name, root / name)

    return find


@pytest.fixture(scope="session")
def policies(folder: Callable[[str], Path]) -> Callable[[str], DiffusionPolicy]:
    """A policy with a LoRA that has moved, shared by tests that leave it as they found it."""
    made: dict[str, DiffusionPolicy] = {}

    def find(name: str) -> DiffusionPolicy:
        if name not in made:
            made[name] = load_policy(folder(name), call=pipelines.CALLS[name], parity="skip")
            move(made[name])
        return made[name]

    return find


def move(policy: DiffusionPolicy, size: float = 0.05) -> None:
    """Random trained weights."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def points(policy: DiffusionPolicy, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Canonical ``(x, t)`` of ``rows`` rows on the policy's own grid, a different time for each."""
    generator = torch.Generator().manual_seed(5)
    times = policy.times(4)[:-1]
    t = times[torch.arange(rows) % len(times)]
    return torch.randn((rows, *policy.latent_shape), generator=generator), t
