"""From a pickled checkpoint to safetensors, once: `python -m flowrl.scorers.convert weights.pt weights.safetensors`.

The only place of flowrl that opens a pickle. PyTorch's restricted unpickler does it (`weights_only=True`): it builds
tensors and plain containers and refuses every other object, so a hostile file ends in an error and runs nothing.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, serialization

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.paths import expand_user

WRAPPERS = ("state_dict", "model", "module")
"""Keys under which checkpoints keep their weights."""
PARALLEL = "module."
"""What `DistributedDataParallel` puts before every name."""


def convert(source: str | Path, target: str | Path) -> dict[str, Tensor]:
    """Write the weights of a pickled checkpoint to a new safetensors file, and return them; names and types are kept.

    A wrapping `state_dict` is opened, `module.` in front of every name removed. Raises `UserError` when the source does
    not exist or holds more than tensors, or when the target exists or is not called .safetensors.
    """
    from safetensors.torch import save_file

    source, target = expand_user(source), expand_user(target)
    if target.suffix != ".safetensors":
        raise UserError(f"the converted file is called *.safetensors, found {str(target)!r}")
    if target.exists():
        raise UserError(f"{target} already exists; remove it or write elsewhere")
    if not target.parent.is_dir():
        raise UserError(f"folder {target.parent} does not exist; create it first")
    weights = _weights(open_checkpoint(source), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    save_file(weights, str(target), metadata={"format": "pt", "source": source.name, "source_sha256": digest})
    return weights


def main(arguments: list[str]) -> int:
    """The command: 0 when written, 2 (and one sentence on stderr) when the user can mend something."""
    if len(arguments) != 2:
        print("usage: python -m flowrl.scorers.convert SRC DST", file=sys.stderr)
        return 2
    try:
        weights = convert(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    numbers = sum(value.numel() for value in weights.values())
    print(f"{arguments[1]}: {len(weights)} tensors, {numbers:,} numbers")
    return 0


def open_checkpoint(source: Path) -> object:
    """What a pickled checkpoint of tensors and plain containers holds. Raises `UserError` for a file that is not there,
    cannot be read or holds anything else."""
    if not source.is_file():
        raise UserError(f"checkpoint {source} does not exist")
    try:
        return serialization.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"checkpoint {source} cannot be read: {first_line(error)}") from error
    except Exception as error:  # whatever a broken or hostile file makes the unpickler raise
        if is_out_of_memory(error):
            raise
        raise UserError(f"{source} is not a checkpoint of tensors alone: {first_line(error)}") from error


def _weights(found: Any, source: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    named = isinstance(found, Mapping) and all(isinstance(key, str) for key in found)
    if not named or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{source} is not a state dict: it should map names to tensors, at its top or in 'state_dict'")
    wrapped = all(key.startswith(PARALLEL) for key in found)
    # safetensors refuses tensors that share memory, so each gets its own
    return {
        key.removeprefix(PARALLEL) if wrapped else key: value.detach().contiguous().clone()
        for key, value in found.items()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
