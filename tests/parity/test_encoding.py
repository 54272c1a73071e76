"""Given pictures as latents of any pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.decoder import autoencoder_of
from tests import pipelines

ENCODED = [
    "sd15",
    "sdxl",
    "sd3",
    "flux",
    "chroma",
    "pixart_sigma",
    "lumina2",
    "qwen_image",
    "sana",
    "sana_sprint",
    "flux2_klein",
    "z_image",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODED)
def test_an_encoded_picture_is_what_the_autoencoder_is_given_to_decode(
    name: str, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pipeline does between its latents and its autoencoder is undone exactly."""
    policy = load_policy(folder(name), call=pipelines.CALLS[name], parity="skip")
    height, width = policy.decode(torch.zeros(1, *policy.latent_shape)).shape[-2:]
    picture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    final = policy.encode([picture, picture, 1 - picture], torch.tensor([5, 6, 7]))
    assert final.shape == (3, *policy.latent_shape) and final.dtype == torch.float32
    autoencoder: Any = autoencoder_of(policy.recorder)
    seen, real = [], autoencoder.decode

    def decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(latents)
        return real(latents, *args, **kwargs)

    monkeypatch.setattr(autoencoder, "decode", decode)
    policy.decode(final[:1])
    pixels = 2 * picture[None] - 1
    with torch.no_grad():
        found = autoencoder.encode(pixels[:, :, None] if seen[0].dim() == 5 else pixels)
    if hasattr(found, "latent_dist"):
        apart = (seen[0] - found.latent_dist.mean) / found.latent_dist.std
        assert float(apart.abs().mean()) == pytest.approx(0.8, abs=0.4)  # a standard normal, by the sample's seed
        assert not torch.equal(final[0], final[1])
    else:
        assert torch.allclose(seen[0], found.latent, atol=1e-4)
    assert torch.allclose(final[1:2], policy.encode([picture], torch.tensor([6])), atol=1e-4)
