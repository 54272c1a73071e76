"""Values nobody expects, and ways to damage plain data, texts, files and folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, -(10**19), 0.5, -0.0, 1.0, 1e-320, 1e308, 2.5,
    float("nan"), float("inf"), -float("inf"), "", " ", "a", "x" * 5000, "\x1b[31mred", "\x00", "../..", "~",
    "~nobody/x", "/dev/null", "/proc/self/mem", "[/red]", "{}", "null", "1e5", "héé ☃", "\u202e", "a:b", "a/b", "a/b/c",
    "shapes", "shapes:train", "flow_grpo", "hf:x", "hf:x:y:z:w", "http://127.0.0.1:1/x", "ray:x", "x.py:y", "os:system",
    [], [[]], {}, {"use": 1}, {"use": "kl"}, {"use": None}, [None], [1, "a"], {"a": {"b": 1}}, "cuda:99", "float16",
    "2024-13-45", "x.txt", "x.jsonl", ".", "/",
]  # fmt: skip


def deep(levels: int) -> Any:
    """A list in a list in a list ..."""
    made: Any = 1
    for _ in range(levels):
        made = [made]
    return made


def odd(rng: random.Random) -> Any:
    """A value nobody expects."""
    return deep(rng.choice([3, 30, 60])) if rng.random() < 0.03 else rng.choice(ODD)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside plain data."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def damaged(value: Any, rng: random.Random) -> Any:
    """Plain data with one thing wrong: a value replaced, wrapped, removed, doubled, or a key renamed or added."""
    paths = places(value)
    if not paths or rng.random() < 0.03:
        return odd(rng)
    path = rng.choice(paths)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    key, kind = path[-1], rng.randrange(7)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = [holder[key]]
    elif kind == 2:
        holder[key] = {str(odd(rng))[:50]: holder[key]}
    elif kind == 3 and isinstance(holder, dict):
        holder[rng.choice([str(key)[::-1], f"{key}.x", str(odd(rng)), f"{key} "])] = holder.pop(key)
    elif kind == 4 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = odd(rng)
    return value


def garbled(text: bytes, rng: random.Random) -> bytes:
    """Bytes cut, repeated, flipped, or with others put in between."""
    where = rng.randrange(len(text) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return text[:where]
    if kind == 1:
        return text[where:]
    if kind == 2:
        return text[:where] + text[where // 2 : where] + text[where:]
    if kind == 3 and text:
        flipped = bytearray(text)
        for _ in range(rng.choice([1, 1, 8])):
            flipped[rng.randrange(len(text))] = rng.randrange(256)
        return bytes(flipped)
    if kind == 4:
        return rng.choice(
            [b"", b"\0" * 100, b"[" * 3000, b"version https://git-lfs", rng.randbytes(200), b"null", b"{}"]
        )
    put = rng.choice(
        [b": ", b"\n", b"\t", b"- ", b"{", b"]", b"&a [*a]", b"!!x ", b"'", b"\xff", b"\x1b[2J", b"<<: *x", b"#"]
    )
    return text[:where] + put + text[where:]


def damage_file(path: Path, rng: random.Random) -> None:
    """Remove, empty, garble a file, or change one thing in its JSON."""
    kind = rng.randrange(6)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(garbled(path.read_bytes(), rng))
    elif kind == 2:
        path.unlink()
        path.mkdir()
    else:
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            path.write_bytes(garbled(path.read_bytes(), rng))
            return
        path.write_text(json.dumps(damaged(value, rng)))


def damage_folder(folder: Path, rng: random.Random) -> None:
    """One to three files of a folder damaged, swapped or doubled under another name."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            return
        path = rng.choice(files)
        kind = rng.randrange(8)
        if kind == 0:
            other = rng.choice(files)
            first, second = path.read_bytes(), other.read_bytes()
            path.write_bytes(second)
            other.write_bytes(first)
        elif kind == 1:
            path.rename(path.with_name(rng.choice(["x" + path.name, path.stem, path.stem + ".bin"])))
        else:
            damage_file(path, rng)
