"""What is measured of every image: contrast, colour, edges, fine detail, periodic patterns, likeness to others."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from flowrl.media import quantise

CROP = 128
"""Side in pixels of what is measured at most: texture in the centre at full resolution, colour on the whole image
with pixels skipped."""
EDGE = 0.1
"""Change of luminance per pixel, of 1, from which a pixel lies on an edge."""
LEVELS = 8
"""Steps per colour channel of the colour histogram."""
LOW = 1 / 16
"""Cycles per pixel below which a periodic component counts as the picture itself."""
THUMBNAIL = 8
QUALITY = 75
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def measure_images(
    images: Tensor, group: Tensor, gather: Callable[[Tensor], Tensor] = lambda rows: rows
) -> dict[str, Tensor]:
    """Statistics of images [N, 3, H, W] in [0, 1] (of videos [N, F, 3, H, W]: their middle frame), each [N] float32 on
    the host.

    ``contrast``  standard deviation of the luminance         ``clipped``  share of channel values at black or white
    ``chroma``    mean of max(R, G, B) - min(R, G, B)         ``colors``   entropy in bits of the colour histogram
    ``edges``     share of pixels on an edge                  ``detail``   RMS of the luminance minus its 3x3 mean
    ``grid``      log10 of the strongest periodic component's power over the mean around it in the spectrum
    ``jpeg``      size as a JPEG file in bits per pixel       ``nearest``  distance to the likest other image
    ``diversity`` mean distance to the others of its group, NaN in a group of one

    Images that are not finite have NaN, and the others are measured as if they were not there; nothing is measured if
    there are no others. With several processes ``images`` are those of this one, and ``gather`` makes what is measured
    of them that of all N.
    """
    images = (images if images.ndim == 4 else images[:, images.shape[1] // 2]).detach()
    texture, whole = (gather(part.float().clamp(0, 1)) for part in (_centre(images), _thinned(images)))
    finite = gather(images.flatten(1).sum(dim=1, dtype=torch.float32).isfinite())  # without a copy of large images
    if not bool(finite.any()):
        return {}
    found = _measure(texture[finite], whole[finite], group[finite.cpu()])
    return {name: torch.full((len(finite),), torch.nan).masked_scatter(finite.cpu(), v) for name, v in found.items()}


def _measure(texture: Tensor, whole: Tensor, group: Tensor) -> dict[str, Tensor]:
    luminance = _luminance(texture)
    nearest, diversity = distances(whole, group)
    found = {
        "contrast": _luminance(whole).flatten(1).std(dim=1, correction=0),
        "chroma": (whole.amax(dim=1) - whole.amin(dim=1)).flatten(1).mean(dim=1),
        "clipped": ((whole <= 1 / 255) | (whole >= 254 / 255)).flatten(1).float().mean(dim=1),
        "colors": color_entropy(whole),
        "edges": edge_density(luminance),
        "detail": fine_detail(luminance),
        "noise": noise_level(luminance),
        "grid": periodicity(luminance),
        "jpeg": jpeg_bits(texture),
        "nearest": nearest,
        "diversity": diversity,
    }
    return {name: value.float().cpu() for name, value in found.items()}


def color_entropy(images: Tensor) -> Tensor:
    """[N] entropy in bits of the histogram of colours, ``LEVELS`` steps per channel."""
    steps = (images * LEVELS).int().clamp(max=LEVELS - 1)
    color = ((steps[:, 0] * LEVELS + steps[:, 1]) * LEVELS + steps[:, 2]).flatten(1)
    place = torch.arange(len(images), device=images.device, dtype=torch.int32)[:, None] * LEVELS**3 + color
    counts = torch.bincount(place.flatten(), minlength=len(images) * LEVELS**3).reshape(len(images), -1)
    return torch.special.entr(counts / color.shape[1]).sum(dim=1) / math.log(2)


def edge_density(luminance: Tensor) -> Tensor:
    """[N] share of pixels where the central difference of the luminance [N, H, W] is ``EDGE`` or more."""
    across = (luminance[:, 1:-1, 2:] - luminance[:, 1:-1, :-2]) / 2
    down = (luminance[:, 2:, 1:-1] - luminance[:, :-2, 1:-1]) / 2
    return (torch.hypot(across, down) >= EDGE).flatten(1).float().mean(dim=1)


def fine_detail(luminance: Tensor) -> Tensor:
    """[N] root mean square of the luminance [N, H, W] minus its 3x3 mean, borders left out: what lies near the finest
    frequencies."""
    smooth = avg_pool2d(luminance[:, None], 3, stride=1)[:, 0]
    return (luminance[:, 1:-1, 1:-1] - smooth).flatten(1).square().mean(dim=1).sqrt()


def noise_level(luminance: Tensor) -> Tensor:
    """[N] standard deviation of white noise that would explain the luminance [N, H, W] at the finest scale: the median
    magnitude of its diagonal Haar coefficients over 0.6745 (Donoho & Johnstone 1994, section 4.2). Edges hardly move
    it, noise all over the picture does."""
    height, width = (size // 2 * 2 for size in luminance.shape[1:])
    even, odd = luminance[:, 0:height:2, :width], luminance[:, 1:height:2, :width]
    diagonal = (even[..., 0::2] - even[..., 1::2] - odd[..., 0::2] + odd[..., 1::2]) / 2
    return diagonal.abs().flatten(1).median(dim=1).values / 0.6745


def periodicity(luminance: Tensor) -> Tensor:
    """[N] log10 of the largest ratio of power to the mean power of the surrounding 5x5 frequencies, above ``LOW``.

    A grid or checkerboard is a few sharp peaks; edges and noise are spread out. Hann-windowed, so that the borders
    of the image are no lines in its spectrum.
    """
    height, width = luminance.shape[1:]
    window = _hann(height, luminance.device)[:, None] * _hann(width, luminance.device)
    spectrum = torch.fft.rfft2((luminance - luminance.mean(dim=(1, 2), keepdim=True)) * window).abs().square()
    around = avg_pool2d(spectrum[:, None], 9, stride=1, padding=4, count_include_pad=False)[:, 0]
    down, across = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    high = (torch.hypot(down[:, None], across) > LOW).to(luminance.device)
    floor = 1e-8 * height * width  # below it the spectrum is rounding, not picture
    ratio = torch.where(high, spectrum / (around + floor), torch.zeros_like(spectrum)).flatten(1).amax(dim=1)
    return torch.log10(ratio + 1)


def jpeg_bits(images: Tensor) -> Tensor:
    """[N] bits per pixel of the images [N, 3, H, W] as JPEG files of quality 75, the file's header included."""
    pixels = quantise(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    sizes = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY)
        sizes.append(8 * buffer.tell() / (images.shape[2] * images.shape[3]))
    return torch.tensor(sizes)


