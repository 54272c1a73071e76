"""A folder of pictures with their captions, as trainers of image models read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.data.files import file_rows
from flowrl.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Of the library datasets' ImageFolder: a row for each picture, its path from the folder in ``file_name``."""
COLUMN = "image"
"""Where a row has the picture's path."""


def folder_rows(folder: Path) -> list[Mapping[str, Any]]:
    """A row for each picture: ``image``, its path, and what ``metadata.jsonl`` (.csv, .parquet) says of its
    ``file_name``, or as ``prompt`` the text of the file beside it that is called as it is and ends in .txt. Raises
    `UserError` for a folder without pictures or that cannot be read, or a picture without a caption."""
    found = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if found is not None:
        return [_described(row, found, number) for number, row in enumerate(file_rows(found), 1)]
    try:
        pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    except OSError as error:
        raise UserError(f"prompts {folder}: not readable whole ({error}); give the pictures' own folder") from error
    if not pictures:
        raise UserError(f"prompts {folder}: no picture ({', '.join(PICTURES)}) and no {METADATA[0]} is in this folder")
    return [{"prompt": _caption(path), COLUMN: str(path.absolute())} for path in pictures]


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    try:
        return beside.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UserError(f"prompts {path}: no caption; write it into {beside.name}, or all into {METADATA[0]}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {beside}: not readable ({error}); repair it") from error


def _described(row: object, file: Path, number: int) -> Mapping[str, Any]:
    name = row.get("file_name") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(name, str):
        raise UserError(f"prompts {file}, entry {number}: has no file_name; give the picture's path from the folder")
    rest = {key: value for key, value in row.items() if key != "file_name"}
    return {**rest, COLUMN: str((file.parent / name).absolute())}
