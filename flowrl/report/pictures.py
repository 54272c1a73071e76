"""Images for the page, embedded so that the file stands alone."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

LARGEST = 320  # longer sides are shrunk to this many pixels, so that a page of SD3 samples stays small
SMALL = 128  # below this an image is shown enlarged with hard pixel edges


@dataclass(frozen=True)
class Picture:
    """An image and the words under it."""

    source: str
    """``data:`` URI."""
    pixelated: bool
    caption: str
    marks: tuple[tuple[str, str], ...] = ()
    """Label and value of scores."""
    correct: bool | None = None
    """A verdict to mark, where there is one."""


@dataclass(frozen=True)
class Embedded:
    """An image as text, and whether it is so small that it is enlarged."""

    source: str
    pixelated: bool


def embed(path: Path) -> Embedded | None:
    """The image as a ``data:`` URI; None if it is missing or damaged, which must not cost the rest of the report."""
    try:
        with Image.open(path) as image:
            image.load()
            small = max(image.size) <= SMALL
            if small:
                return Embedded(_uri(image.convert("RGB"), "PNG"), True)
            image.thumbnail((LARGEST, LARGEST))
            return Embedded(_uri(image.convert("RGB"), "JPEG"), False)
    except (OSError, UnidentifiedImageError):
        return None


def _uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{data}"
