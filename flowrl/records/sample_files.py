"""Samples on disk in GenEval's official layout: other tools can score what we made, and we what they made.

``FOLDER/00000/metadata.jsonl`` holds one JSON object (the prompt and what it asks for) and
``FOLDER/00000/samples/0000.png`` its images (djghosh13/geneval, MIT). Completions lie in the same place as
``0000.json``: ``{"completion": "...", "tokens": 12}``. Read also: a folder of images with a ``prompts.jsonl`` whose
lines name a ``file`` and its ``prompt``, or a ``prompts.txt`` with a line for each image, in the order of their names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from flowrl.errors import UserError, first_line
from flowrl.files import write_atomically
from flowrl.media import animation, picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGE, COMPLETION = ".png", ".json"
"""Suffixes of the samples that we write."""
TOGETHER = "together.png"
"""In a run's folder of samples: many episodes in one picture."""
MOVING = "episode.gif"
"""Beside it: one episode as it goes on."""
FILE_KEYS = ("file", "file_name", "filename", "image")


@dataclass(frozen=True)
class Entry:
    """A prompt and its samples."""

    index: int
    """Position in the prompt set, whatever part of it is evaluated."""
    metadata: Mapping[str, Any]
    """``prompt`` and the prompt's other fields."""
    files: tuple[Path, ...]


def metadata_path(folder: Path, index: int) -> Path:
    """``00000/metadata.jsonl``."""
    return folder / f"{index:05d}" / "metadata.jsonl"


