"""Images and completions for the page, embedded so that the file stands alone."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

LARGEST = 320  # longer sides are shrunk to this many pixels, so that a page of SD3 samples stays small
LONGEST = 4000  # characters of a completion that are shown
LINES, COLUMNS = 8, 32  # of a completion that fits into a narrow column
SMALL = 128  # below this an image is shown enlarged with hard pixel edges


@dataclass(frozen=True)
class Picture:
    """An image or a completion, and the words under it."""

    source: str
    """``data:`` URI of an image."""
    pixelated: bool
    caption: str
    marks: tuple[tuple[str, str], ...] = ()
    """Label and value of scores."""
    correct: bool | None = None
    """A verdict to mark, where there is one."""
    text: str | None = None
    """The completion, of a language model."""

    @property
    def column(self) -> str:
        """Name of the column width it needs: ``image``, ``text``, or ``wide`` for a long text."""
        if self.text is None:
            return "image"
        lines = self.text.split("\n")
        return "wide" if len(lines) > LINES or max(map(len, lines)) > COLUMNS else "text"


def widest(pictures: Iterable[Picture]) -> str:
    """The column that all of some pictures, side by side, need."""
    return max((picture.column for picture in pictures), key=("image", "text", "wide").index, default="image")


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
    except (OSError, Image.DecompressionBombError):
        return None


def readable(text: str) -> str:
    """A completion as text for the page: signs that would be invisible or turn the text around are written out."""
    shown = "".join(f"\\u{ord(sign):04x}" if _hidden(sign) else sign for sign in text[:LONGEST])
    return shown + (f"\n... {len(text) - LONGEST} more characters" if len(text) > LONGEST else "")


def _hidden(sign: str) -> bool:
    kind = unicodedata.category(sign)
    turning = unicodedata.bidirectional(sign) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return (kind in ("Cc", "Cs") and sign not in "\n\t") or turning


def _uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{data}"
