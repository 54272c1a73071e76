"""Rows of prompt files: .txt, .jsonl, .json, .parquet, .csv and .tsv; one reader for training and evaluation."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl.errors import UserError, missing_package

TABLES = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".txt", ".jsonl", ".json", ".parquet", *TABLES)
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BOM = "\ufeff"
"""Also at the beginning of lines, where files were put one behind the other."""


def file_rows(path: Path) -> Sequence[object]:
    """The rows of a file, as its suffix (in any case) says.

    Lines end at ``\\n``, ``\\r\\n`` or a lone ``\\r`` at their end, nowhere else: U+2028, U+0085, form feeds and their
    like are characters of a text. Raises `UserError` for a missing or damaged file.
    """
    if not path.is_file():
        raise UserError(f"prompts {path} do not exist (looked in {Path.cwd()}); check data.train and data.test")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    text = read_text(path)
    if suffix in TABLES:
        return _table(text, path, TABLES[suffix])
    if suffix == ".txt":
        return [{"prompt": line.strip()} for line in lines(text) if line.strip()]
    return _json_lines(text, path) if suffix == ".jsonl" else _json_list(text, path)


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with a mark, as some editors write it. Raises `UserError` for other bytes."""
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except OSError as error:
        raise UserError(f"prompts {path} cannot be read ({error.strerror}); check the file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompts {path} are not text in UTF-8 (byte {error.start}); save the file as UTF-8") from None


def lines(text: str) -> list[str]:
    """Lines without their ends; ``str.splitlines`` would cut at eight further characters."""
    return [line.removesuffix("\r").removeprefix(BOM) for line in text.split("\n")]


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a .csv or .tsv file with a header. Raises `UserError` for one that is missing or damaged."""
    if not path.is_file():
        raise UserError(f"prompts {path} do not exist (looked in {Path.cwd()})")
    return _table(read_text(path), path, TABLES[path.suffix.lower()])


def _table(text: str, path: Path, comma: str) -> list[dict[str, str]]:
    limit = csv.field_size_limit(sys.maxsize >> 32)  # 128 kB by default, which a long document exceeds
    try:
        rows = _cells(text, comma)
    except csv.Error as error:
        raise UserError(f"prompts {path} are not a readable table ({error}); write the file again") from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        return []
    header = [name.strip() for name in rows[0]]
    _check_names(header, f"prompts {path}", "write the header again (pandas: to_csv(..., index=False))")
    if len(header) == 1 and comma == "," and any(mark in header[0] for mark in ";\t"):
        raise UserError(
            f"prompts {path}: the header {header[0]!r} has no comma; separate columns by commas, or use .tsv"
        )
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise UserError(
                f"prompts {path}, row {number}: another number of columns than the header ({len(row)}, not"
                f" {len(header)}); repair it"
            )
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


def _cells(text: str, comma: str) -> list[list[str]]:
    """The rows that are not empty. A quotation mark that is never closed would swallow the rest of a file in silence,
    so the strict reading goes first; a cell such as ``"Go" sign`` is read by the other one."""
    file = io.StringIO(text, newline="")
    try:
        return [row for row in csv.reader(file, delimiter=comma, strict=True) if row]
    except csv.Error:
        file.seek(0)
        rows = [row for row in csv.reader(file, delimiter=comma) if row]
        if any("\n" in cell for row in rows for cell in row):
            raise
        return rows


def _check_names(names: Sequence[str], where: str, remedy: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if "" in names:
        raise UserError(f"{where}: column {names.index('') + 1} has no name; {remedy}")
    if twice is not None:
        raise UserError(f"{where}: the column {twice!r} occurs twice; rename one of them")


def _json_lines(text: str, path: Path) -> list[object]:
    return [parse_json(line, f"{path} line {n}") for n, line in enumerate(lines(text), 1) if line.strip()]


def _json_list(text: str, path: Path) -> Sequence[object]:
    if not text.strip():
        return []
    try:
        rows = parse_json(text, str(path))
    except UserError:
        several = lines(text.strip())
        if len(several) == 1 or not several[0].rstrip().endswith("}"):
            raise
        return _json_lines(text, path)  # lines in a file named .json, as the hub has many
    if isinstance(rows, Mapping) and len(lines(text.strip())) == 1 and "prompt" in rows:
        raise UserError(f"prompts {path} should hold a list, found one object; put it into [ ]")
    if not isinstance(rows, list):
        raise UserError(f"prompts {path} should hold a list, found {type(rows).__name__}")
    return rows


def parse_json(text: str, where: str) -> Any:
    """Plain data. Raises `UserError` for what is not JSON, and for an object that has a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            _check_names([key or "''" for key, _ in pairs], f"prompts {where}", "name it")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(f"prompts {where}: not JSON ({error.msg}, column {error.colno}); repair it") from None
    except RecursionError:
        raise UserError(f"prompts {where}: nested too deeply to be read; flatten it") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"prompts {where}: not readable ({error}); repair it") from None


def _parquet(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing_package(f"data: {str(path)!r}", "pyarrow", "data") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as found:  # read_table adds columns of folders named like key=value
            _check_names(found.schema_arrow.names, f"prompts {path}", "name it")
            return found.read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"prompts {path} are not a readable parquet file ({error}); write it again") from error
