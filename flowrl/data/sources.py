"""Where prompts come from: embedded worlds, generated sets, files and data sets of the hub."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl import generated
from flowrl.data.files import SUFFIXES, file_rows
from flowrl.data.picture_folder import folder_rows
from flowrl.data.prompt_format import PromptFormat
from flowrl.data.prompt_set import PromptSet
from flowrl.errors import UserError, did_you_mean, missing_package
from flowrl.paths import expand_user
from flowrl.worlds import world_names

SPLITS = ("train", "test")
SLICE = re.compile(r"^(?P<name>.*?)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]$", re.DOTALL)


def load_prompts(spec: str, prompt_format: PromptFormat | None = None) -> PromptSet:
    """The prompts of ``shapes:train``, of ``geneval:train`` (see `flowrl.generated`), of a .txt (one a line), .jsonl,
    .json, .parquet, .csv or .tsv file, of a folder of pictures (`flowrl.data.picture_folder`), of ``hf:name:split`` or
    ``hf:name:configuration:split`` (such as ``hf:openai/gsm8k:main:train``), or of ``gym:NAME``, which is one that says
    nothing but the environment's name.

    Each may end in a slice, ``train[:100]``, ``train[10%:20%]`` or ``prompts.jsonl[-5:]``. A prompt is a text or a
    conversation (`flowrl.data.conversations`); columns besides it reach the rewards by name, as ``prompt_format`` names
    them. Raises `UserError` for a missing, empty or malformed source.
    """
    world, colon, split = spec.partition(":")
    if colon and world in world_names():
        rows: Sequence[object] = _sliced(split, lambda name: _world(world, name, spec), spec)
    elif colon and world in generated.SETS:
        rows = _sliced(split, lambda name: _generated(world, name, spec), spec)
    elif colon and world == "hf":
        rows = _hub(split, spec)
    elif colon and world == "gym":
        rows = [{"prompt": split}]  # the task has no variants: episodes differ by their seeds
    elif expand_user(spec).is_file():
        rows = _file(spec)
    else:
        rows = _sliced(spec, _file, spec)
    if not rows:
        raise UserError(f"{spec} holds no prompts; add at least one")
    prompt_format = prompt_format or PromptFormat()
    return PromptSet(
        tuple(prompt_format.prompt(row, index, f"prompts {spec}, entry {index + 1}") for index, row in enumerate(rows)),
        _folder(spec),
    )


def _folder(spec: str) -> Path | None:
    """Of the file, or the folder itself, that prompts are from."""
    sliced = SLICE.match(spec)
    for name in (spec, *([sliced["name"]] if sliced else [])):
        path = expand_user(name)
        if path.is_file() or path.is_dir():
            return path if path.is_dir() else path.parent
    return None


def _sliced(name: str, read: Callable[[str], Sequence[object]], spec: str) -> Sequence[object]:
    """``read(name)``, or a part of it where the name ends in a slice; per cent are rounded to whole rows."""
    found = SLICE.match(name)
    if found is None:
        if name.endswith("]"):
            raise UserError(f"prompts {spec!r}: a slice looks like [:100], [100:] or [10%:20%]")
        return read(name)
    rows = read(found["name"])
    bounds = [None if b is None else _bound(b, len(rows)) for b in (found["start"], found["stop"])]
    return rows[slice(*bounds)]


def _bound(text: str, count: int) -> int:
    return round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)


def _world(world: str, split: str, spec: str) -> Sequence[Mapping[str, Any]]:
    module = importlib.import_module(f"flowrl.worlds.{world}.prompts")
    known = getattr(module, "SPLITS", SPLITS)
    if split not in known:
        raise UserError(f"prompts {spec!r}: there is no split {split!r}{did_you_mean(split, known)}")
    return module.prompts(split)


def _generated(name: str, split: str, spec: str) -> Sequence[Mapping[str, Any]]:
    if split not in SPLITS:
        raise UserError(f"prompts {spec!r}: there is no split {split!r}{did_you_mean(split, SPLITS)}")
    return generated.rows(name, split)


def _hub(name: str, spec: str) -> Sequence[Mapping[str, Any]]:
    path, *configuration = re.split(r":(?![^\[]*\])", name)  # not at the colon of a slice
    split = configuration.pop() if configuration else ""
    if not path or not split or len(configuration) > 1:
        raise UserError(f"prompts {spec!r} should look like hf:owner/name:split or hf:owner/name:configuration:split")
    try:
        return hub_rows(path, *configuration, split=split)
    except ImportError:
        raise missing_package(f"data: {spec!r}", "datasets", "data") from None
    except (ValueError, OSError, AssertionError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"prompts {spec!r} could not be loaded: {reason[0]}") from error


def hub_rows(path: str, *configuration: str, split: str) -> list[Mapping[str, Any]]:
    """A data set of the hub; ``split`` as its library takes it, slices included. Raises `ImportError`, `OSError` (no
    such data set, no network) or `ValueError`."""
    import datasets  # pyright: ignore[reportMissingImports]

    found: Any = datasets.load_dataset(path, *configuration, split=split)
    return list(found)


def _file(name: str) -> Sequence[object]:
    path = expand_user(name)
    if path.is_dir():
        return folder_rows(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"prompts {str(path)!r}: expected world:split, hf:name:split or a file ending in {', '.join(SUFFIXES)}"
            f"{did_you_mean(str(path), [f'{world}:train' for world in world_names()])}"
        )
    return file_rows(path)
