"""Pictures that belong to prompts: columns with paths, found beside the file that names them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from flowrl.data.prompt_set import PromptSet
from flowrl.errors import UserError, did_you_mean, first_line
from flowrl.types import Prompt


def with_pictures(found: PromptSet, columns: Iterable[str], where: str) -> PromptSet:
    """The prompts with the whole paths of the pictures in these columns, which are relative to the file that the
    prompts are from (``PromptSet.folder``), or to here where they are from none.

    Raises:
        UserError: for a prompt without one, or whose file is missing or no picture, by its entry and column.
    """
    names = tuple(dict.fromkeys(columns))
    if not names:
        return found
    folder = found.folder or Path.cwd()
    return replace(found, prompts=tuple(_with_paths(prompt, names, folder, where) for prompt in found.prompts))


def _with_paths(prompt: Prompt, names: tuple[str, ...], folder: Path, where: str) -> Prompt:
    paths = {name: _path(prompt, name, folder, f"{where}, entry {prompt.id + 1}") for name in names}
    return replace(prompt, columns={**prompt.columns, **paths})


def _path(prompt: Prompt, name: str, folder: Path, here: str) -> str:
    value: Any = prompt.columns.get(name)
    if not isinstance(value, str) or not value.strip():
        state = "is not there" if name not in prompt.columns else f"holds {type(value).__name__}, or nothing"
        raise UserError(
            f"{here}: the column {name!r} of model.inputs {state}; it should be the path of a picture"
            f"{did_you_mean(name, prompt.columns) if name not in prompt.columns else ''}"
        )
    path = folder / Path(value).expanduser()
    if not path.is_file():
        raise UserError(f"{here}: the column {name!r} names {value}, and there is no file {path}; repair the path")
    try:
        with Image.open(path):  # its header alone
            return str(path.absolute())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{here}: the column {name!r} names {value}, which is no picture: {first_line(error)}"
        ) from error