def distances(images: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """``(nearest, within)`` [N] root mean square differences of the images' thumbnails: to the likest other image, and
    on average to the others of the image's group (NaN where there are none)."""
    flat = adaptive_avg_pool2d(images, THUMBNAIL).flatten(1).cpu()
    apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5
    alone = torch.eye(len(flat), dtype=torch.bool)
    nearest = apart.masked_fill(alone, torch.inf).amin(dim=1) if len(flat) > 1 else torch.full((len(flat),), torch.nan)
    others = (group[:, None] == group).cpu() & ~alone
    count = others.sum(dim=1)
    within = torch.where(others, apart, torch.zeros_like(apart)).sum(dim=1) / count
    return nearest, torch.where(count > 0, within, torch.nan)


def _luminance(images: Tensor) -> Tensor:  # [N, H, W]
    return torch.einsum("nchw,c->nhw", images, torch.tensor(LUMA, device=images.device))


def _hann(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, periodic=False, device=device)


def _centre(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    top, left = max(0, height - CROP) // 2, max(0, width - CROP) // 2
    return images[:, :, top : top + CROP, left : left + CROP]


def _thinned(images: Tensor) -> Tensor:
    """Whole images of at most ``CROP`` pixels a side. Pixels are skipped, not averaged: extremes must stay."""
    height, width = images.shape[2:]
    if max(height, width) <= CROP:
        return images
    return interpolate(images, (min(height, CROP), min(width, CROP)), mode="nearest-exact")
