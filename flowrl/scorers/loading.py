"""Loading scorers: models of the hub and weights of files, from safetensors alone, every weight found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowrl.devices import count, default_kind
from flowrl.errors import UserError, did_you_mean, first_line
from flowrl.launcher import own_accelerator
from flowrl.paths import expand_user

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONVERT = "python -m flowrl.scorers.convert"
T = TypeVar("T")


def device_and_dtype(device: str | None, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device (the GPU if there is one, of several processes each its own, unless named) and precision. Raises
    `UserError` for either."""
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not a precision of image scorers{did_you_mean(dtype, DTYPES)}")
    try:
        where = torch.device(device or default_kind())
    except RuntimeError as error:
        raise UserError(f"device {device!r} is not a torch device (cpu, cuda, cuda:1, ...)") from error
    if where.type != "cpu":
        if not count(where.type):
            raise UserError(f"device is {device!r} but torch sees no {where.type.upper()} device; use device: cpu")
        if where.index is None:
            where = torch.device(own_accelerator(where.type, count(where.type)))
    return where, DTYPES[dtype]


def from_hub(load: Callable[[], T], path: str, name: str) -> T:
    """What transformers loads from a folder or the hub. Raises `UserError` with its first line where it cannot."""
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{name}: {path} cannot be loaded: {first_line(error)}") from error


def folder_or_repository(path: str, name: str) -> str:
    """``path`` as transformers takes it. Raises `UserError` for what can be neither, and for a folder of pickles."""
    folder = expand_user(path)
    if not folder.is_dir():
        if path.count("/") != 1 or path.startswith((".", "/", "~")):
            raise UserError(f"{name}: {path!r} is neither a folder nor a name on the Hugging Face hub ('owner/model')")
        return path
    return str(folder)


def require_safetensors(source: str, name: str) -> None:
    """Raise `UserError` for a folder without any, naming the converter."""
    folder = Path(source)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise UserError(_no_safetensors(folder, name, "model.safetensors"))


def missing_weights(report: Mapping[str, Any]) -> list[str]:
    """Weights that transformers' loading report says are missing or of another shape; it fills them with random
    numbers."""
    mismatched = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    return sorted({*report["missing_keys"], *mismatched})


def load_pretrained(kind: Any, path: str, name: str, types: tuple[str, ...], unused: str | None = None) -> Any:
    """A transformers model for inference, from safetensors only, every weight found but those below `unused`.

    Raises `UserError` for a folder that does not exist, holds pickles or another architecture than `types`, or lacks
    weights.
    """
    from transformers import AutoConfig

    source = folder_or_repository(path, name)
    config: Any = from_hub(lambda: AutoConfig.from_pretrained(source), path, name)
    if config.model_type not in types:
        raise UserError(f"{name} needs a model of type {' or '.join(types)}, but {path} holds {config.model_type!r}")
    require_safetensors(source, name)
    return load_whole(kind, source, path, name, torch.float32, unused)


def load_whole(kind: Any, source: str, path: str, name: str, dtype: torch.dtype, unused: str | None = None) -> Any:
    """A model of the class ``kind`` from ``source``, which messages call ``path``. Raises `UserError` if it lacks
    weights other than those below `unused`."""

    def load() -> Any:
        return kind.from_pretrained(
            source, use_safetensors=True, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )

    model, report = from_hub(load, path, name)
    absent = [key for key in missing_weights(report) if unused is None or not key.startswith(unused)]
    if absent:
        raise UserError(f"{name}: {path} lacks {len(absent)} weights of its architecture ({absent[0]}, ...)")
    return model.eval().requires_grad_(False)


def find_safetensors(path: str, name: str, preferred: str | None = None) -> Path:
    """The weights file at `path`: itself, or the one in this folder. Raises `UserError`, naming the converter."""
    given = expand_user(path)
    if given.is_dir():
        found = sorted(given.glob("*.safetensors"))
        found = [file for file in found if file.name == preferred] or found
        if len(found) > 1:
            raise UserError(f"{name}: {path} holds {len(found)} .safetensors files; give the file instead")
        if not found:
            raise UserError(_no_safetensors(given, name, preferred or "weights.safetensors"))
        return found[0]
    if not given.is_file():
        raise UserError(f"{name}: weights {path!r} do not exist; give a .safetensors file or the folder that holds it")
    if given.suffix != ".safetensors":
        target = given.with_suffix(".safetensors")
        raise UserError(f"{name}: {path} is not a safetensors file; run `{CONVERT} {path} {target}` and give {target}")
    return given


def read_safetensors(file: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of a safetensors file. Raises `UserError` for a file that is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{name}: {file} is not a readable safetensors file: {error}") from error


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str, file: Path) -> None:
    """Fill a float32 module with weights of exactly its names and shapes. Raises `UserError` for a misfit."""
    check_fit(model, state, name, file)
    model.load_state_dict({key: value.float() for key, value in state.items()})


def check_fit(model: nn.Module, state: Mapping[str, Tensor], name: str, file: Path) -> None:
    """Raise `UserError` unless weights have exactly a module's names and shapes."""
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    odd = sorted({*wanted.items()} ^ {*found.items()})
    if odd:
        key = odd[0][0]
        raise UserError(
            f"{name}: {file} holds another architecture: {key} is {found.get(key, 'absent')} where "
            f"{wanted.get(key, 'nothing')} is expected ({len({key for key, _ in odd})} weights differ)"
        )


def linear_stack(state: Mapping[str, Tensor], inputs: int, name: str, file: Path) -> nn.Sequential:
    """Linear layers without anything between them, from keys `layers.<i>.weight` and `.bias`, ending in one number.

    Both heads of this form (LAION's, ImageReward's) have only dropout between the layers, which inference omits.
    """
    order = sorted({int(key.split(".")[1]) for key in state if key.startswith("layers.")})
    layers: list[nn.Module] = []
    for index in order:
        weight, bias = state.get(f"layers.{index}.weight"), state.get(f"layers.{index}.bias")
        if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != inputs:
            raise UserError(f"{name}: layers.{index} of {file} is no linear layer with {inputs} inputs")
        layer = nn.Linear(inputs, len(weight))
        layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers.append(layer)
        inputs = len(weight)
    if not layers or inputs != 1:
        raise UserError(
            f"{name}: {file} holds no head of linear layers ('layers.0.weight', ...) that ends in one number"
        )
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _no_safetensors(folder: Path, name: str, target: str) -> str:
    pickles = [file for pattern in ("*.bin", "*.pt", "*.pth") for file in sorted(folder.glob(pattern))]
    if not pickles:
        return f"{name}: {folder} holds no weights; a .safetensors file is needed"
    return f"{name}: {folder} holds no safetensors; run `{CONVERT} {pickles[0]} {folder / target}`"
