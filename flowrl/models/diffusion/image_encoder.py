"""Clean latents of given images: the pipeline's autoencoder, and what the pipeline does to latents before it decodes
them, backwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flowrl.errors import UserError
from flowrl.math.random import normal, uniform
from flowrl.models.diffusion.decoder import autoencoder_of
from flowrl.models.diffusion.denoiser_spec import DenoiserSpec
from flowrl.models.diffusion.recorder import Recorder, patched

POSTERIOR_STREAM = 1005  # far from the sampler's and the estimators' streams of the same seeds
BASE = 8
"""Of the digits by which the place of an element is told; few enough that half precision tells them apart."""
TOLERANCE = 0.02
"""Of the check, relative to the size of latents."""


@dataclass(frozen=True)
class _Way:
    """What the autoencoder is given, element j, is ``scale_j final[source_j] + shift_j``."""

    source: Tensor  # [n] int64
    scale: Tensor  # [n] float64
    shift: Tensor  # [n] float64
    shape: torch.Size
    """Of what the autoencoder is given for one image."""
    size: tuple[int, int]
    """Height and width of a decoded image."""


class ImageEncoder:
    """``encoder(images, seeds)``: latents [N, ...] float32 on the device, which the pipeline decodes to these images.

    Pipelines scale, shift, pack and permute latents before their autoencoder decodes them, each in its own way. What
    this one does is found by watching it decode a few latents that tell every element apart, and checked on random
    ones. Images are resized to cover the pipeline's size and cut at the centre. Where the autoencoder answers a
    distribution, a latent is drawn from it, by the sample's seed.
    """

    def __init__(self, recorder: Recorder, spec: DenoiserSpec, rows: int, device: torch.device) -> None:
        self._recorder, self._spec, self._rows, self._device = recorder, spec, rows, device
        self._way: _Way | None = None

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor], seeds: Tensor) -> Tensor:
        """Raises `UserError` for a pipeline whose autoencoder cannot encode, or whose way is not found."""
        way = self._find() if self._way is None else self._way
        self._way = way
        fitted = torch.stack([_fitted(image, way.size) for image in images])
        parts = zip(fitted.split(self._rows), seeds.split(self._rows), strict=True)
        encoded = torch.cat([self._encoded(pixels, part, way) for pixels, part in parts])
        final = torch.empty(len(images), len(way.source), dtype=torch.float64)
        final[:, way.source] = (encoded.flatten(1).double() - way.shift) / way.scale
        return final.float().view(len(images), *self._spec.latent_shape).to(self._device)

    def _encoded(self, pixels: Tensor, seeds: Tensor, way: _Way) -> Tensor:
        """[n, ...] on the host, as the autoencoder is given them for decoding."""
        autoencoder = self._autoencoder()
        weights = next(iter(autoencoder.parameters()))
        pixels = (2 * pixels - 1).to(self._device, weights.dtype)
        found = autoencoder.encode(pixels[:, :, None] if len(way.shape) == 4 else pixels)
        posterior = getattr(found, "latent_dist", None)
        if posterior is None:
            latents = getattr(found, "latents", getattr(found, "latent", None))
            assert isinstance(latents, Tensor)
        else:
            latents = posterior.mean.float()
            noise = normal(seeds, tuple(latents.shape[1:]), stream=POSTERIOR_STREAM, device=latents.device)
            latents = latents + posterior.std.float() * noise
        if latents.shape[1:] != way.shape:
            raise self._refusal(f"encodes to {list(latents.shape[1:])} and decodes {list(way.shape)}")
        return latents.cpu()

    def _find(self) -> _Way:
        shape = self._spec.latent_shape
        count = torch.Size(shape).numel()
        zero, size = self._decoded(torch.zeros(shape))
        shift = zero.flatten()
        scale = self._decoded(torch.ones(shape))[0].flatten() - shift
        if len(shift) != count or not bool((scale.abs() > 0).all()):
            raise self._refusal("mixes elements of its latents before it decodes them")
        place, source, power = torch.arange(count), torch.zeros(count, dtype=torch.int64), 1
        while power < count:
            digits = (place // power % BASE).double() / BASE
            seen = (self._decoded(digits.view(shape))[0].flatten() - shift) / scale
            source += (seen * BASE).round().clamp(0, BASE - 1).long() * power
            power *= BASE
        way = _Way(source, scale, shift, zero.shape, size)
        probe = 2 * uniform(torch.zeros(1, dtype=torch.int64), (count,), stream=0)[0] - 1
        seen = self._decoded(probe.view(shape))[0].flatten()
        apart = float(((probe[source.clamp(max=count - 1)] * scale + shift - seen) / scale).abs().max())
        if not torch.equal(source.sort().values, place) or not apart < TOLERANCE:
            raise self._refusal("mixes elements of its latents before it decodes them")
        return way

    def _decoded(self, final: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What the autoencoder is given for one image's latents, float64 on the host, and the image's size."""
        seen: list[Tensor] = []

        def decode(real: Callable[..., Any], latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(latents.detach()[0].double().cpu())
            return real(latents, *args, **kwargs)

        with patched(self._autoencoder(), "decode", decode):
            latents = final[None].to(self._device, self._spec.latent_dtype)
            media = self._recorder.finish(self._spec.as_sample(latents), self._spec.blank, 1)
        self._recorder.release()
        if len(seen) != 1 or media.dim() != 4:
            raise self._refusal("makes no single images")
        return seen[0], (media.shape[-2], media.shape[-1])

    def _autoencoder(self) -> Any:
        found: Any = autoencoder_of(self._recorder)
        if found is None or not callable(getattr(found, "encode", None)):
            raise self._refusal("has no single autoencoder")
        return found

    def _refusal(self, why: str) -> UserError:
        name = type(self._recorder.pipeline).__name__
        return UserError(f"images of a data set cannot be made latents of {name}: it {why}; take another pipeline")


def _fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] of an image [3, h, w]: resized to cover the size, and cut at the centre."""
    if tuple(image.shape[1:]) == size:
        return image.float()
    ratio = max(size[0] / image.shape[1], size[1] / image.shape[2])
    scaled = [max(side, round(length * ratio)) for side, length in zip(size, image.shape[1:], strict=True)]
    large = interpolate(image[None].float(), size=scaled, mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = ((have - want) // 2 for have, want in zip(scaled, size, strict=True))
    return large[:, top : top + size[0], left : left + size[1]]