def sample_path(folder: Path, index: int, sample: int, suffix: str = IMAGE) -> Path:
    """``00000/samples/0000.png``."""
    return folder / f"{index:05d}" / "samples" / f"{sample:04d}{suffix}"


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def write_image(path: Path, image: Tensor, facts: Mapping[str, Any] | None = None) -> None:
    """Write [3, H, W] in [0, 1] as PNG; values are rounded to the nearest of 256 levels. ``facts`` become text chunks
    of the file, what is no text as JSON."""
    chunks = PngInfo()
    for name, value in (facts or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        chunks.add_itxt(name, text.encode("utf-8", "replace").decode())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    picture(image).save(partial, format="PNG", pnginfo=chunks)
    os.replace(partial, path)


def write_overviews(folder: Path, together: Tensor | None, moving: Sequence[np.ndarray]) -> None:
    """Write a picture [3, H, W] of many episodes, and frames [H, W, 3] of one as it goes on, where there are any."""
    if together is not None:
        write_image(folder / TOGETHER, together)
    if moving:
        (folder / MOVING).write_bytes(animation(moving))


def write_beside(path: Path, files: Sequence[Path]) -> None:
    """Write pictures of one size side by side into one; nothing where one of them, or all, are missing."""
    if files and all(file.is_file() for file in files):
        first, *others = read_images(files)
        gap = torch.ones(3, first.shape[1], 12)
        write_image(path, torch.cat([first, *(part for each in others for part in (gap, each))], dim=2))


def write_completion(path: Path, completion: str, tokens: int) -> None:
    """Write a completion and how many tokens it took, the end token included."""
    write_text(path, json.dumps({"completion": completion, "tokens": tokens}, ensure_ascii=False) + "\n")


def read_completion(path: Path) -> tuple[str, int]:
    """``(completion, tokens)``. Raises UserError for a file that is not one of ours."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return str(value["completion"]), int(value["tokens"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = first_line(error)
        raise UserError(f"{path} is not a readable completion ({what}); delete it and make it again") from error


def read_images(paths: Sequence[Path]) -> Tensor:
    """[n, 3, H, W] float in [0, 1]. Raises UserError for an unreadable file or images of different sizes."""
    images = [_read_image(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = " and ".join(f"{i.shape[1]}x{i.shape[0]}" for i in (images[0], image))
            raise UserError(f"{paths[0]} and {path} differ in size ({sizes}); evaluate one size at a time")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def image_size(path: Path) -> tuple[int, int]:
    """``(width, height)``, from the file's header. Raises UserError for a file that is no image."""
    with _open_image(path) as image:
        return image.size


def is_image_folder(folder: Path) -> bool:
    """Whether ``folder`` holds images in one of the layouts that ``read_folder`` knows."""
    paired = (folder / "prompts.txt").is_file() and bool(_images(folder))  # a model's folder may hold a prompts.txt
    return paired or (folder / "prompts.jsonl").is_file() or any(folder.glob("[0-9]*/metadata.jsonl"))


def read_folder(folder: Path) -> list[Entry]:
    """The prompts of a folder and their images. Raises UserError where a file is missing or not understood."""
    if (folder / "prompts.jsonl").is_file():
        return _grouped(_listed(folder))
    if (folder / "prompts.txt").is_file():
        return _grouped(_paired(folder))
    entries = []
    for path in sorted(folder.glob("[0-9]*/metadata.jsonl")):
        images = _images(path.parent / "samples")
        if not images:
            raise UserError(f"{path.parent} has no images in samples/; make them or remove the folder")
        entries.append(Entry(_index(path.parent), _read_metadata(path), tuple(images)))
    if not entries:
        raise UserError(
            f"{folder} holds no images: expected GenEval's layout (00000/metadata.jsonl, 00000/samples/0000.png) "
            'or prompts.jsonl with lines such as {"file": "a.png", "prompt": "..."}'
        )
    return entries


def read_json_lines(path: Path, growing: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises UserError, naming the line, for anything else.

    ``growing`` leaves out a damaged last line without a line end: somebody is still writing it.
    """
    out = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON lines ({error}); restore it, or move it away") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            out.append(json_object(line, path, number))
        except NotJsonError:
            if growing and number == len(lines):
                break
            raise
    return out


class NotJsonError(UserError):
    """A line that is no JSON at all, such as one that somebody is still writing."""


def json_object(line: str | bytes, path: Path, number: int) -> dict[str, Any]:
    """The object that a line of a file holds. Raises `NotJsonError`, or `UserError` for other JSON."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # beside syntax: numbers of thousands of digits, deep nesting
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise NotJsonError(f"{path} line {number} is not JSON ({what}); repair it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} line {number} should be a JSON object, found {line[:40]!r}; repair it")
    return value


def _read_metadata(path: Path) -> dict[str, Any]:
    lines = read_json_lines(path)
    if len(lines) != 1 or not isinstance(lines[0].get("prompt"), str):
        raise UserError(f"{path} should hold one JSON object with a 'prompt', found {len(lines)} objects; repair it")
    return lines[0]


def _index(folder: Path) -> int:
    if not folder.name.isdigit():
        raise UserError(f"{folder} should be named by its prompt's number, such as 00000; rename it")
    return int(folder.name)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def _grouped(images: Iterable[tuple[dict[str, Any], Path]]) -> list[Entry]:
    """Images with the same prompt and fields are the samples of one prompt."""
    found: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    for metadata, path in images:
        found.setdefault(json.dumps(metadata, sort_keys=True), (metadata, []))[1].append(path)
    return [Entry(index, metadata, tuple(paths)) for index, (metadata, paths) in enumerate(found.values())]


def _paired(folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """Every image, by name, and its line of ``prompts.txt``. Raises UserError for more of one than of the other."""
    try:
        text = (folder / "prompts.txt").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / 'prompts.txt'} is not UTF-8 text ({error}); save it as such") from error
    lines = text.split("\n")  # str.splitlines also cuts at U+2028
    prompts = [line.strip() for line in lines if line.strip()]
    images = _images(folder)
    if len(prompts) != len(images):
        raise UserError(
            f"{folder / 'prompts.txt'} has {len(prompts)} prompts for {len(images)} images; give a line for each, in "
            'the order of the file names, or prompts.jsonl with lines such as {"file": "a.png", "prompt": "..."}'
        )
    for prompt, path in zip(prompts, images, strict=True):
        yield {"prompt": prompt}, path


def _listed(folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """Every image that ``prompts.jsonl`` names, and its prompt and fields."""
    for number, line in enumerate(read_json_lines(folder / "prompts.jsonl"), start=1):
        key = next((key for key in FILE_KEYS if key in line), None)
        if key is None or not isinstance(line.get("prompt"), str):
            names = ", ".join(map(repr, line)) or "nothing"
            raise UserError(f"{folder / 'prompts.jsonl'} line {number} needs a 'file' and a 'prompt', has {names}")
        path = folder / str(line[key])
        if not path.is_file():
            raise UserError(f"{folder / 'prompts.jsonl'} line {number} names {line[key]!r}, which is not in {folder}")
        yield {name: value for name, value in line.items() if name != key}, path


def _read_image(path: Path) -> np.ndarray:
    with _open_image(path) as image:
        return np.asarray(image.convert("RGB"))


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Pillow's errors as a sentence; what the system refuses, such as a permission, keeps its own words."""
    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large an image ({error}); make it smaller") from error
    except (OSError, SyntaxError, ValueError) as error:  # a damaged PNG is a SyntaxError
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is not a readable image ({error}); make it again") from error
