"""What goes over the wire: one JSON object per call, images in it as base64 of 8-bit RGB PNG.

Request: ``{"protocol": 1, "reward": NAME, "prompts": [text], "columns": {name: [value]}, "images": [base64] or
"completions": [text], "group": [int]}``, one entry per sample; ``columns`` and ``group`` may be absent.
A server that finds ``reward`` at the beginning hands the body on unread.
Answer: ``{"protocol": 1, "scores": [number or null]}`` where null says "could not score", or ``{"error": SENTENCE}``
with a 4xx or 5xx status.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from flowrl.errors import is_out_of_memory

VERSION = 1
MEDIA_TYPE = "application/json"
TOKEN_VARIABLE = "FLOWRL_TOKEN"
"""Environment variable of the bearer token, for the server and for its clients."""
THREADS = min(8, os.cpu_count() or 1)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_RGB, PNG_DEPTH = 2, 8
PNG_UP = 2
"""Filter type: a pixel minus the one above it."""


class RefusedError(Exception):
    """A request that is not answered: an HTTP status, and one sentence for the caller."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class RequestLimits(BaseModel):
    """What one caller may ask for; ``limits:`` of a server's config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    body: PositiveInt = Field(default=32 << 20, description="bytes of a request")
    samples: PositiveInt = Field(default=256, description="samples of a request")
    pixels: PositiveInt = Field(default=64 << 20, description="pixels of all images of a request together")
    concurrency: PositiveInt = Field(default=8, description="requests at a time; further ones are asked to come back")
    seconds: PositiveFloat = Field(default=120.0, description="of scoring one request; the reward is then restarted")
    receive_seconds: PositiveFloat = Field(default=30.0, description="a request may take to arrive")


class ScoreRequest(BaseModel):
    """A request, checked in shape and type; its images are still text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    protocol: Literal[1]
    reward: str = Field(max_length=200)
    prompts: list[str]
    columns: dict[str, list[Any]] = {}
    images: list[str] | None = None
    completions: list[str] | None = None
    group: list[Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]] | None = None
    """Samples of one group share a number; for rewards that compare samples."""

    @classmethod
    def parse(cls, body: bytes, limits: RequestLimits) -> Self:
        """From the bytes of a request. Raises `RefusedError` (400, 413, 422)."""
        try:
            call = cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            if first["type"] == "json_invalid":
                raise RefusedError(400, f"the body is not JSON: {first['msg']}") from None
            where = ".".join(map(str, first["loc"]))[:100] or "the body"
            raise RefusedError(422, f"{where}: {first['msg']}") from None
        count = len(call.prompts)
        if count > limits.samples:
            raise RefusedError(413, f"a request may hold {limits.samples} samples, found {count}; send fewer at a time")
        if call.images is None and call.completions is None:
            raise RefusedError(422, "a request needs images or completions")
        lists = {"images": call.images, "completions": call.completions, "group": call.group}
        columns = {f"columns.{name[:50]}": values for name, values in call.columns.items()}
        for name, values in (lists | columns).items():
            if values is not None and len(values) != count:
                raise RefusedError(422, f"{name} has {len(values)} entries for {count} prompts")
        return call


_BEGINNING = re.compile(rb'\s*\{\s*(?:"protocol"\s*:\s*\d+\s*,\s*)?"reward"\s*:\s*"([\w.\-]{1,200})"')


def reward_named_by(body: bytes) -> str | None:
    """The reward that a request is for, from its first bytes; None where they do not say. The rest is not looked at:
    whoever scores it checks it."""
    found = _BEGINNING.match(body)
    return None if found is None else found[1].decode()


def encode_images(pixels: np.ndarray) -> list[str]:
    """Base64 PNGs of uint8 ``pixels`` [N, H, W, 3]."""
    with ThreadPoolExecutor(THREADS) as pool:  # zlib works without the interpreter lock
        return list(pool.map(_encode, pixels))


def decode_images(texts: Sequence[str], limits: RequestLimits) -> np.ndarray:
    """uint8 [N, H, W, 3] from base64 PNGs of one size.

    Sizes are read from the headers and counted before anything is unpacked. Raises `RefusedError` (413 for more
    pixels than allowed, 422 for what is no such image).
    """
    files = [_unbase64(text, index) for index, text in enumerate(texts)]
    sizes = [_size(file, index) for index, file in enumerate(files)]
    pixels = sum(width * height for width, height in sizes)
    if pixels > limits.pixels:
        raise RefusedError(413, f"a request may hold {limits.pixels} pixels, found {pixels}; send smaller images")
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise RefusedError(422, f"images.{index} is {size[0]}x{size[1]}, images.0 {sizes[0][0]}x{sizes[0][1]}")
    if not files:
        return np.zeros((0, 1, 1, 3), np.uint8)
    with ThreadPoolExecutor(THREADS) as pool:  # Pillow reads without the interpreter lock
        return np.stack(list(pool.map(_decode, files, range(len(files)))))


def _encode(pixels: np.ndarray) -> str:
    """Base64 of a PNG file (W3C PNG specification, 5 and 9). Every line has the same filter and bytes are only Huffman
    coded: as small as Pillow's files of pictures within 5 %, and written in 8 instead of 29 ms for 512 x 512, most of
    which Pillow spends on choosing filters."""
    height, width, _ = pixels.shape
    flat = np.ascontiguousarray(pixels).reshape(height, 3 * width)
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0], lines[0, 1:] = PNG_UP, flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])  # modulo 256, as the specification wants it
    packer = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    content = packer.compress(lines.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, PNG_DEPTH, PNG_RGB, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", content), _chunk(b"IEND", b""))
    return base64.b64encode(PNG_SIGNATURE + b"".join(parts)).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _unbase64(text: str, index: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(422, f"images.{index} is not base64") from None


def _size(file: bytes, index: int) -> tuple[int, int]:
    """(width, height) from the header of a PNG (its first 26 bytes: W3C PNG specification, 11.2.1)."""
    if len(file) < 26 or not file.startswith(PNG_SIGNATURE) or file[12:16] != b"IHDR":
        raise RefusedError(422, f"images.{index} is not a PNG file")
    width, height, depth, colour = struct.unpack(">IIBB", file[16:26])
    if (depth, colour) != (PNG_DEPTH, PNG_RGB):
        raise RefusedError(422, f"images.{index} is not an 8-bit RGB PNG (depth {depth}, colour type {colour})")
    return width, height


def _decode(file: bytes, index: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # a hostile file makes the decoder raise many things; none is the server's fault
        if is_out_of_memory(error):
            raise
        raise RefusedError(422, f"images.{index} is a broken or truncated PNG") from error
