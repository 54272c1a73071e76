"""Images and completions as the page shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from flowrl.errors import printable

LARGEST = 320
"""Longer sides are shrunk to this many pixels in a grid, and in a saved page, so that one of large images is small."""
SMALL = 128
"""Up to this many pixels images are kept as they are: the page enlarges them with hard pixel edges."""
LONGEST = 4000
"""Characters of a completion that are shown."""

Show = Callable[[Path], str | None]
"""The address of an image for the page; None where there is none that could be shown."""


def embed(path: Path) -> str | None:
    """The image as a ``data:`` URI; None if it is missing or damaged, which must not cost the rest of the page."""
    found = shrunk(path)
    if found is None:
        return None
    content, kind = found
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def shrunk(path: Path) -> tuple[bytes, str] | None:
    """``(content, media type)`` of an image, no larger than `LARGEST`, or of one that moves as it is; None if it is
    missing or damaged."""
    try:
        with Image.open(path) as image:
            image.load()
            if getattr(image, "is_animated", False):
                return path.read_bytes(), f"image/{str(image.format).lower()}"
            if max(image.size) <= SMALL:
                return _encoded(image.convert("RGB"), "PNG")
            image.thumbnail((LARGEST, LARGEST))
            return _encoded(image.convert("RGB"), "JPEG")
    except (OSError, Image.DecompressionBombError):
        return None


def readable(text: str) -> str:
    """A completion for the page: signs that would be invisible or turn the text around are written out, and a very long
    one is cut."""
    shown = printable(text[:LONGEST])
    return shown + (f"\n... {len(text) - LONGEST} more characters" if len(text) > LONGEST else "")


def _encoded(image: Image.Image, kind: str) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), f"image/{kind.lower()}"
