"""Prompt sets: reading them, and drawing from them without state."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flowrl.worlds
from flowrl import generated
from flowrl.errors import UserError, did_you_mean, missing
from flowrl.math.random import derive, permutation
from flowrl.paths import expanded
from flowrl.types import Prompt

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
SPLITS = ("train", "test")
TEXT_KEYS = ("prompt", "text", "Prompt", "Prompts", "caption", "question", "problem")
"""Columns that may hold the prompt, in this order (``Prompt`` of PartiPrompts, ``Prompts`` of DrawBench, ``question``
of GSM8K, ``problem`` of MATH)."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order; a prompt's id is its place in it."""

    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, iteration: int, count: int, seed: int, number: int = 0) -> list[Prompt]:
        """``count`` prompts of one epoch's random order, distinct when ``count <= len(self)``; every epoch has its own
        order. A later round of the same iteration (``number`` > 0) takes others, in an order of that iteration's own:
        a prompt comes back only when all have been drawn.

        A pure function of its arguments, so a resumed run goes on exactly where it was.
        """
        size = len(self.prompts)
        if number > 0:
            first = {prompt.id for prompt in self.draw(iteration, count, seed)}
            order = permutation(derive(seed, "further prompts", iteration), size).tolist()
            order.sort(key=lambda i: self.prompts[i].id in first)  # stable: those of the first round come last
            start = (number - 1) * count
            return [self.prompts[order[i % size]] for i in range(start, start + count)]
        if count > size:
            return [self.prompts[i] for i in _endless(size, iteration * count, count, seed)]
        per_epoch = size // count
        # An epoch ends where the next draw would not fit; which prompts are left over differs from epoch to epoch.
        epoch, place = divmod(iteration, per_epoch)
        order = permutation(derive(seed, "prompts", epoch), size).tolist()
        return [self.prompts[i] for i in order[place * count : (place + 1) * count]]


def _endless(size: int, start: int, count: int, seed: int) -> Iterator[int]:
    for position in range(start, start + count):
        epoch, place = divmod(position, size)
        yield int(permutation(derive(seed, "prompts", epoch), size)[place])


def load_prompts(spec: str) -> PromptSet:
    """The prompts of ``shapes:train``, of ``geneval:train`` (see `flowrl.generated`), of a .txt (one a line), .jsonl,
    .json or .parquet file, of ``hf:name:split`` or ``hf:name:configuration:split`` (``hf:openai/gsm8k:main:train``).

    A prompt is a text, or a chat of one user message; columns besides it reach the rewards by name. Raises `UserError`
    for a missing, empty or malformed source.
    """
    world, colon, split = spec.partition(":")
    if colon and world in worlds():
        rows: Sequence[Any] = _world(world, split, spec)
    elif colon and world in generated.SETS:
        rows = _generated(world, split, spec)
    elif colon and world == "hf":
        rows = _hub(split, spec)
    else:
        rows = _file(expanded(spec))
    if not rows:
        raise UserError(f"{spec} holds no prompts; add at least one")
    return PromptSet(tuple(_prompt(row, index, spec) for index, row in enumerate(rows)))


def worlds() -> list[str]:
    """Names of the embedded worlds."""
    return [info.name for info in pkgutil.iter_modules(flowrl.worlds.__path__)]


def _world(world: str, split: str, spec: str) -> Sequence[Mapping[str, Any]]:
    if split not in SPLITS:
        raise UserError(f"prompts {spec!r}: there is no split {split!r}{did_you_mean(split, SPLITS)}")
    return importlib.import_module(f"flowrl.worlds.{world}.prompts").prompts(split)


def _generated(name: str, split: str, spec: str) -> Sequence[Mapping[str, Any]]:
    if split not in SPLITS:
        raise UserError(f"prompts {spec!r}: there is no split {split!r}{did_you_mean(split, SPLITS)}")
    return generated.rows(name, split)


def _hub(name: str, spec: str) -> Sequence[Mapping[str, Any]]:
    path, *configuration = name.split(":")
    split = configuration.pop() if configuration else ""
    if not path or not split or len(configuration) > 1:
        raise UserError(f"prompts {spec!r} should look like hf:owner/name:split or hf:owner/name:configuration:split")
    try:
        return hub_rows(path, *configuration, split=split)
    except ImportError:
        raise missing(f"data: {spec!r}", "datasets", "data") from None
    except (ValueError, OSError) as error:
        raise UserError(f"prompts {spec!r} could not be loaded: {error}") from error


def hub_rows(path: str, *configuration: str, split: str) -> list[Mapping[str, Any]]:
    """A data set of the hub. Raises `ImportError`, `OSError` (no such data set, no network) or `ValueError`."""
    import datasets  # pyright: ignore[reportMissingImports]

    found: Any = datasets.load_dataset(path, *configuration, split=split)
    return list(found)


def _file(path: Path) -> Sequence[Any]:
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"prompts {str(path)!r}: expected world:split, hf:name:split or a file ending in {', '.join(SUFFIXES)}"
            f"{did_you_mean(str(path), [f'{world}:train' for world in worlds()])}"
        )
    if not path.is_file():
        raise UserError(f"prompts {path} do not exist (looked in {Path.cwd()}); check data.train and data.test")
    if path.suffix == ".parquet":
        return _parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompts {path} are not text in UTF-8 (byte {error.start}); save the file as UTF-8") from None
    if path.suffix == ".txt":
        return [{"prompt": line.strip()} for line in text.splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        return [_json(line, f"{path} line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = _json(text, str(path))
    if not isinstance(rows, list):
        raise UserError(f"prompts {path} should hold a list, found {type(rows).__name__}")
    return rows


def _parquet(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing(f"data: {str(path)!r}", "pyarrow", "data") from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"prompts {path} are not a readable parquet file ({error}); write it again") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"prompts {where}: not JSON ({error.msg}, column {error.colno}); repair it") from None


def _prompt(row: Any, index: int, spec: str) -> Prompt:
    if isinstance(row, str):
        row = {"prompt": row}
    where = f"prompts {spec}, entry {index + 1}"
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: should be an object with a 'prompt', found {row!r}")
    key = next((key for key in TEXT_KEYS if key in row), None)
    if key is None:
        raise UserError(f"{where}: has no 'prompt' (it has {', '.join(map(repr, row)) or 'nothing'})")
    text = _said(row[key], where) if isinstance(row[key], list) else row[key]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {key} should be a text, found {row[key]!r}")
    return Prompt(text, index, {name: value for name, value in row.items() if name != key})


def _said(messages: Sequence[Any], where: str) -> Any:
    """What the user says in a chat of one message, as data sets of TRL and verl hold prompts; the model's chat template
    is put around it."""
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    if roles == ["system", "user"]:
        raise UserError(
            f"{where}: the prompt has a system message; set model.system to it and leave the user's message in the file"
        )
    if roles != ["user"]:
        raise UserError(f"{where}: a prompt may be a text or one message of the user, found the roles {roles}")
    return messages[0].get("content")
